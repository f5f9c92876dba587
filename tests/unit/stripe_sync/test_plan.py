"""The rules of planning."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from services.stripe_sync.plan import Rules, stretch_cadence
from tollgate.ledger.plan_rows import (
    Chain,
    Hold,
    HoldReason,
    MappingRow,
    MeterTerms,
    NextLink,
    PeriodRow,
    Placement,
    Slot,
    UsageRow,
    VoidLink,
)
from tollgate.ledger.posting_rows import PostingMode
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.meter import MetricKind

RULES = Rules("ledger_1", ClosedPolicy.HOLD)
HOUR = 3_600_000
W = 500_000 * HOUR
DAY = 24 * HOUR
NOW = W + 2 * HOUR


def terms(
    kind: MetricKind = MetricKind.COUNT, send: str = "live", mode: PostingMode = PostingMode.DELTA
) -> MeterTerms:
    return MeterTerms(7, "calls", kind, HOUR, "calls", send, mode)


def rows(*quantities: int) -> list[UsageRow]:
    return [UsageRow(0, Decimal(q), W, order, order) for order, q in enumerate(quantities)]


SLOT = Slot(7, W, "user:a")


@pytest.mark.parametrize(
    ("mappings", "found"),
    [
        ([], HoldReason.NO_MAPPING),
        ([MappingRow("cus_1", 0, None)], "cus_1"),
        ([MappingRow("cus_1", W, W + 1)], "cus_1"),
        ([MappingRow("cus_1", W + 1, None)], HoldReason.NO_MAPPING),
        ([MappingRow("cus_1", 0, W)], HoldReason.NO_MAPPING),
        ([MappingRow("cus_1", 0, W), MappingRow("cus_2", W, None)], "cus_2"),
        ([MappingRow("cus_1", 0, None), MappingRow("cus_2", 0, None)], HoldReason.AMBIGUOUS),
        ([MappingRow("cus_1", 0, None), MappingRow("cus_1", 5, None)], "cus_1"),
    ],
)
def test_the_customer_is_the_one_mapped_at_the_windows_start(
    mappings: list[MappingRow], found: str | HoldReason
) -> None:
    """Validity is half open; two customers are ambiguous; a pin wins over everything."""
    assert RULES.resolve_customer(SLOT, None, mappings) == found
    assert RULES.resolve_customer(SLOT, "cus_9", mappings) == "cus_9"


LATEST = W + 1000
BEFORE = PeriodRow(W - DAY, W + HOUR // 2, "open")
AFTER = PeriodRow(W + HOUR // 2, W + DAY, "open")
WHOLE = PeriodRow(W - DAY, W + DAY, "open")


def _state(period: PeriodRow, state: str) -> PeriodRow:
    return PeriodRow(period.start_ms, period.end_ms, state)


@pytest.mark.parametrize(
    ("latest_ms", "periods", "found"),
    [
        (LATEST, [], HoldReason.NO_ITEM),
        (LATEST, [WHOLE], LATEST),
        (LATEST, [_state(WHOLE, "closed")], LATEST),
        (LATEST, [_state(WHOLE, "closed"), WHOLE], LATEST),
        (LATEST, [_state(WHOLE, "removed")], HoldReason.NO_ITEM),
        (LATEST, [WHOLE, WHOLE], HoldReason.AMBIGUOUS),
        (LATEST, [WHOLE, _state(WHOLE, "removed")], LATEST),
        (LATEST, [PeriodRow(W + DAY, W + 2 * DAY, "open")], HoldReason.NO_ITEM),
        # The window straddles an edge: where its latest event lies.
        (LATEST, [BEFORE, AFTER], LATEST),
        (W + HOUR // 2, [BEFORE, AFTER], W + HOUR // 2),
        (LATEST, [_state(BEFORE, "closed"), AFTER], LATEST),
        # Events go on after the subscription ended, or came before it began, within the window.
        (W + HOUR - 1, [BEFORE], W + HOUR // 2 - 1),
        (LATEST, [AFTER], W + HOUR // 2),
        (W + HOUR - 1, [_state(BEFORE, "closed")], W + HOUR // 2 - 1),
        (LATEST, [_state(WHOLE, "closed"), _state(WHOLE, "closed")], HoldReason.AMBIGUOUS),
    ],
)
def test_usage_is_stamped_inside_window_and_period(
    latest_ms: int, periods: list[PeriodRow], found: int | HoldReason
) -> None:
    """The one open, else closed, period around the latest event, else the nearest the window touches, else a reason."""
    placed = RULES.place(terms(), W, latest_ms, periods, [])
    if isinstance(found, HoldReason):
        assert placed == found
        return
    assert isinstance(placed, Placement)
    assert (placed.scope_start_ms, placed.stamp_ms) == (W, found)
    assert placed.period in periods


def test_kinds_that_do_not_add_up_belong_to_their_period() -> None:
    """Their chain's scope is the period, and a pinned one keeps its period past the edge."""
    biggest = terms(MetricKind.MAX)
    assert RULES.place(biggest, W, LATEST, [BEFORE, AFTER], []) == Placement(BEFORE.start_ms, LATEST, BEFORE)
    kept = RULES.place(biggest, W, W + HOUR - 1, [BEFORE, AFTER], [BEFORE])
    assert kept == Placement(BEFORE.start_ms, BEFORE.end_ms - 1, BEFORE)


