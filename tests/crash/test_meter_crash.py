"""The meter dies at each named step, as by SIGKILL; the next process counts what is left, and nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.meter.faults import FaultPoint
from tests.fakes.events import TIME_MS, Call
from tests.integration.meter_rig import MeterRig, calls
from tests.parts.kafka import BrokerSettings
from tollgate.runtime.faults import EXIT_CRASHED

FUTURE_MS = TIME_MS + 3_600_000


@pytest.fixture
async def rig(broker_settings: BrokerSettings, sqlite_url: str, tmp_path: Path) -> AsyncIterator[MeterRig]:
    """On Kafka (the embedded broker where there is none) and SQLite."""
    made = await MeterRig(broker_settings, sqlite_url, tmp_path).prepare()
    yield made
    made.close()


def _with_dead(first: int) -> list[Call]:
    """Events of which one in fifty will be dead: status 500, so that the truth does not count it."""
    return [
        Call(call.id, call.account, FUTURE_MS, 500) if number % 50 == 0 else call
        for number, call in enumerate(calls(200, first=first))
    ]


@pytest.mark.parametrize("point", [point for point in FaultPoint if point is not FaultPoint.REVOKED])
async def test_a_death_at_each_step_counts_once(rig: MeterRig, point: FaultPoint) -> None:
    """Some of the flush is in the ledger, or none: either way the heir makes it exact."""
    await rig.produce(_with_dead(first=0), rows=10)
    # The group's offset is written once for everything the ledger took meanwhile; the other steps come often.
    hits = "1" if point is FaultPoint.GROUP_COMMITTED else "2"
    worker = rig.worker().start(FAULT__POINT=point, FAULT__HITS=hits)
    await rig.until(lambda: rig.folded > 0 or not worker.child.running)
    if worker.child.running:
        await rig.produce(_with_dead(first=150), rows=10)
    assert worker.wait(15) == EXIT_CRASHED
    await rig.produce(_with_dead(first=300), rows=10)
    worker.start()
    await rig.until_all_folded(12)
    rig.assert_exact()
    assert sum(each.dead for each in rig.progress().values()) > 0


async def test_a_death_in_a_handover_counts_once(rig: MeterRig) -> None:
    """Partitions are being taken away, what is pending is not flushed: the other worker reads it again."""
    first, second = rig.worker("first"), rig.worker("second")
    first.start(FAULT__POINT=FaultPoint.REVOKED, FAULT__HITS="2", FLUSH__INTERVAL_MS="3000")
    await rig.produce(calls(200))
    await rig.until(lambda: rig.folded > 0)
    await rig.produce(calls(200, first=100))
    second.start()
    assert first.wait(15) == EXIT_CRASHED
    await rig.until_all_folded(12)
    rig.assert_exact()
