"""The meter: what an event costs from Kafka to the ledger's commit.

Owns two rows, records of 500 events and records as ingest makes them of single requests. The backlog is in the topic
before the meter starts; usage and outcomes are compared with the backlog's own count.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.backlog import BARE_COLUMNS, Backlog, BacklogRecord, Truth, count_bare
from benchmarks.history import History, write_history
from benchmarks.installation import Ground, Installation, Sight, rate_between_commits
from benchmarks.log_reading import write_log
from benchmarks.processor import cpu_seconds, pinned_to
from benchmarks.row import Bound, Measure, Row, assert_counts

RECORD_EVENTS = 500
SMALL_RECORD_EVENTS_MAX = 5
_BARE_EVENTS = 300_000
_TIMEOUT_SECONDS = 120.0
_HISTORY_EVENTS = 1_000_000
_HISTORY_COSTS_AT_MOST = 1.5
"""Times what counting costs without: the set of ids is larger than any cache, and nothing else may grow."""


def meter_batches(ground: Ground, events: int) -> Row:
    """Records of 500 events."""
    sizes = [RECORD_EVENTS] * max(ground.partitions, events // RECORD_EVENTS)
    run = _count_backlog(ground, "meter-batches", sizes)
    with pinned_to(ground.cores.measured):
        bare_us = _group_bare(run.sample)
    counted, seconds = _rate(run)
    return Row(
        name="meter, 500 events a record",
        unit="event",
        count=counted,
        seconds=seconds,
        cpu_us=run.cpu_seconds / run.truth.events * 1e6,
        bound=Bound(Measure.RATE, floor=500_000, target=1_000_000),
        bare="one group-by in memory",
        bare_us=bare_us,
        notes={
            "events": run.truth.events,
            "records": len(sizes),
            "partitions": ground.partitions,
            "duplicates": run.truth.duplicates,
            "usage_rows_upserted": run.usage_rows,
            "startup_cpu_seconds": round(run.startup_cpu_seconds, 2),
            "events_per_cpu_second": round(run.truth.events / run.cpu_seconds),
            **run.flushes,
        },
    )


def meter_singles(ground: Ground, records: int) -> Row:
    """Records of one to five events."""
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, SMALL_RECORD_EVENTS_MAX + 1, records).tolist()
    run = _count_backlog(ground, "meter-singles", sizes)
    counted, seconds = _rate(run)
    return Row(
        name="meter, 1 to 5 events a record",
        unit="record",
        count=round(counted * records / run.truth.events),
        seconds=seconds,
        cpu_us=run.cpu_seconds / records * 1e6,
        bound=Bound(Measure.CPU, floor=None, target=60.0),
        bare="an empty Faust agent",
        bare_us=run.agent_us,
        notes={
            "events": run.truth.events,
            "partitions": ground.partitions,
            "usage_rows_upserted": run.usage_rows,
            "startup_cpu_seconds": round(run.startup_cpu_seconds, 2),
            **run.flushes,
        },
    )


def meter_history(ground: Ground, ids: int) -> Row:
    """What counting costs beside `ids` events already counted, and beside none."""
    sizes = [RECORD_EVENTS] * (_HISTORY_EVENTS // RECORD_EVENTS)
    without = _count_backlog(ground, "meter-young", sizes)
    made = History(ids=0, usage_rows=0, seconds=0.0)

    def remember(installation: Installation) -> None:
        nonlocal made
        made = write_history(installation, ids)

    run = _count_backlog(ground, "meter-old", sizes, remember)
    counted, seconds = _rate(run)
    bare_us = without.cpu_seconds / without.truth.events * 1e6
    return Row(
        name=f"meter, {made.ids:,} ids seen before",
        unit="event",
        count=counted,
        seconds=seconds,
        cpu_us=run.cpu_seconds / run.truth.events * 1e6,
        bound=Bound(Measure.CPU, floor=None, target=_HISTORY_COSTS_AT_MOST * bare_us),
        bare="the same meter with none",
        bare_us=bare_us,
        notes={
            "events": run.truth.events,
            "usage_rows_before": made.usage_rows,
            "seen_ids_bytes_on_disk": made.bytes_on_disk,
            "startup_cpu_seconds": round(run.startup_cpu_seconds, 2),
            "startup_cpu_seconds_with_none": round(without.startup_cpu_seconds, 2),
            "startup_seconds": round(run.startup_seconds, 2),
            "startup_seconds_with_none": round(without.startup_seconds, 2),
            **run.flushes,
        },
    )


class TooFew(ValueError):
    """There was too little to count for a rate."""


class _Run:
    """What counting one backlog showed."""

    def __init__(self, truth: Truth, sample: list[pa.RecordBatch]) -> None:
        self.truth = truth
        self.sample = sample
        self.sights: list[Sight] = []
        self.cpu_seconds = 0.0
        self.startup_cpu_seconds = 0.0
        self.startup_seconds = 0.0
        """Until it was ready, on an empty topic."""
        self.usage_rows = 0
        self.agent_us: float | None = None
        self.flushes: dict[str, str | int | float] = {}


def _rate(run: _Run) -> tuple[int, float]:
    """(events, seconds) between commits. Raises TooFew when one commit counted everything."""
    counted, seconds = rate_between_commits(run.sights)
    if not seconds:
        raise TooFew(f"{run.truth.events:,} events were counted in one commit, which has no rate: take more")
    return counted, seconds


def _count_backlog(
    ground: Ground,
    name: str,
    sizes: Sequence[int],
    prepare: Callable[[Installation], None] = lambda _: None,
) -> _Run:
    """1. Start the meter on an empty topic, for what starting costs. 2. Fill the topic. 3. Start it again and watch."""
    with ground.installation(name) as installation:
        prepare(installation)
        startup, startup_seconds = _start_on_nothing(installation)
        backlog = Backlog(
            sizes,
            partitions=ground.partitions,
            id_seed=installation.id_seed,
            now_ms=time.time_ns() // 1_000_000,
        )
        sample: list[pa.RecordBatch] = []
        held = 0

        def noted(record: BacklogRecord) -> BacklogRecord:
            nonlocal held
            if held < _BARE_EVENTS:
                sample.append(record.batch)
                held += record.batch.num_rows
            return record

        write_log(installation.kafka, (noted(record) for record in backlog.records()))
        run = _Run(backlog.truth(), sample)
        run.startup_cpu_seconds, run.startup_seconds = startup, startup_seconds
        pid = installation.start("meter", ground.cores.measured, wait=False)
        run.sights = installation.watch(pid, run.truth.events, timeout_seconds=_TIMEOUT_SECONDS)
        # What the last commit leaves to do (moving memory on) belongs to its events.
        time.sleep(0.2)
        run.cpu_seconds = cpu_seconds(pid) - startup
        _note_metrics(installation, run)
        if ground.profile_directory is not None:
            installation.stack.child("meter").send(signal.SIGUSR1)
            time.sleep(0.5)
        _check(installation, run.truth)
        installation.stop("meter")
        if max(sizes) <= SMALL_RECORD_EVENTS_MAX:
            run.agent_us = _read_bare(installation, len(sizes))
        return run


def _start_on_nothing(installation: Installation) -> tuple[float, float]:
    """CPU seconds from the process' start until it waits for records, and seconds until it had every partition."""
    began = time.monotonic()
    pid = installation.start("meter", installation.ground.cores.measured)
    deadline = began + _TIMEOUT_SECONDS
    while (
        installation.samples("meter").total("tollgate_meter_assigned_partitions")
        < installation.ground.partitions
    ):
        assert time.monotonic() < deadline, "the meter was not given its partitions"
        time.sleep(0.05)
    seconds = time.monotonic() - began
    # The lags are asked for after that.
    time.sleep(1.5)
    spent = cpu_seconds(pid)
    installation.stop("meter")
    return spent, seconds


