"""Usage, read: each metric combines over windows, accounts and dimensions as it must."""

from __future__ import annotations

import itertools
import random
from decimal import Decimal

import pytest
from sqlalchemy import Engine

from tests.contract.ledger.folds import Delta, add_exactly, make_fold, part, prints
from tollgate.ledger.catalogue import apply_meters, load_meter_set
from tollgate.ledger.progress import commit_fold
from tollgate.ledger.usage import Grouping, UsageTotal, usage_rows, usage_totals
from tollgate.metering.definition import Meter
from tollgate.metering.metric import Metric, MetricKind

HOUR = 3_600_000


def _meter(kind: MetricKind) -> Meter:
    return Meter(str(kind), None, Metric(kind, None if kind is MetricKind.COUNT else "latency_ms"))


@pytest.fixture
def meter_ids(ledger: Engine) -> dict[str, int]:
    """One meter of each kind, named for it."""
    apply_meters(ledger, [_meter(kind) for kind in MetricKind], "", 0)
    return {each.meter.name: each.meter_id for each in load_meter_set(ledger).meters}


def _commit(engine: Engine, *deltas: Delta, partition: int = 0, offset: int = 0) -> None:
    fold = make_fold([part(partition, offset, offset + 1, counted=1)], deltas)
    assert commit_fold(engine, fold, prints(fold), 1, now_ms=1) == frozenset()


def _random_usage(engine: Engine, meter_ids: dict[str, int], seed: int) -> list[tuple[MetricKind, Delta]]:
    """One row of every key, and what it is made of; accounts live in one partition each."""
    rng = random.Random(seed)
    made: list[tuple[MetricKind, Delta]] = []
    keys = itertools.product(MetricKind, (0, HOUR, 2 * HOUR), ("user:a", "user:b"), ("", '{"m":"x"}'))
    for kind, window, account, dimensions in keys:
        if rng.random() < 0.2:
            continue
        events = rng.choice([0, 1, 2])
        valued = events > 0 and kind is not MetricKind.UNIQUE
        delta = Delta(
            partition=int(account == "user:b"),
            meter_id=meter_ids[str(kind)],
            window_start_ms=window,
            account=account,
            dimensions=dimensions,
            combine=kind.combine,
            quantity=Decimal(rng.randrange(1, 10**20)).scaleb(-9) if valued else Decimal(0),
            events=events,
            unvalued=1,
            latest_event_ms=window + rng.randrange(HOUR),
            values=frozenset(rng.sample(range(9), 3))
            if events and kind is MetricKind.UNIQUE
            else frozenset(),
            **(
                {"order_ms": rng.randrange(4), "order_offset": len(made)}
                if kind is MetricKind.LATEST and valued
                else {}
            ),
        )
        made.append((kind, delta))
    for partition in (0, 1):
        _commit(engine, *(delta for _, delta in made if delta.partition == partition), partition=partition)
    return made


def _combine(kind: MetricKind, deltas: list[Delta]) -> Decimal:
    """The combination table, in words of one syllable."""
    valued = [delta for delta in deltas if delta.events]
    if kind is MetricKind.UNIQUE:
        return Decimal(len(frozenset().union(*(delta.values for delta in deltas))))
    if kind in (MetricKind.COUNT, MetricKind.SUM):
        total = Decimal(0)
        for delta in deltas:
            total = add_exactly(total, delta.quantity)
        return total
    if not valued:
        return Decimal(0)
    if kind is MetricKind.LATEST:
        return max(valued, key=lambda delta: (delta.order_ms, delta.partition, delta.order_offset)).quantity
    return (max if kind is MetricKind.MAX else min)(delta.quantity for delta in valued)


@pytest.mark.parametrize(
    "by", [(), ("account",), ("window",), ("dimensions",), ("account", "window", "dimensions")]
)
def test_totals_combine_as_the_metric_says(
    ledger: Engine, meter_ids: dict[str, int], by: tuple[Grouping, ...]
) -> None:
    """Every kind, every grouping, equal to a computation over the rows in Python."""
    made = _random_usage(ledger, meter_ids, seed=len(by))
    columns = {"account": "account", "window": "window_start_ms", "dimensions": "dimensions"}
    groups: dict[tuple[object, ...], list[tuple[MetricKind, Delta]]] = {}
    for kind, delta in made:
        values = [getattr(delta, column) if name in by else None for name, column in columns.items()]
        groups.setdefault((str(kind), *values), []).append((kind, delta))
    expected = [
        UsageTotal(
            meter=str(key[0]),
            kind=members[0][0],
            account=key[1],  # type: ignore[arg-type]
            window_start_ms=key[2],  # type: ignore[arg-type]
            dimensions=key[3],  # type: ignore[arg-type]
            quantity=_combine(members[0][0], [delta for _, delta in members]),
            events=sum(delta.events for _, delta in members),
            unvalued=len(members),
            latest_event_ms=max(delta.latest_event_ms for _, delta in members),
        )
        for key, members in groups.items()
    ]
    order = sorted(
        expected,
        key=lambda each: (each.meter, each.window_start_ms or 0, each.account or "", each.dimensions or ""),
    )
    assert usage_totals(ledger, by=by) == order


def test_filters_choose_meter_account_and_windows(ledger: Engine, meter_ids: dict[str, int]) -> None:
    """Windows that start in [from, to); rows and totals alike."""
    made = [delta for kind, delta in _random_usage(ledger, meter_ids, seed=3) if kind is MetricKind.SUM]
    chosen = [delta for delta in made if delta.account == "user:a" and delta.window_start_ms == HOUR]
    rows = usage_rows(ledger, meter="sum", account="user:a", from_ms=HOUR, to_ms=2 * HOUR)
    assert [(row.dimensions, row.quantity, row.changed_offset) for row in rows] == sorted(
        (delta.dimensions, delta.quantity, 1) for delta in chosen
    )
    totals = usage_totals(ledger, by=(), meter="sum", accounts=["user:a"], from_ms=HOUR, to_ms=2 * HOUR)
    assert [total.quantity for total in totals] == ([_combine(MetricKind.SUM, chosen)] if chosen else [])
    assert usage_rows(ledger, meter="absent") == []
    assert usage_totals(ledger, meter="absent") == []


def test_versions_of_a_meter_are_one_meter(ledger: Engine, meter_ids: dict[str, int]) -> None:
    """A changed filter makes another version; its name's usage is one total. A changed kind is kept apart."""
    _commit(ledger, Delta(meter_id=meter_ids["count"], quantity=Decimal(3)))
    changed = [Meter("count", "status < 500", Metric(MetricKind.COUNT))]
    apply_meters(ledger, changed, "", 0)
    newer = next(each for each in load_meter_set(ledger).meters if each.meter.where)
    fold = make_fold(
        [part(0, 1, 2)], [Delta(meter_id=newer.meter_id, window_start_ms=newer.from_ms, quantity=Decimal(4))]
    )
    assert commit_fold(ledger, fold, prints(fold), 2, now_ms=1) == frozenset()
    (total,) = usage_totals(ledger, meter="count")
    assert (total.quantity, total.kind) == (Decimal(7), MetricKind.COUNT)
    assert len(usage_rows(ledger, meter="count")) == 2


def test_an_unknown_grouping_is_refused(ledger: Engine) -> None:
    """A misspelt grouping would otherwise silently sum more than was asked."""
    with pytest.raises(ValueError, match="acount"):
        usage_totals(ledger, by=["acount"])  # type: ignore[list-item]
