"""The reconciler: what it asks, what it pays, and when it looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from prometheus_client import CollectorRegistry

from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import BillingMeter, SummaryPage
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Failure
from services.stripe_sync.reconcile import AGAIN_MS, BUDGET_SPENT, FOLLOWED_DAYS, Terms
from services.stripe_sync.reconciler import Reconciler
from tests.unit.metering.links import HOUR, link, of
from tests.unit.stripe_sync.fakes import REVOKED, failed
from tollgate.ledger.engine import LedgerUnavailable
from tollgate.ledger.reconciliation_views import SubjectView
from tollgate.ledger.reconciliations import DAY_MS, DriftSummary, Reconciliation
from tollgate.metering.reconciliation import (
    Cause,
    InvoiceLines,
    Link,
    Missing,
    Standing,
    Subject,
    Verdict,
)
from tollgate.runtime.clock import ManualClock

NOW_MS = 20_000 * DAY_MS
START_S = NOW_MS // 1000 - 5 * 86_400
PERIOD = Subject("cus_1", "calls", START_S * 1000, START_S * 1000 + 30 * DAY_MS)
TERMS = Terms(lag_ms=600_000, interval_ms=DAY_MS)


def view(
    *links: Link,
    subject: Subject = PERIOD,
    live: bool = True,
    missing: tuple[Missing, ...] = (),
    invoice: InvoiceLines | None = None,
) -> SubjectView:
    status = None if invoice is None else "paid"
    number = None if invoice is None else invoice.invoice_id
    return SubjectView(subject, ("calls",), live, links, missing, invoice, number, status)


@dataclass
class Book:
    """Views to be handed out in turn, the last one for ever; what is stored; a budget."""

    views: list[SubjectView]
    kept: dict[Subject, Reconciliation] = field(default_factory=dict)
    reads: int = 0
    failures: list[Exception] = field(default_factory=list)
    waiting: list[Subject] = field(default_factory=list)

    async def due(self, now_ms: int, limit: int) -> list[Subject]:
        if self.failures:
            raise self.failures.pop(0)
        found, self.waiting = self.waiting, []
        return found

    async def view(self, subject: Subject) -> SubjectView:
        return self.views.pop(0) if len(self.views) > 1 else self.views[0]

    async def previous(self, subject: Subject) -> Reconciliation | None:
        return self.kept.get(subject)

    async def store(self, found: Reconciliation) -> None:
        self.kept[found.subject] = found

    async def take_read(self, now_ms: int, reads_max: int) -> bool:
        if self.reads >= reads_max:
            return False
        self.reads += 1
        return True

    async def drift(self) -> DriftSummary:
        drift = {found.subject.event_name: found.drift for found in self.kept.values()}
        verdicts = {found.verdict: 1 for found in self.kept.values()}
        return DriftSummary(drift, len([d for d in drift.values() if d]), verdicts, NOW_MS)


@dataclass
class Summaries:
    """Stripe's sums by hour, two hours to a page."""

    hours: Mapping[int, float]
    formula: str = "sum"
    asked: list[str] = field(default_factory=list)
    failure: Failure | None = None

    async def meters(self) -> dict[str, BillingMeter]:
        self.asked.append("meters")
        if self.failure is not None:
            raise failed(self.failure)
        return {
            "calls": BillingMeter("mtr_1", "calls", True, self.formula, "stripe_customer_id", "value", None)
        }

    async def summary_page(
        self,
        stripe_meter_id: str,
        customer_id: str,
        start_s: int,
        end_s: int,
        *,
        hourly: bool,
        after: str | None = None,
    ) -> SummaryPage:
        assert (stripe_meter_id, customer_id) == ("mtr_1", "cus_1")
        assert (start_s, end_s) == (PERIOD.period_start_ms // 1000, PERIOD.period_end_ms // 1000)
        self.asked.append("hours" if hourly else "total")
        if not hourly:
            return SummaryPage({start_s: sum(self.hours.values())}, None)
        begin = 0 if after is None else int(after)
        listed = sorted(self.hours.items())
        more = begin + 2 < len(listed)
        return SummaryPage(dict(listed[begin : begin + 2]), str(begin + 2) if more else None)


def at(hour: int, seq: int, quantity: int, standing: Standing = Standing.AT_STRIPE, **more: object) -> Link:
    return link(seq, quantity, standing, at_s=START_S + hour * HOUR, **more)  # type: ignore[arg-type]


@dataclass
class Bench:
    """A reconciler over fakes."""

    book: Book
    stripe: Summaries
    reads_per_day: int = 100
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW_MS))
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(
            book=self.book,
            stripe=self.stripe,
            bucket=TokenBucket(1000, 1000, self.clock.monotonic_seconds()),
            clock=self.clock,
            terms=TERMS,
            reads_per_day=self.reads_per_day,
            check_seconds=60,
            metrics=SyncMetrics(self.registry),
        )

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tollgate_stripe_sync_reconciliation_{name}", labels)


