"""The anomaly cap on SQLite and PostgreSQL: parked, no measure for others, released once, audited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest

from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.anomalies import count_anomalies, release_anomaly
from tollgate.ledger.audit import AuditAction, list_audit
from tollgate.ledger.posting_rows import Posting, PostingState
from tollgate.ledger.postings import resume_posting
from tollgate.metering.anomaly import AnomalyCap

A, B = "user:a", "user:b"
WEEK = 7 * 24
"""Windows (hours) of a week."""


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """A customer that used up to 100 an hour two weeks ago; more than ten times that, from 500 up, is parked."""
    made = World.make(ledger_url)
    made.rules = replace(made.rules, anomaly=AnomalyCap(Decimal(10), Decimal(500), 4))
    made.customer("cus_1", A, B)
    made.period("cus_1", start_ms=T0 - 900 * HOUR_MS)
    yield made
    made.engine.dispose()


def _grown(world: World, send: str = "live", metric: object = "count") -> int:
    meter = world.meter(send=send, metric=metric)
    world.use(meter, A, 60, window=-2 * WEEK)
    world.use(meter, B, 40, window=-2 * WEEK)
    world.use(meter, A, 90, window=-3)
    world.settle_all()
    return meter


def _at(world: World, window: int) -> list[Posting]:
    return [p for p in world.postings() if p.window_start_ms == T0 + window * HOUR_MS]


def test_a_window_within_the_factor_goes_and_raises_the_measure(world: World) -> None:
    """1000 is ten times the highest hour, not more; after it ten times that is allowed."""
    meter = _grown(world)
    world.use(meter, A, 1000)
    assert world.plan().anomalies == ()
    world.settle_all()
    world.use(meter, B, 10_000, window=1)
    world.use(meter, A, 100_001, window=2)
    report = world.plan()
    (parked,) = _at(world, 2)
    assert report.anomalies == (f"{parked.posting_key}:1",)
    world.settle_all()
    assert world.delivered() == {("cus_1", meter): Decimal(100 + 90 + 1000 + 10_000)}


def test_the_bound_is_the_factor_exactly(world: World) -> None:
    """One unit more than ten times the highest hour is parked."""
    meter = _grown(world)
    world.use(meter, A, 1001)
    report = world.plan()
    (parked,) = _at(world, 0)
    assert report.anomalies == (f"{parked.posting_key}:1",)
    assert parked.state is PostingState.PARKED
    assert parked.error == "anomaly: 1001 in one window, 100 was the most in the 4 weeks before"
    assert count_anomalies(world.engine) == 1
    world.settle_all()
    assert [p.state for p in _at(world, 0)] == [PostingState.PARKED]


def test_a_parked_window_is_no_measure_for_the_next(world: World) -> None:
    """A burst over hours is parked hour by hour, planned together or one by one."""
    meter = _grown(world)
    world.use(meter, A, 5000)
    world.use(meter, A, 5001, window=1)
    world.settle_all()
    world.use(meter, A, 5002, window=2)
    world.settle_all()
    assert [p.state for w in range(3) for p in _at(world, w)] == [PostingState.PARKED] * 3
    assert count_anomalies(world.engine) == 3


def test_a_window_that_grows_step_by_step_is_stopped_where_it_passes_the_cap(world: World) -> None:
    """Small postings do not add up to a large one unseen: what was sent of it stays, the rest waits."""
    meter = _grown(world)
    for total in (400, 800, 1200, 1600):
        world.use(meter, A, total)
        world.settle_all()
    assert [(p.quantity_to, p.state) for p in _at(world, 0)] == [
        (Decimal(400), PostingState.DELIVERED),
        (Decimal(800), PostingState.DELIVERED),
        (Decimal(1200), PostingState.PARKED),
    ]
    assert world.held() == {(meter, 0, A): ("in_flight", Decimal(400))}  # beyond the parked link


def test_released_it_goes_with_all_that_came_after_and_the_trail_says_who(world: World) -> None:
    """By release alone, not by resume; the chain is not stopped again, and raises the measure for later windows."""
    meter = _grown(world)
    world.use(meter, A, 5000)
    world.settle_all()
    (parked,) = _at(world, 0)
    assert not resume_posting(world.engine, *parked.ref)
    with pytest.raises(ValueError, match="reason"):
        release_anomaly(world.engine, parked.posting_key, "eve", " ", world.now_ms)
    assert release_anomaly(world.engine, parked.posting_key, "eve", "a launch", world.now_ms) == 1
    assert release_anomaly(world.engine, parked.posting_key, "eve", "a launch", world.now_ms) is None
    world.use(meter, A, 90_000)
    world.settle_all()
    world.use(meter, A, 90_001)
    world.use(meter, A, 800_000, window=1)
    world.settle_all()
    assert count_anomalies(world.engine) == 0
    assert world.delivered() == {("cus_1", meter): Decimal(100 + 90 + 90_001 + 800_000)}
    (entry,) = list_audit(world.engine, parked.posting_key)
    assert (entry.who, entry.action, entry.reason) == ("eve", AuditAction.RELEASE_POSTING, "a launch")
    assert entry.details == {"seq": 1, "customer": "cus_1", "from": "0", "to": "5000"}


def test_who_has_no_week_behind_is_not_judged(world: World) -> None:
    """A customer that begins has nothing to be measured by; nor is another customer's usage a measure."""
    _grown(world)
    meter = world.meter("other")
    world.period("cus_1", "other", start_ms=T0 - 900 * HOUR_MS, item="other")
    world.use(meter, A, 1, window=-WEEK + 1)
    world.use(meter, A, 50_000)
    world.settle_all()
    assert count_anomalies(world.engine) == 0
    world.use(meter, A, 1, window=-WEEK - 1)
    world.use(meter, A, 50_000, window=1)
    world.use(meter, A, 600_000, window=2)
    world.settle_all()
    assert count_anomalies(world.engine) == 1


def test_weeks_long_gone_do_not_count(world: World) -> None:
    """Only the trailing weeks are a measure: an old peak protects nobody."""
    meter = _grown(world)
    world.use(meter, A, 1_000_000, window=-5 * WEEK)
    world.settle_all()
    world.use(meter, A, 1001)
    world.settle_all()
    assert [p.state for p in _at(world, 0)] == [PostingState.PARKED]


@pytest.mark.parametrize(("send", "metric"), [("dry_run", "count"), ("live", {"max": "latency_ms"})])
def test_only_what_adds_up_and_is_charged_is_judged(world: World, send: str, metric: object) -> None:
    """A rehearsal moves no money, and a maximum has its own bound."""
    meter = _grown(world, send, metric)
    world.use(meter, A, 1_000_000)
    world.settle_all()
    assert count_anomalies(world.engine) == 0


def test_without_a_cap_nothing_is_judged(world: World) -> None:
    """Switched off, the largest window goes."""
    meter = _grown(world)
    world.rules = replace(world.rules, anomaly=None)
    world.use(meter, A, 1_000_000)
    world.settle_all()
    assert count_anomalies(world.engine) == 0
