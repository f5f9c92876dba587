"""The book of customers on both databases: the guard, periods, invoices and the inbox."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Engine, select

from tollgate.ledger.billing import (
    Customer,
    Invoice,
    InvoiceLine,
    Item,
    PeriodState,
    Receipt,
    Rejection,
    Subscription,
)
from tollgate.ledger.customers import PROJECTED, SUPERSEDED, CustomerBook
from tollgate.ledger.directory import DEFAULT_RULES, directory_version
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.inbox import list_parked_events, list_rejections
from tollgate.ledger.tables import customers, invoices, item_periods, subscriptions

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_800_000_000_000


@pytest.fixture
def book(ledger: Engine) -> CustomerBook:
    """A book under the default rules."""
    return CustomerBook(ledger, DEFAULT_RULES)


def item(period: int, *, item_id: str = "si_1", event_name: str | None = "calls", days: int = 1) -> Item:
    """An item in its `period`-th period, counted from 0, each `days` long."""
    start_ms = START_MS + period * days * DAY_MS
    return Item(item_id, "price_1", event_name, start_ms, start_ms + days * DAY_MS)


def subscription(*items: Item, status: str = "active", ended_ms: int | None = None) -> Subscription:
    return Subscription("sub_1", "cus_1", status, START_MS, ended_ms, {}, items)


def invoice(
    period: int, status: str, *, lines: Sequence[InvoiceLine] = (), reason: str = "subscription_cycle"
) -> Invoice:
    """The invoice that ends the `period`-th day."""
    end_ms = START_MS + (period + 1) * DAY_MS
    return Invoice(
        f"in_{period}", "cus_1", "sub_1", status, reason, end_ms - DAY_MS, end_ms, end_ms, None, None, tuple(lines)
    )  # fmt: skip


def line(period: int, item_id: str = "si_1") -> InvoiceLine:
    start_ms = START_MS + period * DAY_MS
    return InvoiceLine(item_id, "price_1", "calls", start_ms, start_ms + DAY_MS)


def receipt(event_id: str = "evt_1", created_s: int = 1) -> Receipt:
    return Receipt(event_id, "customer.updated", "cus_1", "cus_1", created_s)


def periods(engine: Engine) -> dict[tuple[str, int], tuple[int, str, str | None]]:
    """By item and day of start: length in days (end minus start), state and event name."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(select(item_periods)).all()
    return {
        (row.item_id, (row.period_start_ms - START_MS) // DAY_MS): (
            (row.period_end_ms - row.period_start_ms) // HOUR_MS,
            row.state,
            row.event_name,
        )
        for row in rows
    }


def apply(book: CustomerBook, found: Subscription | Invoice | Customer, now_ms: int = START_MS) -> str:
    """Write something as fetched just now."""
    sequence = book.take_sequence()
    if isinstance(found, Subscription):
        return book.apply_subscription(found, sequence=sequence, now_ms=now_ms)
    if isinstance(found, Invoice):
        return book.apply_invoice(found, sequence=sequence, now_ms=now_ms)
    return book.apply_customer(found, sequence=sequence, now_ms=now_ms)


def test_sequence_numbers_rise_by_one(book: CustomerBook) -> None:
    """Each number is higher than the one before."""
    first = book.take_sequence()
    assert [book.take_sequence() for _ in range(3)] == [first + 1, first + 2, first + 3]


