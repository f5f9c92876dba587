"""The import: every page under a number of its own, resumable, harmless to repeat."""

from __future__ import annotations

import random

import pytest

from services.webhooks.errors import Transient, TransientReason
from services.webhooks.importer import Bookmark, ImportProgress, Phase, import_customers
from tests.unit.webhooks.fakes import FakeBook
from tollgate.ledger.billing import Customer, Subscription
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


BACKOFF = Backoff(1, 2, rng=random.Random(1))


async def test_everything_is_brought_in() -> None:
    """Customers first, since mappings need them; the last progress says finished."""
    lists, book, seen = Lists(5, 3), FakeBook(), list[ImportProgress]()
    done = await import_customers(lists, book, ManualClock(), BACKOFF, on_progress=seen.append)
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
    done = await import_customers(Lists(0, 0), FakeBook(), ManualClock(), BACKOFF)
    assert (done.customers, done.subscriptions) == (0, 0)


async def test_each_page_has_a_number_taken_before_it() -> None:
    """What a webhook writes while the page is on its way stays."""
    lists, book = Lists(1, 0), FakeBook()

    async def page_then_webhook(after: str | None) -> tuple[tuple[Customer, ...], None]:
        newer = Customer("cus_0", "new@example.com")
        book.apply_customer(newer, sequence=book.take_sequence(), now_ms=0)
        return (Customer("cus_0", "old@example.com"),), None

    lists.customer_page = page_then_webhook  # type: ignore[method-assign]
    await import_customers(lists, book, ManualClock(), BACKOFF)
    assert book.rows["cus_0"][1] == Customer("cus_0", "new@example.com")


async def test_a_page_that_fails_for_now_is_tried_again() -> None:
    """Nothing is passed over."""
    lists, book = Lists(3, 0), FakeBook()
    lists.failures = [Transient(TransientReason.RATE_LIMITED, "") for _ in range(2)]
    await import_customers(lists, book, InstantClock(), BACKOFF)
    assert len(book.rows) == 3


async def test_an_interrupted_import_resumes_at_its_bookmark() -> None:
    """The pages before it are not asked for again."""
    lists, book, seen = Lists(4, 2), FakeBook(), list[ImportProgress]()

    def fail_next(progress: ImportProgress) -> None:
        seen.append(progress)
        if len(seen) == 1:
            lists.failures = [Transient(TransientReason.STRIPE_UNREACHABLE, "") for _ in range(3)]

    with pytest.raises(Transient):
        await import_customers(lists, book, InstantClock(), BACKOFF, on_progress=fail_next, tries_max=3)
    assert len(book.rows) == 2
    lists.asked.clear()
    bookmark = Bookmark.parse(str(seen[-1].bookmark))
    await import_customers(lists, book, InstantClock(), BACKOFF, bookmark=bookmark)
    assert lists.asked == [("customers", "cus_1"), ("subscriptions", None)]
    assert len(book.rows) == 6


@pytest.mark.parametrize("text", ["", "cus_1", "meters:x"])
def test_a_bookmark_that_is_none_is_refused(text: str) -> None:
    """With a ValueError, which the command line reports."""
    with pytest.raises(ValueError):
        Bookmark.parse(text)


def test_bookmarks_read_back() -> None:
    """What is printed can be given."""
    for bookmark in (Bookmark(), Bookmark(Phase.SUBSCRIPTIONS, "sub_1")):
        assert Bookmark.parse(str(bookmark)) == bookmark
