"""The reconciler: asks Stripe what it holds, within a budget of reads, compares, and keeps what it found.

Owns the order of the questions and their price. It refuses to know how a difference is explained (`reconcile.py`) and
to change a posting: repairs are an operator's.

Stripe grants an account 500 reads for each transaction of a month, and 10,000 at least. One period costs one read
while it agrees; only when it does not are its hours asked for, a hundred a read. What the day's budget does not cover
waits in the ledger, and the next day begins with what was looked at longest ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import BillingMeter, CallFailed, SummaryPage
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.reconcile import (
    BUDGET_SPENT,
    Terms,
    conclude,
    explain,
    explain_without_hours,
    is_worth_asking,
)
from tollgate.ledger.engine import CommitUnknown, LedgerUnavailable
from tollgate.ledger.reconciliation_views import SubjectView
from tollgate.ledger.reconciliations import DriftSummary, Reconciliation
from tollgate.metering.drift import Asked, summary_span_s
from tollgate.metering.reconciliation import NOTHING, Cause, Finding, Subject, Verdict
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)

BATCH = 50
"""Subjects looked up at once: a look costs a pass over the open periods."""


class Summaries(Protocol):
    """What the reconciler asks of Stripe. Raises CallFailed."""

    async def meters(self) -> dict[str, BillingMeter]: ...

    async def summary_page(
        self,
        stripe_meter_id: str,
        customer_id: str,
        start_s: int,
        end_s: int,
        *,
        hourly: bool,
        after: str | None = None,
    ) -> SummaryPage: ...


class ReconciliationBook(Protocol):
    """What the reconciler needs of the ledger."""

    async def due(self, now_ms: int, limit: int) -> list[Subject]: ...

    async def view(self, subject: Subject) -> SubjectView: ...

    async def previous(self, subject: Subject) -> Reconciliation | None: ...

    async def store(self, found: Reconciliation) -> None: ...

    async def take_read(self, now_ms: int, reads_max: int) -> bool: ...

    async def drift(self) -> DriftSummary: ...


class _NotAsked(Exception):
    """Stripe was not asked; the message says why."""


class Reconciler:
    """Reconciles subjects one after the other."""

    def __init__(
        self,
        *,
        book: ReconciliationBook,
        stripe: Summaries,
        bucket: TokenBucket,
        clock: Clock,
        terms: Terms,
        reads_per_day: int,
        check_seconds: float,
        metrics: SyncMetrics | None,
    ) -> None:
        self._book = book
        self._stripe = stripe
        self._bucket = bucket
        self._clock = clock
        self._terms = terms
        self._reads_per_day = reads_per_day
        self._check_seconds = check_seconds
        self._metrics = metrics
        self._meters: dict[str, BillingMeter] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile what is due, until `stop`. An outage of ledger or Stripe is waited out."""
        while not stop.is_set():
            try:
                if await self.reconcile_due(stop):
                    continue
            except (LedgerUnavailable, CommitUnknown) as error:
                _log.warning("reconciliation.delayed", error=str(error))
            await self._pause(stop)

    async def reconcile_due(self, stop: asyncio.Event) -> int:
        """One batch of what is due; how many were compared. Raises LedgerUnavailable, CommitUnknown."""
        due = await self._book.due(self._clock.now_ms(), BATCH)
        for done, subject in enumerate(due):
            if stop.is_set():
                return done
            await self.reconcile(subject)
        if self._metrics is not None:
            self._metrics.show_drift(await self._book.drift())
        return len(due)

    async def reconcile(self, subject: Subject, *, always_ask: bool = False) -> Reconciliation:
        """Compare one subject and keep the result. `always_ask`: spend the read even where nothing was sent.

        Raises LedgerUnavailable, CommitUnknown.
        """
        previous = await self._book.previous(subject)
        view = await self._book.view(subject)
        asked: Asked | None = None
        findings: list[Finding] | None = []
        try:
            if always_ask or is_worth_asking(view, previous):
                asked = await self._ask(view.subject)
                # Read after Stripe answered: what is delivered meanwhile may be missing there, never too many.
                view = await self._book.view(subject)
                findings = explain(view, asked, self._clock.now_ms(), self._terms.lag_ms)
                if findings is None:
                    asked = await self._ask_hours(view.subject, asked)
                    view = await self._book.view(subject)
                    findings = explain(view, asked, self._clock.now_ms(), self._terms.lag_ms)
        except _NotAsked as why:
            if asked is None:
                findings = [Finding(Cause.NOT_ASKED, NOTHING, str(why))]
            else:
                findings = explain_without_hours(view, asked, str(why))
        now_ms = self._clock.now_ms()
        found = conclude(view, previous, asked, findings or [], now_ms, self._terms)
        await self._book.store(found)
        self._report(found)
        return found

    # ------------------------------------------------------------------------------------------ asking

    async def _ask(self, subject: Subject) -> Asked:
        meter = await self._meter(subject.event_name)
        start_s, end_s = summary_span_s(subject.period_start_ms, subject.period_end_ms)
        page = await self._read(meter, subject, start_s, end_s, hourly=False, after=None)
        return Asked(start_s, end_s, sum(page.values.values()))

    async def _ask_hours(self, subject: Subject, asked: Asked) -> Asked:
        meter = await self._meter(subject.event_name)
        hours: dict[int, float] = {}
        after: str | None = None
        while True:
            page = await self._read(meter, subject, asked.start_s, asked.end_s, hourly=True, after=after)
            hours |= page.values
            after = page.next_after
            if after is None:
                return Asked(asked.start_s, asked.end_s, asked.total, hours)

    async def _meter(self, event_name: str) -> BillingMeter:
        """The Billing Meter, looked up once: its id and formula never change."""
        if event_name not in self._meters:
            await self._pay()
            try:
                self._meters = await self._stripe.meters()
            except CallFailed as error:
                raise _NotAsked(str(error)) from error
        meter = self._meters.get(event_name)
        if meter is None:
            raise _NotAsked("there is no such meter at Stripe")
        if meter.formula != "sum":
            raise _NotAsked(f"the meter's formula is {meter.formula}")
        return meter

    async def _read(
        self,
        meter: BillingMeter,
        subject: Subject,
        start_s: int,
        end_s: int,
        *,
        hourly: bool,
        after: str | None,
    ) -> SummaryPage:
        await self._pay()
        try:
            return await self._stripe.summary_page(
                meter.stripe_meter_id, subject.customer_id, start_s, end_s, hourly=hourly, after=after
            )
        except CallFailed as error:
            raise _NotAsked(str(error)) from error

    async def _pay(self) -> None:
        """One read out of the day's budget, and one token of the rate that postings share."""
        if not await self._book.take_read(self._clock.now_ms(), self._reads_per_day):
            raise _NotAsked(BUDGET_SPENT)
        if self._metrics is not None:
            self._metrics.read_summary()
        while (wait_seconds := self._bucket.reserve(self._clock.monotonic_seconds())) > 0:
            await self._clock.sleep_seconds(wait_seconds)
            if not self._bucket.is_closed(self._clock.monotonic_seconds()):
                return

    # ------------------------------------------------------------------------------------------ telling

    def _report(self, found: Reconciliation) -> None:
        """A service tells; a command's process does not: its output is the command's."""
        if self._metrics is None:
            return
        self._metrics.reconciled(found.verdict)
        if found.verdict is not Verdict.DRIFT:
            return
        drifting = _causes([f for f in found.findings if f.verdict is Verdict.DRIFT])
        _log.error(
            "usage.drifted",
            customer=found.subject.customer_id,
            meter=found.subject.event_name,
            period_start_ms=found.subject.period_start_ms,
            drift=f"{found.drift:f}",
            causes=drifting,
        )

    async def _pause(self, stop: asyncio.Event) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep_seconds(self._check_seconds))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stopping.cancel()


def _causes(findings: Sequence[Finding]) -> list[str]:
    return sorted({str(finding.cause) for finding in findings})