def test_sequence_numbers_are_unique_over_two_connections(ledger: Engine, second: Engine) -> None:
    """Two processes never get the same number."""
    taken: list[int] = []

    def take(engine: Engine) -> None:
        book = CustomerBook(engine, DEFAULT_RULES)
        for _ in range(20):
            taken.append(book.take_sequence())

    threads = [threading.Thread(target=take, args=(engine,)) for engine in (ledger, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 40


def test_slow_fetch_never_overwrites_a_newer_one(book: CustomerBook, ledger: Engine) -> None:
    """The customer fetched under the higher number stays, whichever was written last."""
    slow, fast = book.take_sequence(), book.take_sequence()
    newer = Customer("cus_1", "new@example.com", "New")
    older = Customer("cus_1", "old@example.com", "Old")
    assert book.apply_customer(newer, sequence=fast, now_ms=2) == PROJECTED
    assert book.apply_customer(older, sequence=slow, now_ms=3) == SUPERSEDED
    with read_snapshot(ledger) as connection:
        row = connection.execute(select(customers)).one()
    assert (row.email, row.name, row.sequence, row.updated_ms) == ("new@example.com", "New", fast, 2)


def test_slow_fetch_changes_no_period(book: CustomerBook, ledger: Engine) -> None:
    """A superseded subscription leaves periods and mappings alone."""
    slow, fast = book.take_sequence(), book.take_sequence()
    book.apply_subscription(subscription(item(1)), sequence=fast, now_ms=START_MS)
    version = directory_version(ledger)
    assert book.apply_subscription(subscription(item(0)), sequence=slow, now_ms=START_MS) == SUPERSEDED
    assert periods(ledger) == {("si_1", 1): (24, "open", "calls")}
    assert directory_version(ledger) == version


def test_a_new_period_opens_a_row_and_the_previous_stays(book: CustomerBook, ledger: Engine) -> None:
    """History grows by a row a period; both stay open until an invoice says otherwise."""
    apply(book, subscription(item(0)))
    apply(book, subscription(item(1)))
    assert periods(ledger) == {("si_1", 0): (24, "open", "calls"), ("si_1", 1): (24, "open", "calls")}


def test_the_same_subscription_again_changes_nothing(book: CustomerBook, ledger: Engine) -> None:
    """The directory's version rises with changes only."""
    apply(book, subscription(item(0)))
    version = directory_version(ledger)
    apply(book, subscription(item(0)))
    assert directory_version(ledger) == version
    apply(book, subscription(item(1)))
    assert directory_version(ledger) == version + 1


def test_an_unmetered_item_has_no_period(book: CustomerBook, ledger: Engine) -> None:
    """Usage cannot reach a licensed price."""
    apply(book, subscription(item(0, event_name=None)))
    assert periods(ledger) == {}


@pytest.mark.parametrize("status", ["open", "paid", "uncollectible", "void"])
def test_a_finalized_invoice_closes_its_period(book: CustomerBook, ledger: Engine, status: str) -> None:
    """Only the period that ends where the invoice ends is closed."""
    apply(book, subscription(item(0)))
    apply(book, subscription(item(1)))
    apply(book, invoice(0, status))
    assert {key: row[1] for key, row in periods(ledger).items()} == {
        ("si_1", 0): "closed",
        ("si_1", 1): "open",
    }


@pytest.mark.parametrize("status", ["draft", "deleted"])
def test_a_draft_closes_nothing(book: CustomerBook, ledger: Engine, status: str) -> None:
    """A draft still takes usage, a deleted one never took any."""
    apply(book, subscription(item(0)))
    apply(book, subscription(item(1)))
    apply(book, invoice(0, status, lines=[line(0)]))
    assert periods(ledger)["si_1", 0][1] == "open"


def test_a_subscriptions_first_invoice_closes_nothing(book: CustomerBook, ledger: Engine) -> None:
    """Its metered line names the period that has just begun."""
    apply(book, subscription(item(0)))
    first = replace(
        invoice(0, "paid", lines=[line(0)], reason="subscription_create"),
        created_ms=START_MS,
        period_start_ms=START_MS,
        period_end_ms=START_MS,
    )
    apply(book, first)
    assert periods(ledger)["si_1", 0][1] == "open"


def test_an_invoice_line_closes_exactly_its_item(book: CustomerBook, ledger: Engine) -> None:
    """Lines name item and period even where the invoice's own bounds say nothing."""
    apply(book, subscription(item(0), item(0, item_id="si_2")))
    apply(book, subscription(item(1), item(1, item_id="si_2")))
    apply(book, invoice(0, "paid", lines=[line(0, "si_2")], reason="manual"))
    assert periods(ledger)["si_1", 0][1] == "open"
    assert periods(ledger)["si_2", 0][1] == "closed"


def test_a_period_nobody_saw_is_learnt_from_its_draft(book: CustomerBook, ledger: Engine) -> None:
    """Webhooks were down for all of day 1; its usage can still reach the draft, until that is finalized."""
    apply(book, subscription(item(0)))
    apply(book, subscription(item(2)))
    apply(book, invoice(1, "draft", lines=[line(1)]))
    assert periods(ledger)["si_1", 1] == (24, "open", "calls")
    apply(book, invoice(1, "open", lines=[line(1)]))
    assert periods(ledger)["si_1", 1] == (24, "closed", "calls")


def test_a_learnt_period_never_overlaps(book: CustomerBook, ledger: Engine) -> None:
    """A line whose period crosses a known one of its item adds no second place for the same usage."""
    apply(book, subscription(item(0)))
    start_ms = START_MS + HOUR_MS
    crossing = InvoiceLine("si_1", "price_1", "calls", start_ms, start_ms + HOUR_MS)
    apply(book, invoice(0, "draft", lines=[crossing]))
    assert list(periods(ledger)) == [("si_1", 0)]


def test_a_moved_anchor_cuts_the_earlier_period(book: CustomerBook, ledger: Engine) -> None:
    """An item's periods never overlap, closed ones included."""
    whole = item(0)
    moved_ms = START_MS + 6 * HOUR_MS
    moved = replace(whole, period_start_ms=moved_ms, period_end_ms=moved_ms + DAY_MS)
    apply(book, subscription(whole))
    apply(book, subscription(moved))
    with read_snapshot(ledger) as connection:
        rows = connection.execute(select(item_periods).order_by(item_periods.c.period_start_ms)).all()
    assert [(row.period_start_ms, row.period_end_ms, row.state) for row in rows] == [
        (START_MS, moved_ms, "open"),
        (moved_ms, moved_ms + DAY_MS, "open"),
    ]


def test_a_lengthened_period_is_brought_up_to_date(book: CustomerBook, ledger: Engine) -> None:
    """A trial that is extended keeps its start."""
    apply(book, subscription(item(0)))
    apply(book, subscription(replace(item(0), period_end_ms=START_MS + 3 * DAY_MS)))
    assert periods(ledger) == {("si_1", 0): (72, "open", "calls")}


def pieces(engine: Engine) -> list[tuple[int, int, str, str]]:
    """Start and end in hours, price and state, in order."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(select(item_periods).order_by(item_periods.c.period_start_ms)).all()
    return [
        (
            (row.period_start_ms - START_MS) // HOUR_MS,
            (row.period_end_ms - START_MS) // HOUR_MS,
            row.price_id,
            row.state,
        )
        for row in rows
    ]


def priced(price: str, since_hours: int | None = None, period: int = 0) -> Subscription:
    """The subscription with another price, since when an event has said."""
    since_ms = None if since_hours is None else START_MS + since_hours * HOUR_MS
    return subscription(replace(item(period), price_id=price, price_since_ms=since_ms))


def test_a_price_change_cuts_the_period_where_the_event_says(book: CustomerBook, ledger: Engine) -> None:
    """The part before is closed: Stripe has billed it. Fetching the same again changes nothing."""
    apply(book, priced("price_1"))
    version = directory_version(ledger)
    apply(book, priced("price_2", 6), now_ms=START_MS + 9 * HOUR_MS)
    cut = [(0, 6, "price_1", "closed"), (6, 24, "price_2", "open")]
    assert pieces(ledger) == cut
    assert directory_version(ledger) == version + 1
    apply(book, priced("price_2"), now_ms=START_MS + 10 * HOUR_MS)
    apply(book, priced("price_2", 6), now_ms=START_MS + 10 * HOUR_MS)
    assert pieces(ledger) == cut
    assert directory_version(ledger) == version + 1


def test_a_price_change_nothing_dates_is_dated_when_it_is_seen(book: CustomerBook, ledger: Engine) -> None:
    """Never too early: what is stamped before the change and sent after it is on no invoice."""
    apply(book, priced("price_1"))
    apply(book, priced("price_2"), now_ms=START_MS + 9 * HOUR_MS)
    assert pieces(ledger) == [(0, 9, "price_1", "closed"), (9, 24, "price_2", "open")]


def test_prices_may_change_again_and_back(book: CustomerBook, ledger: Engine) -> None:
    """Each change cuts the last part; the next period is whole."""
    apply(book, priced("price_1"))
    apply(book, priced("price_2", 6))
    apply(book, priced("price_1", 12))
    apply(book, subscription(item(1)))
    assert pieces(ledger) == [
        (0, 6, "price_1", "closed"),
        (6, 12, "price_2", "closed"),
        (12, 24, "price_1", "open"),
        (24, 48, "price_1", "open"),
    ]


def test_an_invoice_closes_the_part_of_a_period_it_bills(book: CustomerBook, ledger: Engine) -> None:
    """The line begins where the price changed; the part before stays closed."""
    apply(book, priced("price_1"))
    apply(book, priced("price_2", 6))
    part = replace(line(0), price_id="price_2", period_start_ms=START_MS + 6 * HOUR_MS)
    apply(book, invoice(0, "draft", lines=[part]))
    assert pieces(ledger)[1] == (6, 24, "price_2", "open")
    apply(book, invoice(0, "paid", lines=[part]))
    assert pieces(ledger) == [(0, 6, "price_1", "closed"), (6, 24, "price_2", "closed")]


def test_a_subscription_that_ends_after_a_price_change_loses_the_last_part(
    book: CustomerBook, ledger: Engine
) -> None:
    """The part before had been billed."""
    apply(book, priced("price_1"))
    apply(book, priced("price_2", 6))
    ended = replace(priced("price_2"), status="canceled", ended_ms=START_MS + 8 * HOUR_MS)
    apply(book, ended)
    assert pieces(ledger) == [(0, 6, "price_1", "closed"), (6, 24, "price_2", "removed")]


def test_a_closed_period_and_the_next_are_no_parts_of_one(book: CustomerBook, ledger: Engine) -> None:
    """Stripe moves the item back over both: the second period is gone, since no price cut it off the first."""
    apply(book, priced("price_1"))
    apply(book, invoice(0, "paid", lines=[line(0)]))
    apply(book, priced("price_1", period=1))
    apply(book, subscription(replace(item(0), period_end_ms=START_MS + 36 * HOUR_MS)))
    assert pieces(ledger) == [(0, 36, "price_1", "closed"), (24, 48, "price_1", "removed")]


@pytest.mark.parametrize("since_hours", [-3, 0, 24, 30])
def test_a_change_outside_the_period_cuts_nothing(
    book: CustomerBook, ledger: Engine, since_hours: int
) -> None:
    """A change at its very start, or an event heard of when the period is over, is a new price for all of it."""
    apply(book, priced("price_1"))
    apply(book, priced("price_2", since_hours))
    assert pieces(ledger) == [(0, 24, "price_2", "open")]


def test_a_removed_item_leaves_what_was_over_before(book: CustomerBook, ledger: Engine) -> None:
    """The current period is removed; the one before waits for its invoice."""
    apply(book, subscription(item(0), item(0, item_id="si_2")))
    apply(book, subscription(item(1), item(1, item_id="si_2")))
    apply(book, subscription(item(1)), now_ms=START_MS + DAY_MS + HOUR_MS)
    assert {key: row[1] for key, row in periods(ledger).items()} == {
        ("si_1", 0): "open",
        ("si_1", 1): "open",
        ("si_2", 0): "open",
        ("si_2", 1): "removed",
    }


def test_a_subscription_cancelled_at_its_periods_end_keeps_that_period(
    book: CustomerBook, ledger: Engine
) -> None:
    """The final invoice is a draft for an hour, and the last usage belongs on it."""
    apply(book, subscription(item(0)))
    apply(book, subscription(item(0), status="canceled", ended_ms=START_MS + DAY_MS))
    assert periods(ledger) == {("si_1", 0): (24, "open", "calls")}


def test_a_subscription_cancelled_at_once_loses_its_period(book: CustomerBook, ledger: Engine) -> None:
    """Stripe drops the usage of a period that is cut off."""
    apply(book, subscription(item(0)))
    apply(book, subscription(item(0), status="canceled", ended_ms=START_MS + HOUR_MS))
    assert periods(ledger) == {("si_1", 0): (24, "removed", "calls")}


def test_a_deleted_customer_loses_unfinished_periods(book: CustomerBook, ledger: Engine) -> None:
    """Deletion cancels subscriptions; what was over before stays."""
    apply(book, Customer("cus_1"))
    apply(book, subscription(item(0)))
    apply(book, subscription(item(1)))
    book.apply_customer(
        Customer("cus_1", deleted=True),
        sequence=book.take_sequence(),
        now_ms=START_MS + 5 * DAY_MS,
        deleted_ms=START_MS + DAY_MS + HOUR_MS,
    )
    assert {key: row[1] for key, row in periods(ledger).items()} == {
        ("si_1", 0): "open",
        ("si_1", 1): "removed",
    }


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_facts_in_any_order_leave_the_same_periods(
    book: CustomerBook, ledger: Engine, order: tuple[int, ...]
) -> None:
    """Cancelled with an immediate final invoice: subscription, invoice and an older one, heard of in any order."""
    cut = replace(line(1), period_end_ms=START_MS + DAY_MS + HOUR_MS)
    final = replace(
        invoice(1, "paid", lines=[cut], reason="subscription_update"),
        invoice_id="in_final",
        created_ms=START_MS + DAY_MS + HOUR_MS,
        period_end_ms=START_MS + DAY_MS + HOUR_MS,
    )
    facts: list[Subscription | Invoice | Customer] = [
        subscription(item(1), status="canceled", ended_ms=START_MS + DAY_MS + HOUR_MS),
        invoice(0, "paid", lines=[line(0)]),
        final,
        Customer("cus_1", "a@example.com"),
    ]
    apply(book, subscription(item(0)))
    apply(book, subscription(item(1)))
    for index in order:
        apply(book, facts[index], now_ms=START_MS + 2 * DAY_MS)
    assert periods(ledger) == {("si_1", 0): (24, "closed", "calls"), ("si_1", 1): (24, "closed", "calls")}


def test_rows_hold_what_was_fetched(book: CustomerBook, ledger: Engine) -> None:
    """Every field of subscription and invoice is stored as given."""
    apply(
        book,
        Subscription("sub_9", "cus_9", "past_due", 5, 7, {"plan": "gold", "empty": ""}, ()),
        now_ms=11,
    )
    apply(book, Invoice("in_9", "cus_9", "sub_9", "draft", "manual", 1, 2, 3, 4, None), now_ms=11)
    with read_snapshot(ledger) as connection:
        stored = connection.execute(select(subscriptions)).one()
        billed = connection.execute(select(invoices)).one()
    assert stored._mapping["metadata"] == {"plan": "gold", "empty": ""}
    assert (stored.subscription_id, stored.customer_id, stored.status) == ("sub_9", "cus_9", "past_due")
    assert (stored.start_ms, stored.ended_ms, stored.updated_ms) == (5, 7, 11)
    assert tuple(billed)[:-1] == ("in_9", "cus_9", "sub_9", "draft", "manual", 1, 2, 3, 4, None)


def test_the_inbox_knows_what_is_done(book: CustomerBook) -> None:
    """An event is done once it is projected, in the same transaction."""
    assert book.done_events(["evt_1", "evt_2"]) == frozenset()
    assert book.newest_event_s() is None
    book.apply_customer(
        Customer("cus_1"), sequence=book.take_sequence(), now_ms=1, receipt=receipt("evt_1", 77)
    )
    assert book.done_events(["evt_1", "evt_2"]) == {"evt_1"}
    assert book.done_events([]) == frozenset()
    assert book.newest_event_s() == 77
    assert book.knows_customer("cus_1")
    assert not book.knows_customer("cus_2")


def test_a_parked_event_may_come_again(book: CustomerBook, ledger: Engine) -> None:
    """It counts as known for the poll, not as done; once projected it is no longer parked."""
    book.park(receipt(), "not_found", 5)
    assert book.done_events(["evt_1"]) == frozenset()
    assert book.done_events(["evt_1"], with_failed=True) == {"evt_1"}
    assert [event.outcome for event in list_parked_events(ledger)] == ["failed:not_found"]
    book.record(receipt(), "seen", 6)
    assert book.done_events(["evt_1"]) == {"evt_1"}
    assert list_parked_events(ledger) == ()
    book.park(receipt(), "internal", 7)
    assert list_parked_events(ledger) == (), "a projected event is never parked afterwards"


def test_rejections_are_numbered_as_they_are_committed(book: CustomerBook, ledger: Engine) -> None:
    """A reader with a cursor sees each identifier once; a second report of one changes nothing."""
    first = [Rejection("id_b", "no_meter", "gone", 9), Rejection("id_a", "no_meter", "gone", 9)]
    assert book.apply_rejections(first, now_ms=1, receipt=receipt("evt_1")) == 2
    again = [Rejection("id_a", "archived_meter", "again", 10), Rejection("id_c", "archived_meter", "x", 10)]
    assert book.apply_rejections(again, now_ms=2, receipt=receipt("evt_2")) == 1
    stored = list_rejections(ledger)
    assert [(row.identifier, row.code, row.event_id) for row in stored] == [
        ("id_b", "no_meter", "evt_1"),
        ("id_a", "no_meter", "evt_1"),
        ("id_c", "archived_meter", "evt_2"),
    ]
    assert list_rejections(ledger, stored[1].sequence) == stored[2:]


def test_a_failing_transaction_leaves_nothing(
    book: CustomerBook, ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Object, periods, mappings and inbox entry stand or fall together."""
    before = directory_version(ledger)

    def fail(*_: object) -> None:
        raise RuntimeError("the process died here")

    monkeypatch.setattr("tollgate.ledger.customers.record_event", fail)
    with pytest.raises(RuntimeError, match="died"):
        book.apply_subscription(
            subscription(item(0)), sequence=book.take_sequence(), now_ms=1, receipt=receipt()
        )
    with read_snapshot(ledger) as connection:
        assert connection.execute(select(subscriptions)).all() == []
    assert periods(ledger) == {}
    assert directory_version(ledger) == before


def test_states_are_the_words_of_the_table() -> None:
    """Another service reads these words from the column."""
    assert [state.value for state in PeriodState] == ["open", "closed", "removed"]
