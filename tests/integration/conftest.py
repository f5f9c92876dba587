"""One run of every service for all tests that only look at what it left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.stripe.process import StripeStandIn
from tests.integration.cli_rig import CountedRun
from tests.parts.kafka import KafkaPart
from tests.parts.postgres import PostgresPart
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.migrations import migrate


@pytest.fixture(scope="session")
def counted_run(
    kafka: KafkaPart, postgres: PostgresPart, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CountedRun]:
    """2,000 events from gateway to Stripe on Kafka and PostgreSQL; every service has stopped."""
    run = CountedRun(kafka.fresh(), postgres, tmp_path_factory.mktemp("counted-run"))
    try:
        run.play()
        yield run
    finally:
        run.close()


@pytest.fixture(scope="session")
def period_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    """One stand-in for every story of a period's end; each begins by making it new."""
    with StripeStandIn.start(tmp_path_factory.mktemp("period-stripe") / "state.sqlite3") as running:
        yield running


def _migrate(url: str) -> None:
    engine = open_ledger(url)
    migrate(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "ledger.sqlite3"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def period_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated ledger of this test's own, on each database."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.sqlite3"
        shutil.copyfile(request.getfixturevalue("_migrated_file"), path)
        yield f"sqlite:///{path}"
        return
    postgres: PostgresPart = request.getfixturevalue("postgres")
    borrowed = postgres.borrow("periods", _migrate)
    yield borrowed
    postgres.give_back("periods", borrowed)
