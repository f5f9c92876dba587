"""One point of the curve: a backlog over N partitions, counted by M meter processes, to the last event and exactly.

Owns the run and what is read of it. It refuses to know which points are run and how they are shown.

Workers start on the empty topic, share the partitions, count a first record or more of each, and are stopped (SIGSTOP)
while the rest is written: so starting, joining, first calls and the writer's load are not in the figures, and no worker
gets a head start.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import polars as pl
import psycopg
import pyarrow as pa

from benchmarks.backlog import BARE_COLUMNS, Backlog, BacklogRecord, Truth, count_bare
from benchmarks.installation import Ground, Installation, NotCaughtUp
from benchmarks.log_reading import write_log
from benchmarks.processor import children_of, cpu_seconds, pinned_to
from benchmarks.row import assert_counts
from tollgate.ledger.progress import load_progress

RECORD_EVENTS = 500
_BARE_EVENTS = 200_000
_WARM_SHARE = 20
"""One in so many records is counted before the measuring begins."""
_SETTLE_SECONDS = 0.3
"""What a last commit leaves to do (moving memory on) takes a moment, and belongs to its events."""
_SHARED_SECONDS = 40.0
_COUNTED_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A backlog for one partition count, and what it amounts to."""

    partitions: int
    records: Sequence[BacklogRecord]
    truth: Truth


@dataclass(frozen=True, slots=True)
class Point:
    """What one run showed; every count was equal to the backlog's own."""

    partitions: int
    workers: int
    events: int
    seconds: float
    """From the first to the last event counted."""
    cpu_us: float
    """CPU microseconds an event, of all workers together."""
    bare_us: float
    """CPU microseconds an event of the ten meters as one group-by in memory, on the workers' core, just after."""
    shares: tuple[int, ...]
    """Events each worker counted."""
    flushes: int
    usage_rows: int
    """Upserted: what a flush costs by."""
    wal_bytes: int
    """PostgreSQL's log of what was written."""
    seen_ram_bytes: int
    seen_disk_bytes: int
    seen_ids: int
    usage_row_bytes: int
    """On disk, with indexes and what updates left behind."""
    database_us: float | None
    """CPU microseconds an event of PostgreSQL's processes; None where somebody else runs it."""

    @property
    def rate(self) -> float:
        """Events a second of wall time, all workers on one core."""
        return self.events / self.seconds

    @property
    def ratio(self) -> float:
        """How many times the bare limit's cost."""
        return self.cpu_us / self.bare_us

    def to_document(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "partitions": self.partitions,
            "workers": self.workers,
            "events": self.events,
            "seconds": round(self.seconds, 3),
            "rate_per_second": round(self.rate),
            "cpu_seconds_per_million": round(self.cpu_us, 3),
            "bare_cpu_seconds_per_million": round(self.bare_us, 3),
            "ratio_to_bare": round(self.ratio, 2),
            "events_by_worker": list(self.shares),
            "flushes": self.flushes,
            "usage_rows_upserted": self.usage_rows,
            "wal_bytes_per_usage_row": round(self.wal_bytes / max(self.usage_rows, 1)),
            "wal_bytes": self.wal_bytes,
            "usage_row_bytes_on_disk": self.usage_row_bytes,
            "database_cpu_seconds_per_million": None
            if self.database_us is None
            else round(self.database_us, 3),
            "seen_ids": self.seen_ids,
            "seen_ram_bytes_per_id": round(self.seen_ram_bytes / max(self.seen_ids, 1), 2),
            "seen_disk_bytes_per_id": round(self.seen_disk_bytes / max(self.seen_ids, 1), 2),
        }