def test_a_slot_combines_by_its_metric() -> None:
    """Add, max, min, and the last by (time, partition, offset)."""
    found = {kind: RULES.combine_slot(kind, rows(3, 9, 5)) for kind in MetricKind}
    assert found == {
        MetricKind.COUNT: 17,
        MetricKind.SUM: 17,
        MetricKind.MAX: 9,
        MetricKind.MIN: 3,
        MetricKind.LATEST: 5,
        MetricKind.UNIQUE: 17,
    }


def test_a_row_without_a_valued_event_is_no_minimum() -> None:
    """Its zero stands for nothing; a slot of such rows alone has no quantity."""
    unvalued = UsageRow(0, Decimal(0), W, 99, 99, events=0)
    for kind, value in ((MetricKind.MIN, 3), (MetricKind.LATEST, 5), (MetricKind.MAX, 9)):
        assert RULES.combine_slot(kind, [*rows(3, 9, 5), unvalued]) == value
        assert RULES.combine_slot(kind, [unvalued]) == 0


def _next(
    chain: Chain,
    total: str | int,
    kind: MetricKind = MetricKind.COUNT,
    send: str = "live",
    stamp: int = W,
    mode: PostingMode = PostingMode.DELTA,
    period: PeriodRow = WHOLE,
) -> NextLink | Hold | None:
    placement = Placement(W, stamp, period)
    return RULES.next_link(terms(kind, send, mode), chain, Decimal(total), placement, NOW)


def test_the_next_link_brings_the_chain_to_its_total() -> None:
    """From the last `to` to what is counted now; nothing when nothing is missing."""
    assert _next(Chain(), 5) == NextLink(Decimal(5), PostingMode.DELTA, W)
    assert _next(Chain(2, Decimal(5)), 9) == NextLink(Decimal(9), PostingMode.DELTA, W)
    assert _next(Chain(2, Decimal(5)), 5) is None
    assert _next(Chain(), 5, send="dry_run") == NextLink(Decimal(5), PostingMode.DRY_RUN, W)


