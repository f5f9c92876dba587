"""One run of every service for all tests that only look at what it left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.cli_rig import CountedRun
from tests.parts.kafka import KafkaPart
from tests.parts.postgres import PostgresPart


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
