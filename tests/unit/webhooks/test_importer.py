"""The import: every page under a number of its own, resumable, harmless to repeat."""

from __future__ import annotations

import contextlib
import random

import pytest

from services.webhooks.errors import Permanent, PermanentReason, Transient, TransientReason
from services.webhooks.importer import Bookmark, ImportProgress, Phase, import_customers
from tests.unit.webhooks.fakes import FakeBook
from tollgate.ledger.billing import Customer, Subscription
from tollgate.ledger.imports import ImportRow
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import ManualClock, SystemClock


class Lists:
    """Customers and subscriptions in pages of two; fails by a script."""

    def __init__(self, customers: int, subscriptions: int) -> None:
        self.customers = [Customer(f"cus_{n}") for n in range(customers)]
        self.subscriptions = [
            Subscription(f"sub_{n}", f"cus_{n}", "active", 0, None, {}, ()) for n in range(subscriptions)
        ]
        self.failures: list[Exception] = []
        self.asked: list[tuple[str, str | None]] = []

    async def customer_page(self, after: str | None) -> tuple[tuple[Customer, ...], str | None]:
        self.asked.append(("customers", after))
        if self.failures:
            raise self.failures.pop(0)
        ids = [customer.customer_id for customer in self.customers]
        begin = 0 if after is None else ids.index(after) + 1
        page = tuple(self.customers[begin : begin + 2])
        return page, page[-1].customer_id if begin + 2 < len(ids) else None

    async def subscription_page(self, after: str | None) -> tuple[tuple[Subscription, ...], str | None]:
        self.asked.append(("subscriptions", after))
        ids = [subscription.subscription_id for subscription in self.subscriptions]
        begin = 0 if after is None else ids.index(after) + 1
        page = tuple(self.subscriptions[begin : begin + 2])
        return page, page[-1].subscription_id if begin + 2 < len(ids) else None


class InstantClock(SystemClock):
    """Never waits."""

    async def sleep_seconds(self, seconds: float) -> None:
        return None


class FakeShelf:
    """Keeps a bookmark in memory."""

    def __init__(self) -> None:
        self.row: ImportRow | None = None

    def load(self) -> ImportRow | None:
        return self.row

    def keep(self, row: ImportRow) -> None:
        self.row = row

    def clear(self) -> None:
        self.row = None


BACKOFF = Backoff(1, 2, rng=random.Random(1))


async def test_everything_is_brought_in() -> None:
    """Customers first, since mappings need them; the last progress says finished."""
    lists, book, seen = Lists(5, 3), FakeBook(), list[ImportProgress]()
    done = await import_customers(lists, book, FakeShelf(), ManualClock(), BACKOFF, on_progress=seen.append)
    assert (done.customers, done.subscriptions) == (5, 3)
    assert set(book.rows) == {f"cus_{n}" for n in range(5)} | {f"sub_{n}" for n in range(3)}
    assert [(p.customers, p.subscriptions, str(p.bookmark), p.finished) for p in seen] == [
        (2, 0, "customers:cus_1", False),
        (4, 0, "customers:cus_3", False),
        (5, 0, "subscriptions:", False),
        (5, 2, "subscriptions:sub_1", False),
        (5, 3, "subscriptions:", True),
    ]


async def test_nothing_at_stripe_is_no_error() -> None:
    """A new account has neither."""
    done = await import_customers(Lists(0, 0), FakeBook(), FakeShelf(), ManualClock(), BACKOFF)
    assert (done.customers, done.subscriptions) == (0, 0)


async def test_each_page_has_a_number_taken_before_it() -> None:
    """What a webhook writes while the page is on its way stays."""
    lists, book = Lists(1, 0), FakeBook()

    async def page_then_webhook(after: str | None) -> tuple[tuple[Customer, ...], None]:
        newer = Customer("cus_0", "new@example.com")
        book.apply_customer(newer, sequence=book.take_sequence(), now_ms=0)
        return (Customer("cus_0", "old@example.com"),), None

    lists.customer_page = page_then_webhook  # type: ignore[method-assign]
    await import_customers(lists, book, FakeShelf(), ManualClock(), BACKOFF)
    assert book.rows["cus_0"][1] == Customer("cus_0", "new@example.com")


