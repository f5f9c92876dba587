"""Kafka clients: every option said, nothing unsafe by accident. What needs a broker is in tests/integration."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from pydantic import SecretStr

from tollgate.runtime.kafka import MAX_REQUEST_BYTES, client_options, new_consumer, new_producer
from tollgate.runtime.settings import KafkaSettings

SETTINGS = KafkaSettings(bootstrap_servers="a:1, b:2,", topic_prefix="x.")


def test_plain_options_carry_no_credentials() -> None:
    """Plaintext options name the brokers and the timeouts and nothing of SASL or TLS."""
    options = client_options(SETTINGS)
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert options["request_timeout_ms"] == 30_000
    assert not [name for name in options if name.startswith(("sasl", "ssl"))]


def test_sasl_over_tls_options() -> None:
    """SASL_SSL carries the mechanism, user, password and a verifying TLS context."""
    options: dict[str, Any] = client_options(
        KafkaSettings(
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username="me",
            sasl_password=SecretStr("hidden"),
        )
    )
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("SCRAM-SHA-512", "me")
    assert options["sasl_plain_password"] == "hidden"
    assert options["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname


async def test_non_idempotent_producer_needs_an_ephemeral_broker() -> None:
    """A producer that may write twice is refused on a broker that remembers."""
    with pytest.raises(ValueError, match="ephemeral broker only"):
        new_producer(SETTINGS, idempotent=False, client_id="c")
    producer = new_producer(SETTINGS, idempotent=False, client_id="c", ephemeral=True)
    assert (producer._txn_manager, producer._sender._acks) == (None, -1)
    await producer.stop()


async def test_producer_waits_for_all_and_does_not_compress() -> None:
    """acks=all, idempotent, no compression, records up to 8 MiB."""
    producer = new_producer(SETTINGS, idempotent=True, client_id="c", linger_ms=7)
    assert producer._sender._acks == -1
    assert producer._txn_manager is not None
    assert producer._compression_type is None
    assert producer._max_request_size == MAX_REQUEST_BYTES == 8_388_608
    await producer.stop()


async def test_consumer_never_commits_by_itself() -> None:
    """Auto commit is off, the reset policy is the caller's, topics and group carry the prefix."""
    consumer = new_consumer(
        SETTINGS, client_id="c", auto_offset_reset="none", topics=["t"], group="g", session_timeout_ms=6_000
    )
    assert consumer._enable_auto_commit is False
    assert consumer._auto_offset_reset == "none"
    assert consumer._group_id == "x.g"
    assert set(consumer.subscription()) == {"x.t"}
    assert consumer._heartbeat_interval_ms * 3 <= consumer._session_timeout_ms
    assert consumer._isolation_level == "read_committed"
    await consumer.stop()