def test_what_cannot_be_posted_is_held_with_its_reason() -> None:
    """In flight before all else; negative unless the kind may fall; too old; dry windows of a live meter."""
    assert _next(Chain(1, Decimal(3), unsettled=True), 9) == Hold(HoldReason.IN_FLIGHT, Decimal(6))
    assert _next(Chain(1, Decimal(9)), 3) == Hold(HoldReason.NEGATIVE, Decimal(-6))
    assert _next(Chain(1, Decimal(9)), 3, MetricKind.LATEST) == NextLink(Decimal(3), PostingMode.DELTA, W)
    assert _next(Chain(), 3, stamp=NOW - 35 * DAY) == Hold(HoldReason.TOO_OLD, Decimal(3))
    dry = Chain(1, Decimal(4), has_dry_run=True, dry_run_quantity=Decimal(4))
    assert _next(dry, 6) == Hold(HoldReason.DRY_RUN, Decimal(6))
    assert _next(dry, 6, send="dry_run") == NextLink(Decimal(6), PostingMode.DRY_RUN, W)


def test_void_links_are_taken_back_before_anything_is_posted() -> None:
    """One reversal for all of them, naming them."""
    chain = Chain(3, Decimal(20), voids=(VoidLink(1, Decimal(5)), VoidLink(3, Decimal(7))))
    link = _next(chain, 20)
    assert link == NextLink(Decimal(8), PostingMode.REVERSAL, W, reverses=(1, 3), more=True)
    body = RULES.compose(terms(), "cus_1", "k", 4, Decimal(20), link, "si_1")["body"]
    assert json.loads(str(body)) == {"reverses": [1, 3]}


def test_a_quantity_of_too_many_digits_goes_in_steps_that_sum_to_it() -> None:
    """Each step has at most 15 significant digits; nothing is rounded away."""
    total = Decimal("98765432109876.123456789")
    chain, steps = Chain(), []
    while (link := _next(chain, str(total))) is not None:
        assert isinstance(link, NextLink)
        step = link.quantity_to - chain.last_to
        assert len(step.normalize().as_tuple().digits) <= 15
        steps.append(step)
        chain = Chain(chain.last_seq + 1, link.quantity_to)
        assert link.more == (link.quantity_to != total)
    assert sum(steps) == total
    assert len(steps) == 2


def test_the_body_is_fixed_by_the_link() -> None:
    """Equal links make equal bytes; another sequence number makes another identifier; text, no exponent."""
    link = NextLink(Decimal("1E+3"), PostingMode.DELTA, W + 1999)
    first = RULES.compose(terms(), "cus_1", "k", 1, Decimal(0), link, "si_1")
    assert first == RULES.compose(terms(), "cus_1", "k", 1, Decimal(0), link, "si_1")
    body = json.loads(str(first["body"]))
    assert body["payload"] == {"stripe_customer_id": "cus_1", "value": "1000"}
    assert body["timestamp"] == first["timestamp_s"] == (W + 1999) // 1000
    assert body["identifier"] == first["identifier"]
    assert (
        RULES.compose(terms(), "cus_1", "k", 2, Decimal(0), link, "si_1")["identifier"] != first["identifier"]
    )
    assert len(str(first["identifier"])) <= 100


TOTAL, RECORD = PostingMode.WINDOW_TOTAL, PostingMode.USAGE_RECORD


def _where(placed: Placement | HoldReason) -> tuple[int, int, PeriodRow]:
    assert isinstance(placed, Placement)
    return placed.scope_start_ms, placed.stamp_ms, placed.period


