"""stripe_sync dies at each numbered step and starts again: Stripe holds each unit once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.stripe.process import StripeStandIn
from services.stripe_sync.faults import FaultPoint
from tests.integration.stripe_sync_rig import Rig
from tests.parts.kafka import BrokerSettings
from tollgate.runtime.faults import EXIT_CRASHED


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def rig(
    sqlite_url: str, broker_settings: BrokerSettings, stand_in: StripeStandIn, tmp_path: Path
) -> Iterator[Rig]:
    made = Rig.make(sqlite_url, broker_settings, stand_in, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("point", list(FaultPoint))
def test_a_death_at_any_step_doubles_and_loses_nothing(rig: Rig, point: FaultPoint) -> None:
    """Killed at the step's first passing, and again at its second while more usage comes; then left alone."""
    meter, name = rig.meter()
    customers = [rig.customer(name) for _ in range(2)]
    truth: dict[str, int] = {}
    for round_number in (1, 2):
        for number, customer in enumerate(customers):
            truth[customer] = 10 * round_number + number
            rig.use(meter, customer, truth[customer])
        process = rig.start(
            TOLLGATE_SYNC__FAULT_POINT=point, TOLLGATE_SYNC__FAULT_PASSES=1, TOLLGATE_SYNC__LEASE_SECONDS=0.6
        )
        assert process.child.wait(30) == EXIT_CRASHED, process.tail()
    last = rig.start(TOLLGATE_SYNC__LEASE_SECONDS=0.6)
    rig.wait_for_totals(name, truth)
    identifiers = [event["identifier"] for event in rig.control.meter_events(event_name=name)]
    assert len(identifiers) == len(set(identifiers))
    assert last.end() == 0
