"""Several workers in one group on real Kafka: hand-overs, zombies, and a broker that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.meter_rig import SESSION_SECONDS, MeterRig, Worker, calls
from tests.parts.kafka import BrokerSettings, KafkaPart

pytestmark = pytest.mark.kafka


@pytest.fixture
async def rig(kafka_settings: BrokerSettings, ledger_url: str, tmp_path: Path) -> AsyncIterator[MeterRig]:
    """On real Kafka, on SQLite and PostgreSQL."""
    made = await MeterRig(kafka_settings, ledger_url, tmp_path).prepare()
    yield made
    made.close()


def _assigned(worker: Worker) -> int:
    """How many partitions the worker counts at the moment."""
    _, metrics = worker.ask("/metrics")
    for line in metrics.splitlines():
        if line.startswith("tollgate_meter_assigned_partitions "):
            return int(float(line.split()[1]))
    return 0


async def test_two_workers_share_and_take_over(rig: MeterRig) -> None:
    """The second takes partitions over while events flow; when one leaves and one dies nothing is lost or doubled."""
    first, second = rig.worker("first").start(), rig.worker("second")
    await rig.produce(calls(300))
    await rig.until(lambda: rig.folded > 0)
    second.start()
    await rig.until(
        lambda: (_assigned(first), _assigned(second)) in {(1, 2), (2, 1)}, what="3 partitions are shared"
    )
    await rig.produce(calls(300, first=1000))
    await rig.until_all_folded()
    await rig.produce(calls(300, first=2000))
    assert first.stop() == 0
    await rig.until_all_folded()
    assert _assigned(second) == 3
    first.start()
    await rig.until(lambda: _assigned(first) > 0)
    second.child.kill()
    await rig.produce(calls(300, first=1500))
    await rig.until_all_folded()
    rig.assert_exact()


async def test_a_zombie_counts_nothing(rig: MeterRig) -> None:
    """SIGSTOP in mid-stream for longer than the session; meanwhile another counts; SIGCONT changes nothing."""
    zombie, heir = rig.worker("zombie").start(), rig.worker("heir")
    await rig.produce(calls(200))
    await rig.until_all_folded()
    heir.start()
    await rig.until(lambda: _assigned(zombie) > 0 and _assigned(heir) > 0)
    producing = asyncio.create_task(_trickle(rig, seconds=1.0))
    await asyncio.sleep(0.3)
    zombie.signal(signal.SIGSTOP)
    await producing
    if rig.engine.dialect.name == "postgresql":
        await rig.until_all_folded(SESSION_SECONDS + 15)
    else:
        # Stopped inside a transaction it holds SQLite's one write lock, and the heir waits; exactness is not touched.
        await asyncio.sleep(SESSION_SECONDS + 3)
    await rig.produce(calls(100, first=50_000))
    zombie.signal(signal.SIGCONT)
    await rig.until_all_folded()
    await rig.until(lambda: _assigned(zombie) > 0 or not zombie.child.running, what="it rejoins or ends")
    await rig.produce(calls(200, first=60_000))
    await rig.until_all_folded()
    rig.assert_exact()


async def _trickle(rig: MeterRig, seconds: float) -> None:
    """Write events for a while."""
    end = time.monotonic() + seconds
    first = 10_000
    while time.monotonic() < end:
        await rig.produce(calls(60, first=first))
        first += 60


@pytest.fixture
async def own_rig(own_kafka: KafkaPart, sqlite_url: str, tmp_path: Path) -> AsyncIterator[MeterRig]:
    """On a Kafka that may be killed."""
    made = await MeterRig(own_kafka.fresh(), sqlite_url, tmp_path).prepare()
    yield made
    made.close()


async def test_a_broker_that_dies_is_waited_for(own_kafka: KafkaPart, own_rig: MeterRig) -> None:
    """The worker stays, says that it is not ready, and goes on when the broker is back."""
    worker = own_rig.worker().start()
    await own_rig.produce(calls(200))
    await own_rig.until_all_folded()
    pid = worker.pid
    own_kafka.local.kill()
    await asyncio.sleep(2.0)
    assert worker.ask("/livez")[0] == 200
    own_kafka.local.start()
    await own_rig.produce(calls(300, first=150))
    await own_rig.until_all_folded(30)
    own_rig.assert_exact()
    assert worker.pid == pid


async def test_sigterm_with_the_broker_down_ends_in_time(own_kafka: KafkaPart, own_rig: MeterRig) -> None:
    """Everything read is flushed, and the process ends with 0 though it cannot tell the group."""
    worker = own_rig.worker().start()
    await own_rig.produce(calls(200))
    await own_rig.until_all_folded()
    own_kafka.local.kill()
    began = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(15) == 0
    assert time.monotonic() - began < 11
    own_rig.assert_exact()