def _note_metrics(installation: Installation, run: _Run) -> None:
    samples = installation.samples("meter")
    run.usage_rows = int(samples.total("tollgate_meter_usage_rows_total"))
    seconds, count = (
        "tollgate_meter_flush_duration_seconds_sum",
        "tollgate_meter_flush_duration_seconds_count",
    )
    run.flushes = {
        "flushes": int(samples.total(count, step="total")),
        "fold_seconds": round(samples.total(seconds, step="fold"), 2),
        "commit_seconds": round(samples.total(seconds, step="commit"), 2),
    }


def _check(installation: Installation, truth: Truth) -> None:
    """Compare the ledger with the backlog's own count."""
    counted = truth.events - truth.duplicates
    assert_counts(
        "outcomes",
        installation.outcomes(),
        {
            "received": truth.events,
            "counted": counted,
            "unmatched": 0,
            "duplicate": truth.duplicates,
            "late": 0,
            "dead": 0,
        },
    )
    usage = installation.usage(min((window_ms for _, _, window_ms in truth.usage), default=None))
    differing = {
        key: (usage.get(key, 0), truth.usage.get(key, 0))
        for key in usage.keys() | truth.usage.keys()
        if usage.get(key, 0) != truth.usage.get(key, 0)
    }
    assert_counts("usage rows that differ (found, expected)", dict(list(differing.items())[:5]), {})


def _group_bare(sample: list[pa.RecordBatch]) -> float:
    """CPU microseconds an event of the ten meters as one group-by over columns in memory."""
    table = pa.Table.from_batches(sample).select(list(BARE_COLUMNS)).combine_chunks()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    count_bare(frame)
    rounds = 5
    before = time.process_time()
    for _ in range(rounds):
        count_bare(frame)
    return (time.process_time() - before) / (rounds * frame.height) * 1e6


def _read_bare(installation: Installation, records: int) -> float:
    """CPU microseconds a record of Faust alone, on the same topic. Ticks are none in it: no ingest ran."""
    with pinned_to(installation.ground.cores.measured):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.empty_agent"),
                *(installation.kafka.bootstrap_servers, installation.events_topic, str(records)),
            ],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
    return float(done.stdout.split()[-1])
