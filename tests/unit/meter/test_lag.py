"""Lag: asked of the broker, and what follows from its answers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.meter.intake import Intake
from services.meter.lag import LagWatch
from services.meter.metrics import MeterMetrics
from services.meter.partition import AssignedPartition, Partitions
from tests.fakes.log import MemoryLog
from tollgate.metering.seen import SeenIds
from tollgate.runtime.clock import ManualClock


class _Bench:
    def __init__(self) -> None:
        self.log = MemoryLog(1)
        self.registry = CollectorRegistry()
        self.partitions = Partitions()
        self.intake = Intake(1000)
        self.suspects: list[tuple[int, str]] = []
        self.excuse: str | None = None
        self.lag = LagWatch(
            partitions=self.partitions,
            intake=self.intake,
            log=self.log,
            clock=ManualClock(),
            interval_seconds=5,
            metrics=MeterMetrics(self.registry),
            excuse=lambda: self.excuse,
            joining=lambda: False,
            suspect=lambda partition, why: self.suspects.append((partition, why)),
        )

    def assign(self, committed: int) -> None:
        self.partitions.put(AssignedPartition(0, committed, SeenIds(committed), 0))
        self.intake.assign(0, committed, "")

    def write(self, records: int) -> None:
        for _ in range(records):
            self.log.append(0, b"x", [])


async def test_lag_is_what_the_ledger_has_not() -> None:
    """The gauge is the log's end less the ledger's offset; the pulse names the partition while it lags."""
    bench = _Bench()
    bench.write(5)
    bench.assign(2)
    await bench.lag.look()
    bench.lag.beat()
    assert bench.registry.get_sample_value("tollgate_meter_lag_records", {"partition": "0"}) == 3
    assert bench.lag.pulse.offsets == {0: 2}
    bench.assign(5)
    await bench.lag.look()
    bench.lag.beat()
    assert bench.registry.get_sample_value("tollgate_meter_lag_records", {"partition": "0"}) == 0
    assert bench.lag.pulse.offsets == {}


async def test_a_broker_that_does_not_answer_is_an_excuse() -> None:
    """So is whatever the rest of the process names; without either there is none."""
    bench = _Bench()
    bench.log.unreachable = True
    await bench.lag.look()
    bench.lag.beat()
    assert bench.lag.pulse.excuse is not None
    assert "broker" in bench.lag.pulse.excuse
    bench.log.unreachable = False
    bench.excuse = "the ledger is away"
    await bench.lag.look()
    bench.lag.beat()
    assert bench.lag.pulse.excuse == "the ledger is away"
    bench.excuse = None
    bench.lag.beat()
    assert bench.lag.pulse.excuse is None


async def test_a_log_that_does_not_reach_the_reader_is_suspect() -> None:
    """Recreated and shorter, or deleted from the front beyond what was read."""
    bench = _Bench()
    bench.write(5)
    bench.assign(5)
    await bench.lag.look()
    assert bench.suspects == []
    bench.log.recreate(0)
    await bench.lag.look()
    bench.write(9)
    bench.log.delete_before(0, 7)
    await bench.lag.look()
    assert [partition for partition, _ in bench.suspects] == [0, 0]
