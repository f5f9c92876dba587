"""From when a changed meter counts: a pure rule."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from tollgate.ledger.meter_changes import FUTURE_MS, StoredMeter, next_boundary, plan_changes
from tollgate.metering.charge import Charge
from tollgate.metering.definition import Meter, StripeTarget
from tollgate.metering.metric import Metric, MetricKind
from tollgate.metering.price import DeclaredPrice, Interval, Price, PriceModel
from tollgate.metering.window import WindowSize

HOUR = 3_600_000
DAY = 24 * HOUR
NOW = 100 * DAY + 5 * HOUR + 1

CALLS = Meter("calls", "status < 500", Metric(MetricKind.COUNT), WindowSize.HOUR, (), None)
TARGET = StripeTarget(mode="delta", send="off", event_name="calls")
PRICE = DeclaredPrice(Price(PriceModel.STANDARD, "usd", Interval("month"), Decimal(2)), Charge.SUM)


def _stored(
    meter: Meter = CALLS, from_ms: int = 0, to_ms: int | None = None, meter_id: int = 1
) -> StoredMeter:
    return StoredMeter(meter_id, meter, from_ms, to_ms)


def test_a_boundary_is_a_window_start_past_everything_counted() -> None:
    """At least five minutes and one window ahead, and not a window more than needed."""
    for size_ms in (60_000, HOUR, DAY):
        for now_ms in (0, 1, NOW, NOW - FUTURE_MS, 7 * DAY, 7 * DAY - FUTURE_MS - size_ms):
            boundary = next_boundary(now_ms, size_ms)
            assert boundary % size_ms == 0
            assert now_ms + FUTURE_MS + size_ms <= boundary < now_ms + FUTURE_MS + 2 * size_ms


def test_a_new_meter_counts_from_the_beginning() -> None:
    """Effective at once: nothing before it counted under its name."""
    plan = plan_changes([], [CALLS], NOW)
    assert [(begin.meter, begin.from_ms) for begin in plan.added] == [(CALLS, 0)]
    assert not plan.empty


def test_an_unchanged_meter_is_kept() -> None:
    """Nothing to do."""
    plan = plan_changes([_stored()], [CALLS], NOW)
    assert (plan.kept, plan.empty) == (("calls",), True)


@pytest.mark.parametrize(
    "after",
    [
        replace(CALLS, where="status < 400"),
        replace(CALLS, where=None),
        replace(CALLS, metric=Metric(MetricKind.SUM, "latency_ms")),
        replace(CALLS, metric=Metric(MetricKind.COUNT, None, True)),
        replace(CALLS, group_by=("route",)),
        replace(CALLS, stripe=TARGET),
        replace(CALLS, stripe=replace(TARGET, event_name="other")),
    ],
)
def test_a_change_of_what_is_counted_begins_where_the_old_ends(after: Meter) -> None:
    """One boundary: every event time is counted by exactly one version."""
    plan = plan_changes([_stored()], [after], NOW)
    ((end, begin),) = plan.changed
    assert (end.meter_id, end.to_ms, end.never_began) == (1, next_boundary(NOW, HOUR), False)
    assert (begin.meter, begin.from_ms) == (after, end.to_ms)
    assert (plan.added, plan.removed, plan.retargeted) == ((), (), ())


def test_a_changed_window_size_uses_the_larger_of_both() -> None:
    """The boundary is a window start of both sizes, in either direction."""
    daily = replace(CALLS, window=WindowSize.DAY)
    for before, after in ((CALLS, daily), (daily, CALLS)):
        ((end, begin),) = plan_changes([_stored(before)], [after], NOW).changed
        assert end.to_ms == begin.from_ms == next_boundary(NOW, DAY)


@pytest.mark.parametrize(
    "change",
    [{"send": "live"}, {"send": "dry_run"}, {"price": PRICE}, {"product": "Calls"}],
)
def test_how_it_is_sent_changes_in_place(change: dict[str, object]) -> None:
    """The meter's id and counts stay; only where `send`, price or product say otherwise."""
    before = replace(CALLS, stripe=TARGET)
    after = replace(CALLS, stripe=replace(TARGET, **change))  # type: ignore[arg-type]
    plan = plan_changes([_stored(before)], [after], NOW)
    assert [(item.meter_id, item.meter) for item in plan.retargeted] == [(1, after)]
    assert (plan.changed, plan.added, plan.removed) == ((), (), ())


def test_a_removed_meter_ends_at_a_boundary() -> None:
    """It counts until then: the window under way is not cut."""
    plan = plan_changes([_stored()], [], NOW)
    assert [(end.meter_id, end.to_ms) for end in plan.removed] == [(1, next_boundary(NOW, HOUR))]


def test_a_meter_that_comes_back_never_overlaps_what_counted_before() -> None:
    """Its new version begins at the latest end of its name, so no event is counted twice."""
    ended = [_stored(to_ms=5 * DAY), _stored(to_ms=9 * DAY, from_ms=5 * DAY, meter_id=2)]
    plan = plan_changes(ended, [CALLS], NOW)
    assert [begin.from_ms for begin in plan.added] == [9 * DAY]


def test_a_version_that_never_began_is_replaced_where_it_would_have_begun() -> None:
    """Changed twice before the first change took effect: the middle version counts nothing."""
    first, second = replace(CALLS, where="a"), replace(CALLS, where="b")
    boundary = next_boundary(NOW, HOUR)
    stored = [_stored(to_ms=boundary), _stored(first, from_ms=boundary, meter_id=2)]
    ((end, begin),) = plan_changes(stored, [second], NOW + 1).changed
    assert (end.meter_id, end.to_ms, end.never_began, begin.from_ms) == (2, boundary, True, boundary)
    (removed,) = plan_changes(stored, [], NOW + 1).removed
    assert (removed.meter_id, removed.to_ms, removed.never_began) == (2, boundary, True)


def test_a_name_given_twice_is_refused() -> None:
    """Two meters of one name cannot be told apart."""
    with pytest.raises(ValueError, match="calls"):
        plan_changes([], [CALLS, CALLS], NOW)