@pytest.mark.parametrize("mode", [TOTAL, RECORD])
def test_a_total_that_replaces_keeps_its_place(mode: PostingMode) -> None:
    """Stamped alike whatever came last; a straddled window stays with the period it first went to."""
    for latest_ms in (W, LATEST, W + HOUR - 1):
        placed = RULES.place(terms(mode=mode), W, latest_ms, [WHOLE], [])
        assert _where(placed) == (W, W + 1000, WHOLE)
    first = RULES.place(terms(mode=mode), W, LATEST, [BEFORE, AFTER], [])
    assert _where(first) == (W, W + 1000, BEFORE)
    again = RULES.place(terms(mode=mode), W, W + HOUR - 1, [BEFORE, AFTER], [BEFORE])
    assert _where(again) == _where(first)
    other = RULES.place(terms(mode=mode), W, W + HOUR - 1, [BEFORE, AFTER], [])
    assert _where(other) == (AFTER.start_ms, AFTER.start_ms + 1000, AFTER)
    closed = _state(BEFORE, "closed")
    kept = RULES.place(terms(mode=mode), W, W + HOUR - 1, [closed, AFTER], [closed])
    assert _where(kept) == (W, W + 1000, closed)
    gone = _state(BEFORE, "removed")
    assert RULES.place(terms(mode=mode), W, W + HOUR - 1, [gone, AFTER], [gone]) is HoldReason.NO_ITEM


def test_a_kind_of_one_value_a_period_has_one_usage_record() -> None:
    """Every window of the period writes to the same second."""
    biggest = terms(MetricKind.MAX, mode=RECORD)
    for window in (W, W + 5 * HOUR):
        placed = RULES.place(biggest, window, window + 7, [WHOLE], [])
        assert _where(placed) == (WHOLE.start_ms, WHOLE.start_ms + 1000, WHOLE)


