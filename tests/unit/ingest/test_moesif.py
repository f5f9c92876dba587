"""Moesif's events as columns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.ingest.decoded import DecodedBatch
from tests.unit.ingest.decoders import ID_SEED, INGEST_MS, KEYS, moesif_decoder, moesif_event
from tollgate.contracts.events import hash_id
from tollgate.metering.errors import DeadReason


def decode(body: bytes | object, *, trust_ids: bool = True) -> DecodedBatch:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return moesif_decoder().decode(data, ingest_ms=INGEST_MS, trust_ids=trust_ids, replayed=False)


def only(batch: DecodedBatch) -> dict[str, Any]:
    assert (batch.rows, list(batch.rejected)) == (1, [])
    return {name: column[0] for name, column in batch.columns.items()}


def test_an_event_becomes_one_row_of_exactly_these_columns() -> None:
    """Unpadded milliseconds, headers as arrays, a path without port and query, the session token hashed."""
    assert only(decode([moesif_event()])) == {
        "id_hash": hash_id("b" * 32, ID_SEED),
        "id_weak": False,
        "id": "b" * 32,
        "time_ms": 1_748_772_000_005,
        "account": "company:acme",
        "user": "cus_1",
        "company": "acme",
        "subscription": None,
        "api_key": KEYS.hash_key("raw key"),
        "gateway": "moesif",
        "service": "llm",
        "route": None,
        "method": "POST",
        "host": "api.test",
        "path": "/v1/chat",
        "status": 200,
        "latency_ms": 33,
        "request_bytes": None,
        "response_bytes": 20,
        "client_ip": "192.0.2.1",
        "user_agent": "curl",
        "weight": 2,
        "blocked_by": None,
        "properties.cost": None,
        "properties.model": "m1, m2",
        "properties.plan": "gold",
        "properties.tenant": "t1",
        "properties.tokens": None,
        "properties.total_tokens": "12.5",
    }


def without_kong_id(**changes: Any) -> dict[str, Any]:
    event = moesif_event(**changes)
    event["response"]["headers"] = {}
    return event


def test_the_order_of_trust_for_ids() -> None:
    """Kong's response header, else a trusted SDK's transaction_id, else a weak hash."""
    assert only(decode(moesif_event()))["id"] == "b" * 32
    assert only(decode(without_kong_id()))["id"] == "tx-1"
    untrusted = only(decode(without_kong_id(), trust_ids=False))
    assert untrusted["id_weak"] is True
    assert untrusted["id"].startswith("weak:")


def test_a_caller_who_repeats_a_transaction_header_is_still_counted_for_each_call() -> None:
    """The header is copied from the caller's request: alone it identifies nothing."""
    ids = set()
    for second in range(3):
        event = without_kong_id(transaction_id=None)
        event["request"] |= {
            "time": f"2025-06-01T10:00:0{second}.5",
            "headers": {"X-Moesif-Transaction-Id": "constant"},
        }
        event["response"]["headers"] = {"X-Moesif-Transaction-Id": "constant"}
        ids.add(only(decode(event))["id"])
    assert len(ids) == 3


def test_null_fields_everywhere_are_as_good_as_absent() -> None:
    """Python's SDKs send every field, null included."""
    row = only(
        decode(
            {
                "request": {"time": "2025-06-01T10:00:00.123", "uri": None, "verb": None, "headers": None},
                "response": None,
                "user_id": 17,
                "company_id": None,
                "session_token": None,
                "transaction_id": "t",
                "weight": None,
                "metadata": None,
                "blocked_by": None,
                "subscription_id": None,
            }
        )
    )
    assert (row["account"], row["weight"], row["status"], row["time_ms"]) == (
        "user:17",
        1,
        None,
        1_748_772_000_123,
    )


def test_a_body_that_nobody_counts_cannot_make_a_call_free() -> None:
    """A caller's body nested a hundred thousand deep is dropped, and the call counted."""
    text = json.dumps(moesif_event()).replace('"c2VjcmV0"', "[" * 100_000 + "]" * 100_000)
    assert only(decode(text.encode()))["id"] == "b" * 32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user_id": None, "company_id": None, "session_token": None}, DeadReason.NO_IDENTITY),
        ({"weight": 0}, DeadReason.OUT_OF_RANGE),
        ({"weight": "2"}, DeadReason.BAD_TYPE),
        ({"request": None}, DeadReason.UNSUPPORTED),
        ({"request": {"uri": "/"}}, DeadReason.NO_TIME),
        ({"request": {"time": "yesterday"}}, DeadReason.BAD_TIME),
        ({"request": {"time": "2025-06-31T10:00:00"}}, DeadReason.BAD_TIME),
        ({"user_id": "a\0b"}, DeadReason.BAD_TYPE),
        ({"user_id": "x" * 10_000_000}, DeadReason.TOO_LARGE),
        (
            {"request": {"time": "2025-06-01T10:00:00", "headers": {"content-length": "-3"}}},
            DeadReason.OUT_OF_RANGE,
        ),
    ],
)
def test_a_bad_event_has_a_named_reason_and_leaves_its_neighbours_alone(
    changes: dict[str, Any], reason: DeadReason
) -> None:
    """One bad event in a batch of three: two rows, one rejection."""
    batch = decode([moesif_event(), moesif_event(**changes), moesif_event()])
    assert batch.rows == 2
    assert [rejected.reason for rejected in batch.rejected] == [reason]
