"""The import: customers and subscriptions that were at Stripe before Tollgate was.

Owns the paged walk over both and its bookmark, which is kept after every page: an import that was interrupted, by
SIGKILL too, goes on where it was. It refuses to know how anything is stored. Repeating it, whole or from a bookmark,
does no harm: each page is fetched under a number of its own, and what webhooks wrote later stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from services.webhooks.errors import Permanent, Transient
from services.webhooks.projector import translate_ledger_error
from tollgate.ledger.billing import Customer, Receipt, Subscription
from tollgate.ledger.errors import LedgerError
from tollgate.ledger.imports import ImportRow
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)


class Phase(StrEnum):
    """What is being walked over, in this order."""

    CUSTOMERS = "customers"
    SUBSCRIPTIONS = "subscriptions"


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Where an import has got to: the id after which the next page of the phase begins ('' from the start)."""

    phase: Phase = Phase.CUSTOMERS
    after: str = ""

    def __str__(self) -> str:
        return f"{self.phase}:{self.after}"

    @classmethod
    def parse(cls, text: str) -> Bookmark:
        """Inverse of `str`. Raises ValueError."""
        phase, separator, after = text.partition(":")
        if not separator:
            raise ValueError("a bookmark looks like customers:cus_123")
        return cls(Phase(phase), after)


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """What an import has done since it was started, and where it could be resumed."""

    customers: int
    subscriptions: int
    bookmark: Bookmark
    finished: bool


class Lists(Protocol):
    """What the import asks of Stripe."""

    async def customer_page(self, after: str | None) -> tuple[tuple[Customer, ...], str | None]: ...

    async def subscription_page(self, after: str | None) -> tuple[tuple[Subscription, ...], str | None]: ...


class ImportBook(Protocol):
    """What the import asks of the ledger."""

    def take_sequence(self) -> int: ...

    def apply_customer(
        self,
        customer: Customer,
        *,
        sequence: int,
        now_ms: int,
        deleted_ms: int | None = None,
        receipt: Receipt | None = None,
    ) -> str: ...

    def apply_subscription(
        self, subscription: Subscription, *, sequence: int, now_ms: int, receipt: Receipt | None = None
    ) -> str: ...


class Shelf(Protocol):
    """Where the bookmark is kept."""

    def load(self) -> ImportRow | None: ...

    def keep(self, row: ImportRow) -> None: ...

    def clear(self) -> None: ...


async def import_customers(
    lists: Lists,
    book: ImportBook,
    shelf: Shelf,
    clock: Clock,
    backoff: Backoff,
    *,
    bookmark: Bookmark | None = None,
    from_start: bool = False,
    on_progress: Callable[[ImportProgress], None] = lambda _: None,
    tries_max: int = 8,
) -> ImportProgress:
    """Bring every customer and every subscription that has not ended into the ledger.

    Goes on where an interrupted import was, unless `from_start` or another `bookmark` says otherwise. `on_progress` is
    called after each page that is written and remembered. A page that fails for now is tried `tries_max` times with
    delays; then Transient is raised, and the next import goes on there. Raises Permanent too.
    """
    done = {Phase.CUSTOMERS: 0, Phase.SUBSCRIPTIONS: 0}
    if bookmark is None and not from_start:
        bookmark = await _take_up(shelf, done)
    bookmark = bookmark or Bookmark()
    phases = list(Phase)
    for phase in phases[phases.index(bookmark.phase) :]:
        after: str | None = bookmark.after if phase is bookmark.phase and bookmark.after else None
        resumed = after is not None
        while True:
            try:
                number, after = await _page_with_tries(lists, book, clock, backoff, tries_max, phase, after)
            except Permanent as error:
                if not resumed:
                    raise
                # The customer or subscription the bookmark names has been deleted since: Stripe cannot go on there.
                _log.warning("import.bookmark_lost", phase=phase, after=after, detail=error.detail)
                resumed, after, done[phase] = False, None, 0
                continue
            resumed = False
            done[phase] += number
            finished = after is None and phase is phases[-1]
            following = phases[min(phases.index(phase) + 1, len(phases) - 1)]
            mark = Bookmark(phase, after) if after is not None else Bookmark(following)
            progress = ImportProgress(done[Phase.CUSTOMERS], done[Phase.SUBSCRIPTIONS], mark, finished)
            await _remember(shelf, progress, clock)
            on_progress(progress)
            if after is None:
                break
    return ImportProgress(done[Phase.CUSTOMERS], done[Phase.SUBSCRIPTIONS], Bookmark(), finished=True)


async def _take_up(shelf: Shelf, done: dict[Phase, int]) -> Bookmark | None:
    """The bookmark of an interrupted import, and in `done` what it had brought in."""
    try:
        row = await asyncio.to_thread(shelf.load)
    except LedgerError as error:
        raise translate_ledger_error(error) from error
    if row is None:
        return None
    done |= {Phase.CUSTOMERS: row.customers, Phase.SUBSCRIPTIONS: row.subscriptions}
    _log.info("import.resumed", bookmark=row.bookmark)
    return Bookmark.parse(row.bookmark)


async def _remember(shelf: Shelf, progress: ImportProgress, clock: Clock) -> None:
    row = ImportRow(str(progress.bookmark), progress.customers, progress.subscriptions, clock.now_ms())
    try:
        if progress.finished:
            await asyncio.to_thread(shelf.clear)
        else:
            await asyncio.to_thread(shelf.keep, row)
    except LedgerError as error:
        raise translate_ledger_error(error) from error


async def _import_page(
    lists: Lists, book: ImportBook, clock: Clock, phase: Phase, after: str | None
) -> tuple[int, str | None]:
    """Fetch a page under a number taken before, and write it. How many objects, and where the next page begins."""
    try:
        sequence = await asyncio.to_thread(book.take_sequence)
        if phase is Phase.CUSTOMERS:
            customers, following = await lists.customer_page(after)
            for customer in customers:
                await asyncio.to_thread(
                    book.apply_customer, customer, sequence=sequence, now_ms=clock.now_ms()
                )
            return len(customers), following
        subscriptions, following = await lists.subscription_page(after)
        for subscription in subscriptions:
            await asyncio.to_thread(
                book.apply_subscription, subscription, sequence=sequence, now_ms=clock.now_ms()
            )
        return len(subscriptions), following
    except LedgerError as error:
        raise translate_ledger_error(error) from error


async def _page_with_tries(
    lists: Lists,
    book: ImportBook,
    clock: Clock,
    backoff: Backoff,
    tries_max: int,
    phase: Phase,
    after: str | None,
) -> tuple[int, str | None]:
    tries = 0
    while True:
        try:
            return await _import_page(lists, book, clock, phase, after)
        except Transient as error:
            tries += 1
            if tries >= tries_max:
                raise
            _log.warning("import.delayed", reason=error.reason, detail=error.detail)
            await clock.sleep_seconds(backoff.delay_seconds(tries - 1))
