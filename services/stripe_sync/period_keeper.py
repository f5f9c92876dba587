"""The period keeper: sees to it that a period's usage is at Stripe before its invoice becomes final.

Owns the order of its looks and what is told to Stripe. It refuses to know when a period is complete and when an
invoice may become final (`tollgate.metering.{completeness,finalization}`), SQL, and how usage is planned and sent.

Each look: 1. whose invoice or period's end is near gets precedence in planning and sending, and is planned at once when
usage of an ended period, or of one that ends within a minute, is counted and not planned; 2. drafts are judged; 3. an incomplete one is put off by `automatically_finalizes_at`, a complete one released. That way rather than
by `auto_advance: false`: should Tollgate be gone, Stripe finalizes all the same, a step later.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import structlog

from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import CallFailed
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Action
from tollgate.ledger.completeness import Span
from tollgate.ledger.engine import CommitUnknown, LedgerUnavailable
from tollgate.ledger.finalizations import After, Delay, DelayState, DraftInvoice, DraftPage
from tollgate.metering.completeness import Watermark
from tollgate.metering.finalization import (
    Decision,
    FinalizationTerms,
    Incomplete,
    Step,
    decide_finalization,
    is_counted,
)
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)

DRAFTS_AT_ONCE = 2000
"""Drafts judged in one go: bounds memory and the length of a statement."""

HURRY_MS = 60 * 1000
"""How long before a period's end its customer's usage is planned as soon as it is counted."""

REFUSED_RETRY_MS = 10 * 60 * 1000
"""After Stripe would not put an invoice off: a key that lacks the scope may be given it."""


class Finalizer(Protocol):
    """What the keeper asks of Stripe."""

    async def finalize_at(self, invoice_id: str, finalizes_s: int) -> None:
        """Set when a draft becomes final by itself (epoch seconds). Raises CallFailed."""
        ...


class PeriodBook(Protocol):
    """What the keeper needs of the ledger."""

    urgent: tuple[str, ...]

    async def load_urgent(self, now_ms: int, near_ms: int) -> tuple[str, ...]: ...

    async def load_ending(self, now_ms: int, near_ms: int) -> tuple[str, ...]: ...

    async def has_unplanned(self, customers: Sequence[str]) -> bool: ...

    async def drafts(
        self, limit: int, after: After | None = None, *, delayed_only: bool = False
    ) -> DraftPage: ...

    async def watermark(self, now_ms: int, silence_ms: int) -> Watermark: ...

    async def unsettled(self, spans: Collection[Span]) -> dict[Span, Incomplete]: ...

    async def delay(self, invoice_id: str) -> Delay | None: ...

    async def record_delay(self, delay: Delay) -> None: ...


class PeriodKeeper:
    """Keeps periods under one lease. `hurry` is set when the urgent customers' planning should not wait for its cadence."""

    def __init__(
        self,
        *,
        book: PeriodBook,
        stripe: Finalizer,
        bucket: TokenBucket,
        clock: Clock,
        metrics: SyncMetrics,
        terms: FinalizationTerms,
        silence_ms: int,
        check_seconds: float,
    ) -> None:
        self._book = book
        self._stripe = stripe
        self._bucket = bucket
        self._clock = clock
        self._metrics = metrics
        self._terms = terms
        self._silence_ms = silence_ms
        self._check_seconds = check_seconds
        self.hurry = False

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop`. An outage of the ledger is waited out. Raises LeaseLost."""
        while not stop.is_set():
            try:
                await self.look()
            except (LedgerUnavailable, CommitUnknown) as error:
                _log.warning("periods.not_looked_at", error=str(error))
            await self._pause(stop)

    async def look(self) -> None:
        """One look. Raises LeaseLost, LedgerUnavailable, CommitUnknown."""
        now_ms = self._clock.now_ms()
        self._book.urgent = await self._book.load_urgent(now_ms, self._terms.lead_ms)
        watermark = await self._book.watermark(now_ms, self._silence_ms)
        seen: set[str] = set()
        shown: list[Incomplete] = []
        page = await self._book.drafts(DRAFTS_AT_ONCE)
        while True:
            shown += await self._look_at(page.drafts, watermark, seen)
            # All that are near, however many; of those that are not, what is at hand.
            if page.next_after is None or page.next_after[0] - now_ms > self._terms.lead_ms:
                break
            page = await self._book.drafts(DRAFTS_AT_ONCE, page.next_after)
        delayed = await self._book.drafts(DRAFTS_AT_ONCE, delayed_only=True)
        rest = [invoice for invoice in delayed.drafts if invoice.invoice_id not in seen]
        shown += await self._look_at(rest, watermark, seen)
        if await self._book.has_unplanned(await self._book.load_ending(now_ms, HURRY_MS)):
            self.hurry = True
        self._metrics.show_periods(watermark.until_ms, Counter(map(str, shown)))

    async def _look_at(
        self, drafts: Sequence[DraftInvoice], watermark: Watermark, seen: set[str]
    ) -> list[Incomplete]:
        """Judge drafts and act on them; what is missing of those that are near."""
        unsettled = await self._book.unsettled([span for invoice in drafts for span in invoice.spans])
        if Incomplete.PLANNING in unsettled.values():
            self.hurry = True
        incomplete = self._judge(drafts, watermark, unsettled)
        for invoice in drafts:
            await self._act(invoice, incomplete.get(invoice.invoice_id), watermark)
        seen.update(invoice.invoice_id for invoice in drafts)
        near = [invoice.invoice_id for invoice in drafts if self._is_near(invoice)]
        return [incomplete[name] for name in near if name in incomplete]

    def _is_near(self, invoice: DraftInvoice) -> bool:
        """About to become final, or put off already: before that an incomplete period is nothing to worry about."""
        draft = invoice.draft
        near = draft.finalizes_ms - self._clock.now_ms() <= self._terms.lead_ms
        return near or draft.planned_ms is not None

    def take_hurry(self) -> bool:
        """Whether planning should happen now; asking takes the wish away."""
        hurry, self.hurry = self.hurry, False
        return hurry

    def _judge(
        self, drafts: Sequence[DraftInvoice], watermark: Watermark, unsettled: Mapping[Span, Incomplete]
    ) -> dict[str, Incomplete]:
        """Why each incomplete one of `drafts` is not complete."""
        found: dict[str, Incomplete] = {}
        for invoice in drafts:
            if not is_counted(invoice.period_end_ms, watermark.until_ms, self._terms):
                found[invoice.invoice_id] = Incomplete.COUNTING
                continue
            reasons = [unsettled[span] for span in invoice.spans if span in unsettled]
            if reasons:
                found[invoice.invoice_id] = min(reasons, key=list(Incomplete).index)
        return found

    async def _act(self, invoice: DraftInvoice, why: Incomplete | None, watermark: Watermark) -> None:
        now_ms = self._clock.now_ms()
        if invoice.retry_ms is not None and now_ms < invoice.retry_ms:
            return
        decision = decide_finalization(invoice.draft, why, now_ms, self._terms)
        if decision.step is Step.LEAVE:
            return
        log = _log.bind(invoice=invoice.invoice_id, customer=invoice.customer_id)
        if decision.step is Step.GIVE_UP:
            log.error("finalization.given_up", reason=str(why), finalizes_ms=invoice.draft.finalizes_ms)
            self._metrics.finalization(Step.GIVE_UP)
            await self._record(invoice, why, invoice.draft.finalizes_ms, DelayState.GIVEN_UP)
            return
        assert decision.finalizes_ms is not None, "these steps have a moment"
        if not await self._tell_stripe(invoice, why, decision):
            return
        self._metrics.finalization(decision.step)
        if decision.step is Step.RELEASE:
            log.info("finalization.released", finalizes_ms=decision.finalizes_ms)
            await self._record(invoice, why, decision.finalizes_ms, DelayState.RELEASED)
            return
        log.warning(
            "finalization.delayed",
            reason=str(why),
            finalizes_ms=decision.finalizes_ms,
            period_end_ms=invoice.period_end_ms,
            counted_until_ms=watermark.until_ms,
            partition=watermark.partition,
            instance=watermark.instance,
        )
        await self._record(invoice, why, decision.finalizes_ms, DelayState.DELAYED)

    async def _tell_stripe(self, invoice: DraftInvoice, why: Incomplete | None, decision: Decision) -> bool:
        """Set the moment at Stripe. False when that did not work: it is tried again, later where Stripe refused."""
        assert decision.finalizes_ms is not None
        while (wait_seconds := self._bucket.reserve(self._clock.monotonic_seconds())) > 0:
            await self._clock.sleep_seconds(wait_seconds)
            if not self._bucket.is_closed(self._clock.monotonic_seconds()):
                break
        try:
            await self._stripe.finalize_at(invoice.invoice_id, decision.finalizes_ms // 1000)
        except CallFailed as error:
            self._metrics.finalization_failed()
            _log.error(
                "finalization.not_set",
                invoice=invoice.invoice_id,
                step=str(decision.step),
                reason=str(why),
                error=str(error),
            )
            if error.row.action in (Action.PARK, Action.STOP_ALL):
                await self._record(
                    invoice,
                    why,
                    invoice.draft.finalizes_ms,
                    invoice.state if invoice.state is DelayState.DELAYED else DelayState.REFUSED,
                    retry_ms=self._clock.now_ms() + REFUSED_RETRY_MS,
                    error=str(error)[:500],
                )
            return False
        return True

    async def _record(
        self,
        invoice: DraftInvoice,
        why: Incomplete | None,
        until_ms: int,
        state: DelayState,
        *,
        retry_ms: int | None = None,
        error: str | None = None,
    ) -> None:
        now_ms = self._clock.now_ms()
        known = await self._book.delay(invoice.invoice_id)
        was_set = known is not None and known.state is DelayState.DELAYED
        await self._book.record_delay(
            Delay(
                invoice_id=invoice.invoice_id,
                customer_id=invoice.customer_id,
                planned_ms=known.planned_ms if was_set and known else invoice.draft.finalizes_ms,
                until_ms=until_ms,
                reason=why if why is not None else (known.reason if known else Incomplete.POSTING),
                state=state,
                delays=(known.delays if known else 0) + (state is DelayState.DELAYED and error is None),
                since_ms=known.since_ms if known else now_ms,
                retry_ms=retry_ms,
                error=error,
            )
        )

    async def _pause(self, stop: asyncio.Event) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep_seconds(self._check_seconds))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stopping.cancel()
