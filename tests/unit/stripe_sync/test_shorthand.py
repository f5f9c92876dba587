"""First links written in shorthand are the ones the rules give, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.stripe_sync.plan import STRIPE_AGE_MAX_MS, Rules
from tollgate.ledger.plan_rows import Chain, FirstLink, MeterTerms, NextLink, PeriodRow, Placement
from tollgate.ledger.posting_rows import SENT_MODES, PostingMode
from tollgate.metering.anomaly import AnomalyCap
from tollgate.metering.meter import MetricKind

HOUR = 3_600_000
W = 500_000 * HOUR
NOW = W + 2 * HOUR
RULES = Rules('ledger "1"')
TERMS = MeterTerms(7, "calls", MetricKind.COUNT, HOUR, "calls", "live")
PERIOD = PeriodRow(W - 24 * HOUR, W + 24 * HOUR, "open", "si_1")

near = st.integers(-2 * HOUR, 2 * HOUR) | st.sampled_from([-1, 0, 1, HOUR - 1, HOUR, HOUR + 1])
quantities = (
    st.integers(-(10**16), 10**16).map(Decimal)
    | st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**8), max_value=10**8)
    | st.sampled_from(
        [Decimal(text) for text in ("0", "1E+3", "1.500", "1000", "999999999999999", "1000000000000001")]
    )
)
meters = st.builds(
    MeterTerms,
    meter_id=st.integers(1, 10**6),
    name=st.just("calls"),
    kind=st.sampled_from(MetricKind),
    window_size_ms=st.sampled_from([60_000, HOUR]),
    event_name=st.text(min_size=1),
    send=st.sampled_from(["off", "dry_run", "live"]),
    mode=st.sampled_from(SENT_MODES[:3]),
)


def by_the_rules(
    rules: Rules,
    terms: MeterTerms,
    customer: str,
    latest_ms: int,
    quantity: Decimal,
    period: PeriodRow,
    now_ms: int,
) -> tuple[FirstLink, PostingMode]:
    """What the rules make of a window that is its customer's only one."""
    placed = rules.place(terms, W, latest_ms, [period], [])
    assert isinstance(placed, Placement)
    total = rules.combine_chain(terms.kind, [quantity])
    link = rules.next_link(terms, Chain(), total, placed, now_ms)
    assert isinstance(link, NextLink)
    assert (link.park_reason, link.more, link.for_period_ms, link.item) == (None, False, None, None)
    assert link.quantity_to == quantity
    assert rules.suspects(terms, link) is None
    assert not rules.needs_bill(terms, Chain(), placed, now_ms)
    assert placed.scope_start_ms == W
    key = rules.chain_key(customer, terms.meter_id, placed.scope_start_ms)
    columns = rules.compose(terms, customer, key, 1, Decimal(0), link, period.item_id)
    return FirstLink(posting_key=key, **columns), link.mode  # type: ignore[arg-type]


@given(
    terms=meters,
    customer=st.text(min_size=1),
    latest_ms=near.map(lambda by: W + by),
    quantity=quantities,
    start_ms=near.map(lambda by: W + by),
    length_ms=st.integers(1, 4 * HOUR),
    age_ms=st.sampled_from([0, STRIPE_AGE_MAX_MS - 1, STRIPE_AGE_MAX_MS, STRIPE_AGE_MAX_MS + 1]),
    cap=st.none()
    | st.builds(AnomalyCap, factor=st.just(Decimal(10)), quantity_min=quantities, weeks=st.just(4)),
)
@example(TERMS, "cus_1", W, Decimal(1), W, HOUR, 0, None)
@example(TERMS, "cus_1", W + HOUR - 1, Decimal("1.50"), W, HOUR, STRIPE_AGE_MAX_MS, None)
@example(
    replace(TERMS, event_name='"\\\u20ac'), '"\\\n\u20ac\U0001f600', W, Decimal("1E+3"), W, HOUR, 0, None
)
@example(TERMS, "cus_1", W, Decimal(1), W, HOUR, STRIPE_AGE_MAX_MS + 1, None)
def test_what_is_written_in_shorthand_the_rules_would_have_written(
    terms: MeterTerms,
    customer: str,
    latest_ms: int,
    quantity: Decimal,
    start_ms: int,
    length_ms: int,
    age_ms: int,
    cap: AnomalyCap | None,
) -> None:
    """Whatever the meter, the customer's name, the quantity and the period: equal, or there is no shorthand for it."""
    rules = replace(RULES, anomaly=cap)
    now_ms = latest_ms + age_ms
    period = PeriodRow(start_ms, start_ms + length_ms, "open", "si_1")
    shorthand = rules.shorthand(terms, now_ms)
    if shorthand is None:
        return
    link = shorthand.first_link(customer, W, latest_ms, quantity, period.start_ms, period.end_ms)
    if link is not None:
        found = link, shorthand.mode
        assert found == by_the_rules(rules, terms, customer, latest_ms, quantity, period, now_ms)


@pytest.mark.parametrize("send", ["live", "dry_run"])
@pytest.mark.parametrize("kind", [MetricKind.COUNT, MetricKind.SUM])
@pytest.mark.parametrize("quantity", ["1", "0.000000001", "999999999999999"])
@pytest.mark.parametrize("latest_ms", [W, W + HOUR - 1])
def test_plain_windows_have_a_shorthand(send: str, kind: MetricKind, quantity: str, latest_ms: int) -> None:
    """The ordinary case, edges included, is written without asking the rules."""
    terms = replace(TERMS, send=send, kind=kind)
    shorthand = RULES.shorthand(terms, NOW)
    assert shorthand is not None
    link = shorthand.first_link("cus_1", W, latest_ms, Decimal(quantity), W, W + HOUR)
    assert link is not None
    expected = by_the_rules(RULES, terms, "cus_1", latest_ms, Decimal(quantity), PERIOD, NOW)
    assert (link, shorthand.mode) == expected


@pytest.mark.parametrize(
    ("latest_ms", "quantity", "start_ms", "end_ms"),
    [
        (W, "0", W, W + HOUR),
        (W, "-1", W, W + HOUR),
        (W, "50", W, W + HOUR),
        (W, "1000000000000000.5", W, W + HOUR),
        (W - 1, "1", W - HOUR, W + HOUR),
        (W + HOUR, "1", W, W + 2 * HOUR),
        (W + 1, "1", W + 1, W + HOUR),
        (W, "1", W, W + HOUR - 1),
    ],
)
def test_what_is_not_plain_has_none(latest_ms: int, quantity: str, start_ms: int, end_ms: int) -> None:
    """Nothing, a fall, a suspect, too many digits, a window that a period's edge cuts or whose events lie outside of it."""
    capped = replace(RULES, anomaly=AnomalyCap(Decimal(10), Decimal(50), 4))
    shorthand = capped.shorthand(TERMS, NOW)
    assert shorthand is not None
    assert shorthand.first_link("cus_1", W, latest_ms, Decimal(quantity), start_ms, end_ms) is None


@pytest.mark.parametrize(
    "terms",
    [
        replace(TERMS, send="off"),
        replace(TERMS, kind=MetricKind.UNIQUE),
        replace(TERMS, kind=MetricKind.LATEST),
        replace(TERMS, mode=PostingMode.WINDOW_TOTAL),
        replace(TERMS, mode=PostingMode.USAGE_RECORD),
    ],
)
def test_meters_that_need_more_than_one_window_have_none(terms: MeterTerms) -> None:
    """Totals that replace, metrics of a whole period, meters that are off."""
    assert RULES.shorthand(terms, NOW) is None