async def test_a_period_that_agrees_costs_one_read() -> None:
    """And the meter's id one more, once."""
    bench = Bench(Book([view(at(0, 1, 10), at(1, 2, 5))]), Summaries({START_S: 10.0, START_S + HOUR: 5.0}))
    found = await bench.reconciler.reconcile(PERIOD)
    assert of(found.verdict, found.counted, found.delivered, found.stripe) == (
        Verdict.AGREES,
        15,
        15,
        "15.0",
    )
    assert found.due_ms == NOW_MS + TERMS.interval_ms
    assert bench.book.kept == {PERIOD: found}
    await bench.reconciler.reconcile(PERIOD)
    assert bench.stripe.asked == ["meters", "total", "total"]
    assert bench.book.reads == 3


async def test_a_difference_is_traced_to_its_hour() -> None:
    """Page by page, each of them paid for."""
    links = [at(hour, 1, 10 + hour, key=f"k{hour}") for hour in range(5)]
    hours = {START_S + hour * HOUR: 10.0 + hour for hour in range(5)}
    hours[START_S + 3 * HOUR] = 0.0
    bench = Bench(Book([view(*links)]), Summaries(hours))
    found = await bench.reconciler.reconcile(PERIOD)
    (finding,) = found.findings
    assert (finding.cause, finding.hour_s, finding.postings) == (
        Cause.MISSING,
        START_S + 3 * HOUR,
        ("k3:1",),
    )
    assert of(found.verdict, found.drift) == (Verdict.DRIFT, 13)
    assert bench.stripe.asked == ["meters", "total", "hours", "hours", "hours"]
    assert bench.book.reads == 5
    assert bench.sample("checks_total", verdict="drift") == 1


async def test_what_is_delivered_while_stripe_is_asked_is_no_drift() -> None:
    """The ledger is read again after the answer: the posting is new, and not in the sum yet."""
    before = view(at(0, 1, 10))
    after = view(at(0, 1, 10), at(0, 2, 5, sent_ms=NOW_MS))
    bench = Bench(Book([before, after]), Summaries({START_S: 10.0}))
    found = await bench.reconciler.reconcile(PERIOD)
    assert [f.cause for f in found.findings] == [Cause.LAGGING]
    assert found.due_ms == NOW_MS + TERMS.lag_ms
    counted_at_once = Bench(Book([before, after]), Summaries({START_S: 15.0}))
    assert (await counted_at_once.reconciler.reconcile(PERIOD)).verdict is Verdict.AGREES


async def test_a_spent_budget_waits_for_tomorrow() -> None:
    """Nothing is asked; what the ledger alone says is kept, and the next day's first look is due."""
    bench = Bench(Book([view(at(0, 1, 10))]), Summaries({START_S: 10.0}), reads_per_day=0)
    found = await bench.reconciler.reconcile(PERIOD)
    assert of(found.verdict, found.counted, found.stripe, found.asked_ms) == (
        Verdict.UNCHECKED,
        10,
        None,
        None,
    )
    assert [f.detail for f in found.findings] == [BUDGET_SPENT]
    assert found.due_ms == NOW_MS + DAY_MS
    assert bench.stripe.asked == []