def prepare(id_seed: int, partitions: int, events: int) -> Prepared:
    """Make a backlog in memory, and count it."""
    backlog = Backlog(
        [RECORD_EVENTS] * max(partitions, events // RECORD_EVENTS),
        partitions=partitions,
        id_seed=id_seed,
        now_ms=time.time_ns() // 1_000_000,
    )
    return Prepared(partitions, list(backlog.records()), backlog.truth())


def count_spread(ground: Ground, prepared: Prepared, workers: int) -> Point:
    """1. Workers share the empty topic, and count the first records. 2. They sleep while it is filled. 3. They count.
    4. Everything is compared.

    Raises CountsDiffer, NotCaughtUp, PartFailed.
    """
    with ground.installation(f"scale-{prepared.partitions}-{workers}") as installation:
        names = ["meter", *(f"meter-{number}" for number in range(2, workers + 1))]
        for name in names[1:]:
            installation.stack.add_instance(name, service="meter")
        pids = [installation.start(name, ground.cores.measured, service="meter") for name in names]
        _until_shared(installation, names, prepared.partitions)
        warm = max(prepared.partitions, len(prepared.records) // _WARM_SHARE)
        write_log(installation.kafka, prepared.records[:warm])
        _watch(installation, warm * RECORD_EVENTS)
        time.sleep(_SETTLE_SECONDS)
        rows_before, flushes_before = _written(installation, names)
        with _asleep(pids):
            write_log(installation.kafka, prepared.records[warm:])
            before = sum(cpu_seconds(pid) for pid in pids)
            database_before = _database_seconds(ground)
            wal_before = _wal_bytes(installation)
        first, last = _watch(installation, prepared.truth.events)
        time.sleep(_SETTLE_SECONDS)
        spent = sum(cpu_seconds(pid) for pid in pids) - before
        database_seconds = _database_seconds(ground)
        samples = [installation.samples(name) for name in names]
        rows, flushes = _written(installation, names)
        events = prepared.truth.events - warm * RECORD_EVENTS
        with pinned_to(ground.cores.measured):
            bare_us = _group_bare([each.batch for each in prepared.records[: _BARE_EVENTS // RECORD_EVENTS]])
        point = Point(
            partitions=prepared.partitions,
            workers=workers,
            events=events,
            seconds=last - first,
            cpu_us=spent / events * 1e6,
            bare_us=bare_us,
            shares=tuple(int(each.total("tollgate_meter_events_total")) for each in samples),
            flushes=flushes - flushes_before,
            usage_rows=rows - rows_before,
            wal_bytes=_wal_bytes(installation) - wal_before,
            seen_ram_bytes=sum(int(each.total("tollgate_meter_seen_bytes")) for each in samples),
            seen_disk_bytes=_seen_disk_bytes(installation),
            usage_row_bytes=_usage_row_bytes(installation),
            seen_ids=sum(int(each.total("tollgate_meter_seen_ids")) for each in samples),
            database_us=None
            if database_before is None or database_seconds is None
            else (database_seconds - database_before) / events * 1e6,
        )
        _check(installation, prepared.truth)
        assert_counts("workers that counted", sum(share > 0 for share in point.shares), workers)
        assert_counts("events of all workers", sum(point.shares), prepared.truth.events)
        return point


def _written(installation: Installation, names: Sequence[str]) -> tuple[int, int]:
    """Usage rows upserted and flushes made by all workers so far."""
    samples = [installation.samples(name) for name in names]
    count = "tollgate_meter_flush_duration_seconds_count"
    return (
        sum(int(each.total("tollgate_meter_usage_rows_total")) for each in samples),
        sum(int(each.total(count, step="total")) for each in samples),
    )


def _asked(installation: Installation, question: str) -> int:
    url = installation.stack.settings.ledger_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None, "each question has one answer"
    return int(row[0])


def _database_seconds(ground: Ground) -> float | None:
    """CPU seconds of all PostgreSQL's processes that live, connections of the workers among them."""
    if ground.postgres.external:
        return None
    server = ground.postgres.pid
    return cpu_seconds(server) + sum(cpu_seconds(pid) for pid in children_of(server))


def _wal_bytes(installation: Installation) -> int:
    return _asked(installation, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")


def _seen_disk_bytes(installation: Installation) -> int:
    return _asked(installation, "SELECT pg_total_relation_size('seen_ids')")


def _usage_row_bytes(installation: Installation) -> int:
    rows = "SELECT pg_total_relation_size('usage') / greatest(count(*), 1) FROM usage"
    return _asked(installation, rows)


def _until_shared(installation: Installation, names: Sequence[str], partitions: int) -> None:
    """Return once all partitions are assigned, and each worker has some. Raises NotCaughtUp."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while time.monotonic() < deadline:
        shares = [int(installation.samples(n).total("tollgate_meter_assigned_partitions")) for n in names]
        if sum(shares) == partitions and all(shares):
            return
        time.sleep(0.2)
    raise NotCaughtUp(f"after {_SHARED_SECONDS:g} s the workers had {shares} of {partitions} partitions")


@contextmanager
def _asleep(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _watch(installation: Installation, events: int) -> tuple[float, float]:
    """When they were woken, and when the ledger had all events (monotonic seconds). Raises NotCaughtUp."""
    began = time.monotonic()
    while True:
        received = sum(row.received for row in load_progress(installation.engine).values())
        now = time.monotonic()
        if received >= events:
            return began, now
        if now - began > _COUNTED_SECONDS:
            raise NotCaughtUp(f"{received} of {events} events counted after {_COUNTED_SECONDS:g} s")
        time.sleep(0.05)


def _check(installation: Installation, truth: Truth) -> None:
    """Compare the ledger with the backlog's own count."""
    expected = {
        "received": truth.events,
        "counted": truth.events - truth.duplicates,
        "unmatched": 0,
        "duplicate": truth.duplicates,
        "late": 0,
        "dead": 0,
    }
    assert_counts("outcomes", installation.outcomes(), expected)
    usage = installation.usage()
    differing = [key for key in usage.keys() | truth.usage.keys() if usage.get(key) != truth.usage.get(key)]
    assert_counts("usage rows that differ", differing[:5], [])


def _group_bare(sample: Sequence[pa.RecordBatch]) -> float:
    table = pa.Table.from_batches(sample).select(list(BARE_COLUMNS)).combine_chunks()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    count_bare(frame)
    rounds = []
    for _ in range(9):
        before = time.process_time()
        count_bare(frame)
        rounds.append(time.process_time() - before)
    return median(rounds) / frame.height * 1e6
