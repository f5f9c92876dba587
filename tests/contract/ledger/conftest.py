"""A ledger made ready, on each database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tollgate.ledger.engine import open_ledger
from tollgate.ledger.init import Pins, initialise

PARTITIONS = 4

PINS = Pins(
    kafka_cluster_id="cluster-1",
    events_topic="gateway.events",
    partitions=PARTITIONS,
    stripe_account="acct_1",
    stripe_mode="test",
    id_seed_fingerprint="0f0f",
    ledger_id="ledger_1",
)


@pytest.fixture
def empty_ledger(ledger_url: str) -> Iterator[Engine]:
    """An open database without a schema."""
    engine = open_ledger(ledger_url)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(empty_ledger: Engine) -> Engine:
    """A ledger as `tollgate init` leaves it."""
    initialise(empty_ledger, PINS, PARTITIONS, now_ms=1_000)
    return empty_ledger


@pytest.fixture
def second(ledger_url: str) -> Iterator[Engine]:
    """Another process's connections to the same ledger."""
    engine = open_ledger(ledger_url)
    yield engine
    engine.dispose()