async def test_a_page_that_fails_for_now_is_tried_again() -> None:
    """Nothing is passed over."""
    lists, book = Lists(3, 0), FakeBook()
    lists.failures = [Transient(TransientReason.RATE_LIMITED, "") for _ in range(2)]
    await import_customers(lists, book, FakeShelf(), InstantClock(), BACKOFF)
    assert len(book.rows) == 3


async def test_an_interrupted_import_resumes_at_its_bookmark() -> None:
    """The pages before it are not asked for again."""
    lists, book, seen = Lists(4, 2), FakeBook(), list[ImportProgress]()

    def fail_next(progress: ImportProgress) -> None:
        seen.append(progress)
        if len(seen) == 1:
            lists.failures = [Transient(TransientReason.STRIPE_UNREACHABLE, "") for _ in range(3)]

    with pytest.raises(Transient):
        await import_customers(
            lists, book, FakeShelf(), InstantClock(), BACKOFF, on_progress=fail_next, tries_max=3
        )
    assert len(book.rows) == 2
    lists.asked.clear()
    bookmark = Bookmark.parse(str(seen[-1].bookmark))
    await import_customers(lists, book, FakeShelf(), InstantClock(), BACKOFF, bookmark=bookmark)
    assert lists.asked == [("customers", "cus_1"), ("subscriptions", None)]
    assert len(book.rows) == 6


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("pages", range(1, 5))
async def test_an_import_that_was_killed_goes_on_by_itself(pages: int) -> None:
    """After any page: the pages before are not asked for again, and the counts go on."""
    lists, book, shelf = Lists(4, 3), FakeBook(), FakeShelf()
    left = pages

    def die(_: ImportProgress) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with contextlib.suppress(Killed):
        await import_customers(lists, book, shelf, InstantClock(), BACKOFF, on_progress=die)
    done = await import_customers(lists, book, shelf, InstantClock(), BACKOFF)
    assert (done.customers, done.subscriptions) == (4, 3)
    assert len(book.rows) == 7
    asked = [("customers", None), ("customers", "cus_1"), ("subscriptions", None), ("subscriptions", "sub_1")]
    # Killed after the last page nothing is left to go on with: it begins anew, which does no harm.
    assert lists.asked == (asked if pages < 4 else asked + asked)
    assert shelf.row is None


async def test_from_the_start_forgets_where_it_was() -> None:
    """On request, and also when the next import comes after one that ended."""
    lists, shelf = Lists(4, 0), FakeShelf()
    shelf.row = ImportRow("customers:cus_1", 2, 0, 0)
    done = await import_customers(lists, FakeBook(), shelf, InstantClock(), BACKOFF, from_start=True)
    assert done.customers == 4
    assert lists.asked[0] == ("customers", None)


async def test_a_bookmark_that_was_deleted_begins_its_phase_again() -> None:
    """Stripe cannot list after a customer that is gone; nothing is passed over."""
    lists, book, shelf = Lists(3, 0), FakeBook(), FakeShelf()
    shelf.row = ImportRow("customers:cus_gone", 2, 0, 0)
    lists.failures = [Permanent(PermanentReason.NOT_FOUND, "No such customer")]
    done = await import_customers(lists, book, shelf, InstantClock(), BACKOFF)
    assert (done.customers, len(book.rows)) == (3, 3)
    lists.failures = [Permanent(PermanentReason.REFUSED, "")]
    with pytest.raises(Permanent):
        await import_customers(lists, book, shelf, InstantClock(), BACKOFF)


@pytest.mark.parametrize("text", ["", "cus_1", "meters:x"])
def test_a_bookmark_that_is_none_is_refused(text: str) -> None:
    """With a ValueError, which the command line reports."""
    with pytest.raises(ValueError):
        Bookmark.parse(text)


def test_bookmarks_read_back() -> None:
    """What is printed can be given."""
    for bookmark in (Bookmark(), Bookmark(Phase.SUBSCRIPTIONS, "sub_1")):
        assert Bookmark.parse(str(bookmark)) == bookmark