def test_each_window_owns_its_second() -> None:
    """Also where a period begins a second before a window ends."""
    edge = PeriodRow(W + HOUR - 1000, W + DAY, "open")
    stamps = set()
    for window in (W, W + HOUR, W + 2 * HOUR):
        placed = RULES.place(terms(mode=RECORD), window, window + HOUR - 1, [edge], [])
        assert isinstance(placed, Placement)
        assert max(window, edge.start_ms) <= placed.stamp_ms < window + HOUR
        stamps.add(placed.stamp_ms // 1000)
    assert len(stamps) == 3


def test_bodies_of_totals_carry_the_total() -> None:
    """The hour's value, or the record that `set` makes of it; a revision has another identifier."""
    link = NextLink(Decimal(15), TOTAL, W + 1000)
    body = json.loads(
        str(RULES.compose(terms(mode=TOTAL), "cus_1", "k", 2, Decimal(10), link, "si_1")["body"])
    )
    assert body["payload"] == {"stripe_customer_id": "cus_1", "value": "15"}
    record = RULES.compose(terms(mode=RECORD), "cus_1", "k", 2, Decimal(10), link, "si_1")
    assert json.loads(str(record["body"])) == {
        "action": "set",
        "quantity": 15,
        "subscription_item": "si_1",
        "timestamp": W // 1000 + 1,
    }
    again = RULES.compose(terms(mode=RECORD), "cus_1", "k", 3, Decimal(15), link, "si_1")
    assert again["identifier"] != record["identifier"]


@pytest.mark.parametrize("mode", [TOTAL, RECORD])
def test_a_total_replaces_an_unsent_one_and_waits_for_a_doubtful_one(mode: PostingMode) -> None:
    """Only what is at Stripe, or with an operator, or void, must be over before."""
    waiting = Chain(1, Decimal(3), unsettled=True)
    assert _next(waiting, 9, mode=mode) == NextLink(Decimal(9), mode, W)
    doubtful = Chain(1, Decimal(3), unsettled=True, blocked=True)
    assert _next(doubtful, 9, mode=mode) == Hold(HoldReason.IN_FLIGHT, Decimal(6))
    void = Chain(2, Decimal(9), unsettled=True, voids=(VoidLink(1, Decimal(3)),))
    assert _next(void, 9, mode=mode) == Hold(HoldReason.IN_FLIGHT, Decimal(0))


def test_a_fall_is_posted_only_inside_its_open_period() -> None:
    """Where values may fall, or totals replace; in a closed period it is a credit, held as negative."""
    chain, closed = Chain(1, Decimal(9)), _state(WHOLE, "closed")
    for kind, mode in (
        (MetricKind.MIN, PostingMode.DELTA),
        (MetricKind.LATEST, PostingMode.DELTA),
        (MetricKind.COUNT, TOTAL),
        (MetricKind.COUNT, RECORD),
        (MetricKind.LATEST, RECORD),
    ):
        assert _next(chain, 3, kind, mode=mode) == NextLink(Decimal(3), mode, W)
        assert _next(chain, 3, kind, mode=mode, period=closed) == Hold(HoldReason.NEGATIVE, Decimal(-6))
    for kind in (MetricKind.COUNT, MetricKind.SUM, MetricKind.MAX, MetricKind.UNIQUE):
        for period in (WHOLE, closed):
            assert _next(chain, 3, kind, period=period) == Hold(HoldReason.NEGATIVE, Decimal(-6))


@pytest.mark.parametrize("mode", [PostingMode.DELTA, TOTAL, RECORD])
def test_what_is_missing_in_a_closed_period_is_held(mode: PostingMode) -> None:
    """Not what is at Stripe already; and nothing is held where nothing is missing."""
    closed = _state(WHOLE, "closed")
    assert _next(Chain(1, Decimal(9)), 11, mode=mode, period=closed) == Hold(HoldReason.CLOSED, Decimal(2))
    assert _next(Chain(1, Decimal(9)), 9, mode=mode, period=closed) is None


def test_usage_records_end_with_their_period() -> None:
    """From its last millisecond on, by our clock or by Stripe's word, what is missing is held."""
    ended = PeriodRow(W - DAY, NOW, "open")
    assert _next(Chain(), 5, mode=RECORD, period=ended) == Hold(HoldReason.PERIOD_OVER, Decimal(5))
    current = PeriodRow(W - DAY, NOW + 1, "open")
    assert _next(Chain(), 5, mode=RECORD, period=current) == NextLink(Decimal(5), RECORD, W)
    refused = Chain(2, rejected_code="period_over")
    assert _next(refused, 5, mode=RECORD, period=current) == Hold(HoldReason.PERIOD_OVER, Decimal(5))
    assert _next(Chain(), 5, mode=TOTAL, period=ended) == NextLink(Decimal(5), TOTAL, W)


def test_what_a_mode_cannot_carry_is_held_as_inexact() -> None:
    """The whole part of a record, fifteen digits of a total; the rest stays visible."""
    assert _next(Chain(), "2.75", mode=RECORD) == NextLink(Decimal(2), RECORD, W, more=True)
    assert _next(Chain(1, Decimal(2)), "2.75", mode=RECORD) == Hold(HoldReason.INEXACT, Decimal("0.75"))
    assert _next(Chain(1, Decimal(2)), "-1", mode=RECORD) == NextLink(Decimal(0), RECORD, W, more=True)
    assert _next(Chain(2, Decimal(0)), "-1", mode=RECORD) == Hold(HoldReason.NEGATIVE, Decimal(-1))
    long = "98765432109876.123456789"
    step = _next(Chain(), long, mode=TOTAL)
    assert step == NextLink(Decimal("98765432109876.1"), TOTAL, W, more=True)
    assert isinstance(_next(Chain(1, Decimal("98765432109876.1")), long, mode=TOTAL), Hold)


def test_a_refusal_that_would_repeat_parks_the_next_link() -> None:
    """The code of the refused posting decides."""
    parked = _next(Chain(2, rejected_code="meter_event_customer_not_found"), 5)
    again = _next(Chain(2, rejected_code="timestamp_in_future"), 5)
    assert isinstance(parked, NextLink)
    assert isinstance(again, NextLink)
    assert parked.park_reason is not None
    assert again.park_reason is None


def test_the_cadence_stretches_to_the_rate() -> None:
    """As long as sending takes and a quarter more; never less than the cadence."""
    assert stretch_cadence(60, 100, 20) == 60
    assert stretch_cadence(60, 8000, 80) == 125
