"""A ledger made ready, on each database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.parts.postgres import PostgresPart
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.init import Pins, initialise
from tollgate.ledger.migrations import migrate
from tollgate.ledger.roles import can_create_roles, create_roles

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


_MIGRATED = frozenset({"ledger", "world", "empty_world"})
"""Fixtures that want the schema in place: migrating for each of several hundred tests would be most of their time."""


def _migrate(url: str) -> None:
    engine = open_ledger(url)
    migrate(engine)
    if can_create_roles(engine):
        create_roles(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite ledger with its schema and nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "ledger.sqlite3"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of this test's own, on each kind: migrated where the test goes on from there, else empty."""
    migrated = bool(_MIGRATED & set(request.fixturenames))
    if request.param == "sqlite":
        path = tmp_path / "ledger.sqlite3"
        if migrated:
            shutil.copyfile(request.getfixturevalue("migrated_file"), path)
        yield f"sqlite:///{path}"
        return
    postgres: PostgresPart = request.getfixturevalue("postgres")
    if migrated:
        url = postgres.borrow("migrated", _migrate)
        yield url
        postgres.give_back("migrated", url)
    else:
        url = postgres.fresh()
        yield url
        postgres.drop(url)


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
