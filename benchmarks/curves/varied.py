"""What is varied: one curve each for meters, accounts, events a record, duplicates, unique meters and ids seen before.

Owns the values and the making of each point's backlog, meters and seen ids. It refuses to know the clock and the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.backlog import ACCOUNTS, Backlog
from benchmarks.curves.folding import DAY_MS, Folded, fold_backlog
from benchmarks.installation import CAPTURED, METERS_PATH
from tollgate.metering.declaration import parse_meters
from tollgate.metering.definition import Meter, MeterSet, MeterVersion
from tollgate.metering.seen import SeenIds
from tollgate.metering.window import epoch_day

PARTITIONS = 24
RECORD_EVENTS = 500
EVENTS = 240_000
UNIQUE = "active_users"
ID_SEED = 7
SEEN_DAYS = 8
"""Seven days accepted, and the one under way."""
_SMALL_RECORDS_MAX = 12_000
_SMALL_RECORD = 20
"""Below so many events a record it is records that cost, and fewer events do."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one curve."""

    value: int | float
    folded: Folded
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a point is made of."""

    record_events: int = RECORD_EVENTS
    accounts: int = ACCOUNTS
    duplicates: float = 0.01
    meters: tuple[tuple[Meter, str], ...] = ()
    """Each, and the meter of the truth it must equal."""
    seen: int = 0


def ten_meters() -> tuple[tuple[Meter, str], ...]:
    """The benchmarks' meters, each its own truth."""
    meters = parse_meters(METERS_PATH.read_text(), METERS_PATH.name, CAPTURED)
    return tuple((meter, meter.name) for meter in meters)


def repeat_meters(count: int, meters: Sequence[tuple[Meter, str]]) -> tuple[tuple[Meter, str], ...]:
    """`count` meters: these in turn, under names of their own."""
    found = []
    for number in range(count):
        meter, truth = meters[number % len(meters)]
        found.append((replace(meter, name=f"{meter.name}_{number}"), truth))
    return tuple(found)


def curves(events: int, seen_max: int) -> dict[str, Iterator[Point]]:
    """Every curve by its title; points are measured as they are taken."""
    ten = ten_meters()
    unique = [(meter, truth) for meter, truth in ten if truth == UNIQUE]
    others = [(meter, truth) for meter, truth in ten if truth != UNIQUE]

    def draw(values: Sequence[int | float], shape_of: Callable[[int | float], _Shape]) -> Iterator[Point]:
        for value in values:
            yield _measure(value, shape_of(value), events)

    return {
        "meters": draw((1, 3, 10, 30, 100), lambda n: _Shape(meters=repeat_meters(int(n), ten))),
        "unique meters of ten": draw(
            (0, 1, 3, 10),
            lambda n: _Shape(meters=repeat_meters(int(n), unique) + repeat_meters(10 - int(n), others)),
        ),
        "accounts": draw((100, 1_000, 10_000, 100_000), lambda n: _Shape(accounts=int(n), meters=ten)),
        "events a record": draw((1, 5, 50, 500, 5_000), lambda n: _Shape(record_events=int(n), meters=ten)),
        "share of duplicates": draw((0.0, 0.01, 0.1, 0.5), lambda n: _Shape(duplicates=n, meters=ten)),
        "ids seen before": draw(
            [n for n in (0, 1_000_000, 10_000_000, 100_000_000, 300_000_000) if n <= seen_max],
            lambda n: _Shape(meters=ten, seen=int(n)),
        ),
    }


def _measure(value: int | float, shape: _Shape, events: int) -> Point:
    records = max(PARTITIONS, events // shape.record_events)
    if shape.record_events < _SMALL_RECORD:
        records = min(records, _SMALL_RECORDS_MAX)
    now_ms = time.time_ns() // 1_000_000
    backlog = Backlog(
        [shape.record_events] * records,
        partitions=PARTITIONS,
        id_seed=ID_SEED,
        now_ms=now_ms,
        accounts=shape.accounts,
        duplicates=shape.duplicates,
    )
    versions = tuple(
        MeterVersion(number, meter, 0, None) for number, (meter, _) in enumerate(shape.meters, start=1)
    )
    truth_of = {meter.name: truth for meter, truth in shape.meters}
    seen, notes = _remember(shape.seen, now_ms)
    return Point(value, fold_backlog(backlog, MeterSet(1, versions), seen, truth_of), notes)


def _remember(count: int, now_ms: int) -> tuple[dict[int, SeenIds], dict[str, float]]:
    """Seen sets of `count` ids of other events, over the partitions and the days ids are kept; what they take."""
    seen = {partition: SeenIds() for partition in range(PARTITIONS)}
    if not count:
        return seen, {}
    rng = np.random.default_rng(20261123)
    today = epoch_day(now_ms)
    spent = 0.0
    held = 0
    for each in seen.values():
        for day in range(today - SEEN_DAYS + 1, today + 1):
            share = count // (PARTITIONS * SEEN_DAYS)
            ids = np.unique(rng.integers(0, 2**64, share, dtype=np.uint64))
            held += ids.size
            before = time.process_time()
            each.load(day, ids)
            spent += time.process_time() - before
    ram_bytes = sum(each.ram_bytes for each in seen.values())
    return seen, {
        "ids": held,
        "ram_bytes": ram_bytes,
        "ram_bytes_an_id": round(ram_bytes / held, 2),
        "rebuilt_cpu_seconds": round(spent, 2),
    }


__all__ = ["DAY_MS", "EVENTS", "Point", "curves", "repeat_meters", "ten_meters"]
