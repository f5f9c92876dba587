"""The recount: usage counted again, one event at a time, by code that shares nothing with the fold.

Owns a second meaning of a meter: its expressions as Python functions (`evaluation`), duplicates found with a set,
windows cut by hand. It refuses to use the fold's filters, operands, queries and
seen ids: that the two agree is what makes either believable. Only the types of a meter are common to both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

import xxhash
from sqlglot import exp

from tollgate.metering.definition import MeterSet, MeterVersion
from tollgate.metering.evaluation import (
    BOUND,
    EXACT,
    FALSE,
    NULL,
    PLACES,
    TRUE,
    Row,
    Truth,
    column_of,
    columns_in,
    is_number,
    is_truth,
    number_of,
    parse,
    text_of,
    truth_of,
)
from tollgate.metering.event import PROPERTY_PREFIX
from tollgate.metering.metric import MetricKind
from tollgate.metering.outcome import Outcomes, TimeRules

UsageKey = tuple[int, int, int, str, str]
"""partition, meter id, window start (ms), account, dimensions."""


@dataclass(slots=True)
class RecountedUsage:
    """One usage row as the recount has it."""

    quantity: Decimal = Decimal(0)
    events: int = 0
    unvalued: int = 0
    latest_event_ms: int = -(2**63)
    _order: tuple[int, int, int] | None = None
    _values: set[object] = field(default_factory=set, repr=False)


@dataclass(frozen=True, slots=True)
class Recount:
    """What the whole log comes to."""

    usage: dict[UsageKey, RecountedUsage]
    outcomes: dict[int, Outcomes]


def recount(
    rows: Iterable[Row], meters: Callable[[int, int], MeterSet] | MeterSet, rules: TimeRules
) -> Recount:
    """Count the log's events one by one. Rows of one partition come in the log's order; partitions may be mixed.

    A row has its event's columns, and `partition`, `offset`, `ingest_ms`, `accept_late` of its record; a property its
    record does not carry is a missing key; `written_for` is the partition count its record says it was written for,
    where it says one. A record nobody can decode is one row with `partition`, `offset` and
    `undecodable`: the rows its headers promise. An amendment is one row with its id as `amendment`, and the
    `meter_id`, `account`, `dimensions`, `window_start_ms`, `time_ms` and `quantity` it is for.

    `meters`: the set in force, or a function from (partition, offset) to the one that offset was folded with.
    Raises ValueError for an expression a checked meter cannot hold.
    """
    recounter = Recounter(meters, rules)
    recounter.add(rows)
    return recounter.result()


class Recounter:
    """`recount` for a log that is read piece by piece."""

    def __init__(self, meters: Callable[[int, int], MeterSet] | MeterSet, rules: TimeRules) -> None:
        self._meters = meters
        self._ledger = _Ledger(rules)
        self._compiled: dict[int, list[_Meter]] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Count the next rows. Raises ValueError as `recount`."""
        for row in rows:
            partition, offset = _integer(row["partition"]), _integer(row["offset"])
            if "undecodable" in row:
                self._ledger.bury(partition, _integer(row["undecodable"]))
                continue
            meters = self._meters
            meter_set = meters if isinstance(meters, MeterSet) else meters(partition, offset)
            if meter_set.version not in self._compiled:
                self._compiled[meter_set.version] = [_Meter(version) for version in meter_set.meters]
            if "amendment" in row:
                self._ledger.amend(partition, row, self._compiled[meter_set.version])
                continue
            written_for = row.get("written_for")
            if written_for and meter_set.partitions and written_for != meter_set.partitions:
                self._ledger.bury(partition, 1)
                continue
            self._ledger.judge(partition, offset, row, self._compiled[meter_set.version])

    def inherit(self, parents: Mapping[int, int]) -> None:
        """Partitions that begin now, each with the ids another one has seen so far."""
        self._ledger.inherit(parents)

    def result(self) -> Recount:
        """What the rows so far come to."""
        ends = self._ledger.ends
        return Recount(
            self._ledger.usage, {partition: Outcomes(**counts) for partition, counts in ends.items()}
        )


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is no integer")
    return value


