"""The model: what a ledger must hold, by counting one event after the other in plain Python.

Owns the rules of counting, written a second time and without columns. It refuses to know how the product counts; of the
ledger it is told nothing but how far each partition was counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.simulation.metered import FILTERS, HOUR_MS, USERS, WEIGHT, Event


@dataclass(frozen=True, slots=True)
class Written:
    """One record of the log, as whoever wrote it knows it."""

    instance: str
    ingest_ms: int
    events: tuple[Event, ...] = ()
    broken_rows: int = 0
    """Rows that a record nobody can decode claims."""
    acknowledged: int | None = None
    """Of a tick: rows of the instance acknowledged before it."""
    accept_late: bool = False


@dataclass(frozen=True, slots=True)
class MeterRule:
    """One version of a meter: counts events of time `[from_ms, to_ms)`."""

    meter_id: int
    name: str
    where: str | None
    from_ms: int
    to_ms: int | None

    def takes(self, event: Event) -> bool:
        holds = self.from_ms <= event.time_ms and (self.to_ms is None or event.time_ms < self.to_ms)
        return holds and FILTERS[self.where](event)


UsageKey = tuple[int, int, int, str]
"""Partition, meter id, window start, account."""


@dataclass(slots=True)
class Counted:
    """The truth."""

    outcomes: dict[int, Counter[str]] = field(default_factory=dict)
    usage: dict[UsageKey, int] = field(default_factory=dict)
    events: Counter[UsageKey] = field(default_factory=Counter)
    latest_ms: dict[UsageKey, int] = field(default_factory=dict)
    values: dict[UsageKey, set[str]] = field(default_factory=dict)
    """Of unique metrics: the values themselves."""


def count(
    log: Mapping[int, Sequence[Written]],
    rules: Sequence[MeterRule],
    accept_age_ms: int,
    future_ms: int,
) -> Counted:
    """Count every record of `log`."""
    counted = Counted()
    for partition, records in log.items():
        outcomes = counted.outcomes[partition] = Counter()
        seen: set[str] = set()
        for record in records:
            outcomes["received"] += len(record.events) + record.broken_rows
            outcomes["dead"] += record.broken_rows
            for event in record.events:
                outcomes[
                    _judge(counted, partition, record, event, seen, rules, accept_age_ms, future_ms)
                ] += 1
    return counted


def _judge(
    counted: Counted,
    partition: int,
    record: Written,
    event: Event,
    seen: set[str],
    rules: Sequence[MeterRule],
    accept_age_ms: int,
    future_ms: int,
) -> str:
    if event.time_ms > record.ingest_ms + future_ms:
        return "dead"
    if event.time_ms < record.ingest_ms - accept_age_ms and not record.accept_late:
        return "late"
    if event.id in seen:
        return "duplicate"
    seen.add(event.id)
    matched = [rule for rule in rules if rule.takes(event)]
    for rule in matched:
        key = (partition, rule.meter_id, event.time_ms - event.time_ms % HOUR_MS, event.account)
        counted.events[key] += 1
        counted.latest_ms[key] = max(counted.latest_ms.get(key, 0), event.time_ms)
        if rule.name == USERS:
            counted.values.setdefault(key, set()).add(event.user)
            counted.usage[key] = len(counted.values[key])
        else:
            added = event.weight if rule.name == WEIGHT else 1
            counted.usage[key] = counted.usage.get(key, 0) + added
    return "counted" if matched else "unmatched"
