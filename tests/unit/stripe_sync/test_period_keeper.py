"""The period keeper over a ledger and a Stripe in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry

from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Failure
from services.stripe_sync.period_keeper import REFUSED_RETRY_MS, PeriodKeeper
from tests.unit.stripe_sync.fakes import failed
from tollgate.ledger.completeness import Span
from tollgate.ledger.engine import LedgerUnavailable
from tollgate.ledger.finalizations import After, Delay, DelayState, DraftInvoice, DraftPage
from tollgate.metering.completeness import Watermark
from tollgate.metering.finalization import Draft, FinalizationTerms, Incomplete
from tollgate.runtime.clock import ManualClock

MINUTE = 60_000
HOUR = 60 * MINUTE
END = 1_000_000 * HOUR
TERMS = FinalizationTerms(
    events_delay_ms=5 * MINUTE, lead_ms=15 * MINUTE, step_ms=HOUR, delay_max_ms=72 * HOUR
)
CALLS = Span("cus_1", "calls", END - 720 * HOUR, END)
TOKENS = Span("cus_1", "tokens", END - 720 * HOUR, END)


def draft(*spans: Span, planned_ms: int | None = None, retry_ms: int | None = None) -> DraftInvoice:
    """A draft of a period that ended at END, final an hour later, or two hours where it was put off."""
    finalizes_ms = END + (HOUR if planned_ms is None else 2 * HOUR)
    return DraftInvoice(
        "in_1",
        "cus_1",
        Draft(END, finalizes_ms, planned_ms),
        spans or (CALLS,),
        None if planned_ms is None else DelayState.DELAYED,
        retry_ms,
    )


@dataclass
class MemoryBook:
    """What the keeper reads, as the test says, and what it records."""

    urgent: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    ending: tuple[str, ...] = ()
    unplanned: bool = False
    invoices: list[DraftInvoice] = field(default_factory=list)
    counted_ms: int = END + HOUR
    missing: dict[Span, Incomplete] = field(default_factory=dict)
    delays: list[Delay] = field(default_factory=list)
    outages: int = 0
    page: int = 2

    async def load_urgent(self, now_ms: int, near_ms: int) -> tuple[str, ...]:
        if self.outages:
            self.outages -= 1
            raise LedgerUnavailable("away")
        return self.near

    async def load_ending(self, now_ms: int, near_ms: int) -> tuple[str, ...]:
        return self.ending

    async def has_unplanned(self, customers: Sequence[str]) -> bool:
        return self.unplanned and bool(customers)

    async def drafts(
        self, limit: int, after: After | None = None, *, delayed_only: bool = False
    ) -> DraftPage:
        listed = [i for i in self.invoices if not delayed_only or i.state is not None]
        begin = 0 if after is None else [i.invoice_id for i in listed].index(after[1]) + 1
        page = listed[begin : begin + min(limit, self.page)]
        more = begin + len(page) < len(listed)
        last = page[-1] if page else None
        return DraftPage(tuple(page), (last.draft.finalizes_ms, last.invoice_id) if more and last else None)

    async def watermark(self, now_ms: int, silence_ms: int) -> Watermark:
        return Watermark(self.counted_ms, 3, "ingest-1")

    async def unsettled(self, spans: Collection[Span]) -> dict[Span, Incomplete]:
        return {span: why for span, why in self.missing.items() if span in spans}

    async def delay(self, invoice_id: str) -> Delay | None:
        return self.delays[-1] if self.delays else None

    async def record_delay(self, delay: Delay) -> None:
        self.delays.append(delay)


@dataclass
class MemoryStripe:
    """Finalization moments as set, in seconds after END. `failures` are raised first."""

    set_at: list[int] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    async def finalize_at(self, invoice_id: str, finalizes_s: int) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.set_at.append(finalizes_s - END // 1000)


class Rig:
    """A keeper at so many minutes after END."""

    def __init__(self, *invoices: DraftInvoice, minutes: int = 50) -> None:
        self.book = MemoryBook(invoices=list(invoices))
        self.stripe = MemoryStripe()
        self.clock = ManualClock(END + minutes * MINUTE)
        self.registry = CollectorRegistry()
        self.keeper = PeriodKeeper(
            book=self.book,
            stripe=self.stripe,
            bucket=TokenBucket(1000, 1000, 0.0),
            clock=self.clock,
            metrics=SyncMetrics(self.registry),
            terms=TERMS,
            silence_ms=10 * MINUTE,
            check_seconds=10.0,
        )

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tollgate_stripe_sync_{name}", labels)


async def test_urgent_customers_are_named() -> None:
    """Planning and sending look at them first."""
    rig = Rig()
    rig.book.near = ("cus_1", "cus_2")
    await rig.keeper.look()
    assert rig.book.urgent == ("cus_1", "cus_2")


async def test_planning_is_hurried_once_for_periods_that_end_within_a_minute() -> None:
    """Only where something of theirs is not planned; asking takes the hurry away."""
    rig = Rig()
    rig.book.ending = ("cus_1",)
    await rig.keeper.look()
    assert not rig.keeper.take_hurry()
    rig.book.unplanned = True
    await rig.keeper.look()
    assert [rig.keeper.take_hurry(), rig.keeper.take_hurry()] == [True, False]
    rig.book.ending = ()
    await rig.keeper.look()
    assert not rig.keeper.take_hurry()


@pytest.mark.parametrize(
    ("why", "hurried"), [(Incomplete.PLANNING, True), (Incomplete.POSTING, False), (Incomplete.PARKED, False)]
)
async def test_planning_is_hurried_for_drafts_long_before_they_become_final(
    why: Incomplete, hurried: bool
) -> None:
    """Usage of the ended period that is counted and not planned; nothing is put off yet and nothing shows."""
    rig = Rig(draft(), minutes=1)
    rig.book.missing = {CALLS: why}
    await rig.keeper.look()
    assert rig.keeper.take_hurry() is hurried
    assert rig.stripe.set_at == []
    assert rig.metric("period_incomplete", reason=str(why)) == 0


async def test_a_complete_draft_is_left_to_stripe() -> None:
    """Counted five minutes past its end and all settled: nothing is done and nothing shows."""
    rig = Rig(draft())
    rig.book.counted_ms = END + 5 * MINUTE
    await rig.keeper.look()
    assert (rig.stripe.set_at, rig.book.delays) == ([], [])
    assert rig.metric("period_incomplete", reason="counting") == 0


async def test_an_uncounted_period_is_put_off_and_shown() -> None:
    """A millisecond short of five minutes past its end."""
    rig = Rig(draft())
    rig.book.counted_ms = END + 5 * MINUTE - 1
    await rig.keeper.look()
    assert rig.stripe.set_at == [2 * 3600]
    [delay] = rig.book.delays
    assert (delay.planned_ms, delay.until_ms, delay.reason, delay.state, delay.delays) == (
        END + HOUR,
        END + 2 * HOUR,
        Incomplete.COUNTING,
        DelayState.DELAYED,
        1,
    )
    assert rig.metric("period_incomplete", reason="counting") == 1
    assert rig.metric("counted_until_timestamp_seconds") == (END + 5 * MINUTE - 1) / 1000


@pytest.mark.parametrize("why", [Incomplete.PLANNING, Incomplete.POSTING, Incomplete.PARKED])
async def test_one_unsettled_meter_of_two_holds_the_invoice(why: Incomplete) -> None:
    """The draft bills calls and tokens; the tokens are not all there."""
    rig = Rig(draft(CALLS, TOKENS))
    rig.book.missing = {TOKENS: why}
    await rig.keeper.look()
    assert (rig.stripe.set_at, rig.book.delays[0].reason) == ([2 * 3600], why)


async def test_the_first_thing_to_happen_is_the_reason() -> None:
    """Planning comes before a parked posting is of any interest."""
    rig = Rig(draft(CALLS, TOKENS))
    rig.book.missing = {CALLS: Incomplete.PARKED, TOKENS: Incomplete.PLANNING}
    await rig.keeper.look()
    assert rig.book.delays[0].reason is Incomplete.PLANNING


async def test_the_moment_stripe_had_planned_is_kept_over_delays_and_given_back() -> None:
    """Put off twice, the first plan is remembered; complete, it is released a minute ahead."""
    rig = Rig(draft())
    rig.book.counted_ms = 0
    await rig.keeper.look()
    rig.book.invoices = [draft(planned_ms=rig.book.delays[-1].planned_ms)]
    rig.clock.advance_ms(55 * MINUTE)
    await rig.keeper.look()
    assert [(d.planned_ms - END, d.delays) for d in rig.book.delays] == [(HOUR, 1), (HOUR, 2)]
    rig.book.counted_ms = END + HOUR
    await rig.keeper.look()
    assert rig.stripe.set_at == [2 * 3600, 3 * 3600, 3600 + 46 * 60]
    assert rig.book.delays[-1].state is DelayState.RELEASED


async def test_giving_up_calls_nobody_and_is_counted() -> None:
    """At 72 hours the invoice becomes final without the rest."""
    rig = Rig(minutes=72 * 60 - 5)
    last = Draft(END, END + 72 * HOUR, END + HOUR)
    rig.book.invoices = [DraftInvoice("in_1", "cus_1", last, (CALLS,), DelayState.DELAYED)]
    rig.book.missing = {CALLS: Incomplete.PARKED}
    await rig.keeper.look()
    assert rig.stripe.set_at == []
    assert rig.book.delays[-1].state is DelayState.GIVEN_UP
    assert rig.metric("finalizations_total", step="give_up") == 1


async def test_every_draft_that_is_near_is_judged_however_many_there_are() -> None:
    """Five drafts, two a page: all five are put off, and a sixth that was put off before is released."""
    many = [replace(draft(), invoice_id=f"in_{number}") for number in range(5)]
    other = Span("cus_9", "calls", END - 720 * HOUR, END - HOUR)
    far = replace(draft(other, planned_ms=END), invoice_id="in_9")
    rig = Rig(*many, replace(far, draft=Draft(END - HOUR, END + 100 * HOUR, END)))
    rig.book.missing = {CALLS: Incomplete.POSTING}
    await rig.keeper.look()
    assert rig.stripe.set_at == [2 * 3600] * 5 + [51 * 60]
    assert rig.metric("period_incomplete", reason="posting") == 5


async def test_a_refusal_is_kept_and_tried_again_later() -> None:
    """Forbidden: recorded as refused with the moment of the next try, before which Stripe is not asked."""
    rig = Rig(draft())
    rig.book.counted_ms = 0
    rig.stripe.failures = [failed(Failure(message="no", status=403))]
    await rig.keeper.look()
    [refused] = rig.book.delays
    assert (refused.state, refused.delays) == (DelayState.REFUSED, 0)
    assert refused.retry_ms == rig.clock.now_ms() + REFUSED_RETRY_MS
    assert rig.metric("finalization_failures_total") == 1
    rig.book.invoices = [draft(retry_ms=refused.retry_ms)]
    await rig.keeper.look()
    assert rig.stripe.set_at == []
    rig.clock.advance_ms(REFUSED_RETRY_MS)
    await rig.keeper.look()
    assert rig.stripe.set_at == [2 * 3600]


async def test_a_lost_answer_is_asked_again_at_the_next_look() -> None:
    """Setting the moment twice is setting it once."""
    rig = Rig(draft())
    rig.book.counted_ms = 0
    rig.stripe.failures = [failed(Failure(message="no", connection="no_answer"))]
    await rig.keeper.look()
    assert rig.book.delays == []
    await rig.keeper.look()
    assert (rig.stripe.set_at, rig.book.delays[-1].state) == ([2 * 3600], DelayState.DELAYED)


async def test_an_outage_of_the_ledger_is_waited_out() -> None:
    """The look after it goes on."""
    rig = Rig(draft())
    rig.book.counted_ms = 0
    rig.book.outages = 1
    stop = asyncio.Event()
    running = asyncio.create_task(rig.keeper.run(stop))
    for _ in range(50):
        await asyncio.sleep(0)
        if rig.clock.sleepers:
            break
    assert rig.stripe.set_at == []
    rig.clock.advance_ms(10_000)
    for _ in range(50):
        await asyncio.sleep(0)
    assert rig.stripe.set_at == [2 * 3600]
    stop.set()
    await running