async def test_a_budget_spent_before_the_hours_leaves_the_drift() -> None:
    """The total differs; where, is for tomorrow."""
    bench = Bench(Book([view(at(0, 1, 10))]), Summaries({START_S: 4.0}), reads_per_day=2)
    found = await bench.reconciler.reconcile(PERIOD)
    assert of(found.verdict, found.drift, found.stripe) == (Verdict.DRIFT, 6, "4.0")
    assert BUDGET_SPENT in found.findings[0].detail


async def test_a_stripe_that_cannot_be_asked_is_asked_again_soon() -> None:
    """A revoked key, a meter of another kind: unchecked, with the reason, and what was known is kept."""
    bench = Bench(Book([view(at(0, 1, 10))]), Summaries({START_S: 10.0}))
    await bench.reconciler.reconcile(PERIOD)
    other = Bench(bench.book, Summaries({}, failure=REVOKED))
    found = await other.reconciler.reconcile(PERIOD)
    assert (found.verdict, found.stripe, found.due_ms) == (Verdict.UNCHECKED, "10.0", NOW_MS + AGAIN_MS)
    last = Bench(Book([view(at(0, 1, 10))]), Summaries({}, formula="last"))
    (finding,) = (await last.reconciler.reconcile(PERIOD)).findings
    assert finding.detail == "the meter's formula is last"


@pytest.mark.parametrize(
    "unasked", [view(), view(at(0, 1, 10, Standing.REHEARSED, state="dry_run"), live=False)]
)
async def test_nothing_is_asked_of_what_was_never_sent(unasked: SubjectView) -> None:
    """Reads are for what Stripe should hold; an operator who names a customer has it asked all the same."""
    bench = Bench(Book([unasked]), Summaries({}))
    await bench.reconciler.reconcile(PERIOD)
    assert bench.stripe.asked == []
    await bench.reconciler.reconcile(PERIOD, always_ask=True)
    assert bench.stripe.asked[:2] == ["meters", "total"]


async def test_a_final_invoice_is_the_last_word() -> None:
    """It costs no read once the period was asked about; when all is explained there is no next look."""
    lines = InvoiceLines("in_1", PERIOD.period_start_ms, PERIOD.period_end_ms, Decimal(10), NOW_MS)
    bench = Bench(Book([view(at(0, 1, 10))]), Summaries({START_S: 10.0}))
    await bench.reconciler.reconcile(PERIOD)
    bench.book.views = [view(at(0, 1, 10), invoice=lines)]
    found = await bench.reconciler.reconcile(PERIOD)
    assert (found.verdict, found.invoiced, found.invoice_id, found.due_ms) == (
        Verdict.AGREES,
        "10",
        "in_1",
        None,
    )
    assert bench.stripe.asked == ["meters", "total"]
    bench.book.views = [view(at(0, 1, 10), at(1, 2, 1), invoice=lines)]
    short = await bench.reconciler.reconcile(PERIOD)
    assert (short.verdict, short.due_ms) == (Verdict.DRIFT, NOW_MS + TERMS.interval_ms)


async def test_a_period_long_over_is_left() -> None:
    """Whatever was found of it."""
    bench = Bench(Book([view(at(0, 1, 10))]), Summaries({START_S: 4.0}))
    bench.clock.advance_ms((30 + FOLLOWED_DAYS) * DAY_MS)
    assert (await bench.reconciler.reconcile(PERIOD)).due_ms is None


async def test_the_loop_survives_an_outage_and_stops() -> None:
    """The ledger is away at the first look; at the next what is due is compared and shown."""
    bench = Bench(Book([view(at(0, 1, 10))], waiting=[PERIOD]), Summaries({START_S: 4.0}))
    bench.book.failures = [LedgerUnavailable("gone")]
    stop = asyncio.Event()
    running = asyncio.create_task(bench.reconciler.run(stop))
    for _ in range(200):
        await asyncio.sleep(0)
        if bench.clock.sleepers and bench.book.kept:
            break
        if bench.clock.sleepers:
            bench.clock.advance_ms(60_000)
    stop.set()
    await asyncio.wait_for(running, 5)
    assert bench.book.kept[PERIOD].verdict is Verdict.DRIFT
    assert bench.sample("drift_units", meter="calls") == 6
    assert bench.sample("drifting_customers") == 1
    assert bench.sample("last_checked_timestamp_seconds") == NOW_MS / 1000