class _Ledger:
    """What has been counted so far."""

    def __init__(self, rules: TimeRules) -> None:
        self.usage: dict[UsageKey, RecountedUsage] = {}
        self.ends: dict[int, dict[str, int]] = {}
        self._rules = rules
        self._seen: dict[int, set[object]] = {}
        self._place = 0

    def bury(self, partition: int, rows: int) -> None:
        self._end(partition, "dead", rows)

    def inherit(self, parents: Mapping[int, int]) -> None:
        self._seen |= {partition: set(self._seen.get(parent, ())) for partition, parent in parents.items()}

    def judge(self, partition: int, offset: int, row: Row, meters: list[_Meter]) -> None:
        self._place += 1
        time_ms, ingest_ms = _integer(row["time_ms"]), _integer(row["ingest_ms"])
        seen = self._seen.setdefault(partition, set())
        if time_ms - ingest_ms > self._rules.future_ms:
            self._end(partition, "dead")
        elif ingest_ms - time_ms > self._rules.accept_age_ms and not row.get("accept_late"):
            self._end(partition, "late")
        elif row["id_hash"] in seen:
            self._end(partition, "duplicate")
            if row["id_weak"]:
                self.ends[partition]["weak_duplicate"] = self.ends[partition].get("weak_duplicate", 0) + 1
        else:
            seen.add(row["id_hash"])
            touched = [meter for meter in meters if self._count(meter, partition, offset, time_ms, row)]
            self._end(partition, "counted" if touched else "unmatched")

    def amend(self, partition: int, row: Row, meters: list[_Meter]) -> None:
        """A signed quantity for one window, counted once, by a meter that adds up and counts that window."""
        time_ms, window = _integer(row["time_ms"]), _integer(row["window_start_ms"])
        quantity, identity = row["quantity"], ("amendment", row["amendment"])
        assert isinstance(quantity, Decimal)
        meter = next((m for m in meters if m.meter_id == row["meter_id"]), None)
        fits = (
            meter is not None
            and meter.kind in (MetricKind.COUNT, MetricKind.SUM)
            and (time_ms // meter.size_ms) * meter.size_ms == window
            and meter.from_ms <= time_ms
            and (meter.to_ms is None or time_ms < meter.to_ms)
        )
        seen = self._seen.setdefault(partition, set())
        if meter is None or not fits:
            self._end(partition, "dead")
        elif identity in seen:
            self._end(partition, "duplicate")
        else:
            seen.add(identity)
            key = (partition, meter.meter_id, window, str(row["account"]), str(row["dimensions"]))
            held = self.usage.setdefault(key, RecountedUsage())
            held.quantity = EXACT.add(held.quantity, quantity)
            held.events += 1
            held.latest_event_ms = max(held.latest_event_ms, time_ms)
            self._end(partition, "counted")

    def _end(self, partition: int, outcome: str, rows: int = 1) -> None:
        counts = self.ends.setdefault(partition, {})
        for name in ("received", outcome):
            counts[name] = counts.get(name, 0) + rows

    def _count(self, meter: _Meter, partition: int, offset: int, time_ms: int, row: Row) -> bool:
        if time_ms < meter.from_ms or (meter.to_ms is not None and time_ms >= meter.to_ms):
            return False
        least, most = meter.where(row)
        if most != TRUE:
            return False
        window = (time_ms // meter.size_ms) * meter.size_ms
        key = (partition, meter.meter_id, window, str(row["account"]), meter.dimensions(row))
        held = self.usage.setdefault(key, RecountedUsage())
        held.latest_event_ms = max(held.latest_event_ms, time_ms)
        captured = all(name in row or not name.startswith(PROPERTY_PREFIX) for name in meter.reads)
        value = meter.value(row) if least == TRUE and captured else None
        if value is None:
            held.unvalued += 1
        else:
            _add(held, meter.kind, value, (time_ms, offset, self._place))
            held.events += 1
        return True


def _add(held: RecountedUsage, kind: MetricKind, value: object, order: tuple[int, int, int]) -> None:
    if kind is MetricKind.UNIQUE:
        held._values.add(value)
        held.quantity = Decimal(len(held._values))
        return
    assert isinstance(value, Decimal)
    if kind in (MetricKind.COUNT, MetricKind.SUM):
        held.quantity = EXACT.add(held.quantity, value)
    elif kind is MetricKind.MAX:
        held.quantity = max(held.quantity, value) if held.events else value
    elif kind is MetricKind.MIN:
        held.quantity = min(held.quantity, value) if held.events else value
    elif held._order is None or order > held._order:
        held.quantity, held._order = value, order


class _Meter:
    """One meter version as Python functions of a row."""

    def __init__(self, version: MeterVersion) -> None:
        meter = version.meter
        self.meter_id, self.from_ms, self.to_ms = version.meter_id, version.from_ms, version.to_ms
        self.size_ms = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}[str(meter.window)]
        self.kind = meter.metric.kind
        self.where: Truth = truth_of(parse(meter.where)) if meter.where else lambda _row: (TRUE, TRUE)
        self._group_by = sorted(column_of(parse(column)) for column in meter.group_by)
        tree = parse(meter.metric.expression) if meter.metric.expression else None
        self.reads = frozenset(columns_in(tree) if tree else ()) | frozenset(self._group_by)
        self.value = self._valuer(tree, weighted=meter.metric.weighted)

    def dimensions(self, row: Row) -> str:
        if not self._group_by:
            return ""
        values = {name: row.get(name) for name in self._group_by}
        text = _dimensions_text(values)
        if len(text.encode("utf-8", "surrogatepass")) > 1_200:
            # What an index key cannot hold is named by its beginning and its hash.
            text = _dimensions_text(
                {
                    name: f"{value[:24]}…{xxhash.xxh3_64(value.encode('utf-8', 'surrogatepass')).hexdigest()}"
                    if isinstance(value, str) and len(value) > 24
                    else value
                    for name, value in values.items()
                }
            )
        return text

    def _valuer(self, tree: exp.Expr | None, *, weighted: bool) -> Callable[[Row], object]:
        if tree is None:
            if not weighted:
                return lambda _row: Decimal(1)
            return lambda row: _within(Decimal(_integer(row["weight"])))
        if self.kind is not MetricKind.UNIQUE:
            number = number_of(tree, PLACES, bounded=True)
            return lambda row: _within(number(row))
        if is_number(tree):
            return number_of(tree, PLACES, bounded=False)
        if is_truth(tree):
            truth = truth_of(tree)
            return lambda row: {FALSE: "false", NULL: None, TRUE: "true"}[truth(row)[0]]
        return text_of(tree)


def _dimensions_text(values: Mapping[str, object]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _within(value: Decimal | None) -> Decimal | None:
    return value if value is not None and 0 <= value <= BOUND else None
