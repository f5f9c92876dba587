"""The meter as a process, on a real broker and both ledgers: exact, whatever happens to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.meter_rig import MeterRig, calls
from tests.parts.kafka import BrokerSettings


@pytest.fixture
async def rig(broker_settings: BrokerSettings, ledger_url: str, tmp_path: Path) -> AsyncIterator[MeterRig]:
    """On Kafka (the embedded broker where there is none), on SQLite and PostgreSQL."""
    made = await MeterRig(broker_settings, ledger_url, tmp_path).prepare()
    yield made
    made.close()


async def test_counts_what_was_produced(rig: MeterRig) -> None:
    """Events written before and after the start are counted once each; SIGTERM ends it with 0, all flushed."""
    await rig.produce(calls(300))
    worker = rig.worker().start()
    await rig.until_all_folded()
    await rig.produce([*calls(300, first=200), *calls(100, first=1000)])
    await rig.until_all_folded()
    rig.assert_exact()
    assert sum(each.duplicate for each in rig.progress().values()) == 100
    assert worker.ask("/readyz")[0] == 200
    assert worker.ask("/livez")[0] == 200
    _, metrics = worker.ask("/metrics")
    assert 'tollgate_meter_events_total{outcome="counted"} 600.0' in metrics
    await rig.produce(calls(50, first=2000))
    assert worker.stop() == 0
    assert worker.logged("meter.stopped")[0]["flushed"] is True
    worker.start()
    await rig.until_all_folded()
    rig.assert_exact()


async def test_a_killed_worker_is_followed_by_another(rig: MeterRig) -> None:
    """SIGKILL while events flow; whoever comes next goes on from the ledger's offset."""
    worker = rig.worker().start()
    for round_ in range(3):
        await rig.produce(calls(200, first=round_ * 1000))
        await rig.until(lambda expected=round_ * 200: rig.folded > expected)  # type: ignore[misc]
        worker.child.kill()
        await rig.produce(calls(200, first=round_ * 1000))
        worker.start()
    await rig.until_all_folded()
    rig.assert_exact()
