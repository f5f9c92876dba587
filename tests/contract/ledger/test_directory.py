"""The directory on both databases: which customer pays for an account, and from when to when."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Engine, insert

from tollgate.ledger.billing import Customer, Subscription
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.directory import (
    CustomerEntry,
    MappingRule,
    directory_version,
    list_customers,
    list_mappings,
    resolve,
)
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.tables import mappings

EVERY_RULE = tuple(MappingRule)


@pytest.fixture
def book(ledger: Engine) -> CustomerBook:
    """A book under every rule."""
    return CustomerBook(ledger, EVERY_RULE)


def put(
    book: CustomerBook,
    customer_id: str,
    email: str | None,
    now_ms: int,
    *,
    deleted: bool = False,
    deleted_ms: int | None = None,
) -> None:
    book.apply_customer(
        Customer(customer_id, None if deleted else email, deleted=deleted),
        sequence=book.take_sequence(),
        now_ms=now_ms,
        deleted_ms=deleted_ms,
    )


def put_subscription(
    book: CustomerBook, subscription_id: str, customer_id: str, now_ms: int, ended_ms: int | None = None
) -> None:
    status = "active" if ended_ms is None else "canceled"
    book.apply_subscription(
        Subscription(subscription_id, customer_id, status, 1, ended_ms, {}, ()),
        sequence=book.take_sequence(),
        now_ms=now_ms,
    )


def history(engine: Engine, account: str) -> list[tuple[str, int, int | None]]:
    """Customer, from and to of each mapping the account ever had."""
    return [(row.customer_id, row.from_ms, row.to_ms) for row in list_mappings(engine, account=account)]


def payers(engine: Engine, account: str, at_ms: int) -> list[str]:
    return [mapping.customer_id for mapping in resolve(engine, account, at_ms)]


def test_each_rule_makes_its_account(book: CustomerBook, ledger: Engine) -> None:
    """Four rules, four accounts, each remembering its rule."""
    put(book, "cus_1", "a@example.com", 100)
    put_subscription(book, "sub_1", "cus_1", 100)
    assert {row.account: row.rule for row in list_mappings(ledger)} == {
        "user:cus_1": "user=customer.id",
        "user:a@example.com": "user=customer.email",
        "company:cus_1": "company=customer.id",
        "company:sub_1": "company=subscription.id",
    }


def test_only_the_rules_chosen_apply(ledger: Engine) -> None:
    """With one rule there is one account."""
    put(CustomerBook(ledger, [MappingRule.USER_IS_CUSTOMER_EMAIL]), "cus_1", "a@example.com", 100)
    assert [row.account for row in list_mappings(ledger)] == ["user:a@example.com"]


def test_the_first_mapping_holds_from_the_beginning(book: CustomerBook, ledger: Engine) -> None:
    """Usage that waited for it is released, however old."""
    put(book, "cus_1", None, 1_000_000)
    assert payers(ledger, "user:cus_1", 0) == ["cus_1"]
    assert payers(ledger, "user:cus_1", 10**15) == ["cus_1"]


def test_a_changed_email_closes_the_old_and_opens_the_new(book: CustomerBook, ledger: Engine) -> None:
    """Bounds are half open: the moment of change belongs to nobody's old name."""
    put(book, "cus_1", "a@example.com", 100)
    version = directory_version(ledger)
    put(book, "cus_1", "b@example.com", 200)
    assert history(ledger, "user:a@example.com") == [("cus_1", 0, 200)]
    assert history(ledger, "user:b@example.com") == [("cus_1", 0, None)]
    assert payers(ledger, "user:a@example.com", 199) == ["cus_1"]
    assert payers(ledger, "user:a@example.com", 200) == []
    assert directory_version(ledger) == version + 1


def test_an_email_taken_over_holds_from_then_on(book: CustomerBook, ledger: Engine) -> None:
    """The second customer of an account does not get the first one's past."""
    put(book, "cus_1", "a@example.com", 100)
    put(book, "cus_1", "b@example.com", 200)
    put(book, "cus_2", "a@example.com", 300)
    assert history(ledger, "user:a@example.com") == [("cus_1", 0, 200), ("cus_2", 300, None)]
    assert payers(ledger, "user:a@example.com", 250) == []


def test_an_email_changed_back_reopens(book: CustomerBook, ledger: Engine) -> None:
    """A new interval begins; in the same millisecond the old one goes on."""
    put(book, "cus_1", "a@example.com", 100)
    put(book, "cus_1", None, 200)
    put(book, "cus_1", "a@example.com", 300)
    put(book, "cus_1", None, 300)
    put(book, "cus_1", "a@example.com", 300)
    assert history(ledger, "user:a@example.com") == [("cus_1", 0, 200), ("cus_1", 300, None)]


def test_a_shared_email_is_ambiguous(book: CustomerBook, ledger: Engine) -> None:
    """Both are shown, so that nobody is billed by chance."""
    put(book, "cus_1", "a@example.com", 100)
    put(book, "cus_2", "a@example.com", 200)
    assert payers(ledger, "user:a@example.com", 150) == ["cus_1"]
    assert payers(ledger, "user:a@example.com", 250) == ["cus_1", "cus_2"]


def test_a_deleted_customer_ends_at_its_deletion(book: CustomerBook, ledger: Engine) -> None:
    """Not when we heard of it."""
    put(book, "cus_1", "a@example.com", 100)
    put(book, "cus_1", None, 900, deleted=True, deleted_ms=500)
    assert {row.account: row.to_ms for row in list_mappings(ledger)} == {
        "user:cus_1": 500,
        "user:a@example.com": 500,
        "company:cus_1": 500,
    }


@pytest.mark.parametrize("stale", [False, True])
def test_a_deletions_time_may_come_late(book: CustomerBook, ledger: Engine, stale: bool) -> None:
    """A fetch that found the customer gone closes at once; the event that knows when corrects the time."""
    put(book, "cus_1", "a@example.com", 100)
    slow = book.take_sequence()
    put(book, "cus_1", None, 700, deleted=True)
    assert history(ledger, "user:cus_1") == [("cus_1", 0, 700)]
    version = directory_version(ledger)
    book.apply_customer(
        Customer("cus_1", deleted=True),
        sequence=slow if stale else book.take_sequence(),
        now_ms=900,
        deleted_ms=500,
    )
    assert history(ledger, "user:cus_1") == [("cus_1", 0, 500)]
    assert directory_version(ledger) == version + 1


def test_an_ended_subscription_ends_its_account(book: CustomerBook, ledger: Engine) -> None:
    """Seen alive or not, the account held until the subscription's end."""
    put(book, "cus_1", None, 100)
    put_subscription(book, "sub_1", "cus_1", 100)
    put_subscription(book, "sub_1", "cus_1", 900, ended_ms=400)
    put_subscription(book, "sub_2", "cus_1", 900, ended_ms=400)
    assert history(ledger, "company:sub_1") == history(ledger, "company:sub_2") == [("cus_1", 0, 400)]


def test_a_subscription_may_be_heard_of_before_its_customer(book: CustomerBook, ledger: Engine) -> None:
    """Webhooks come in any order."""
    put_subscription(book, "sub_1", "cus_1", 100)
    put(book, "cus_1", None, 200)
    assert history(ledger, "company:sub_1") == history(ledger, "user:cus_1") == [("cus_1", 0, None)]


def test_nothing_new_raises_no_version(book: CustomerBook, ledger: Engine) -> None:
    """Another name for the customer is no change of the directory."""
    put(book, "cus_1", "a@example.com", 100)
    version = directory_version(ledger)
    put(book, "cus_1", "a@example.com", 200)
    assert directory_version(ledger) == version


def test_mappings_by_other_hands_are_left_alone(book: CustomerBook, ledger: Engine) -> None:
    """A mapping under a rule unknown here survives every change of its customer."""
    with ledger_transaction(ledger) as connection:
        connection.execute(
            insert(mappings).values(
                account="key:abc", customer_id="cus_1", from_ms=5, to_ms=None, rule="by hand", created_ms=5
            )
        )
    put(book, "cus_1", "a@example.com", 100)
    put(book, "cus_1", "b@example.com", 200)
    assert history(ledger, "key:abc") == [("cus_1", 5, None)]


def test_changed_rules_are_applied_to_known_customers(ledger: Engine) -> None:
    """A rule that is gone closes its mappings, a new one opens its own; again changes nothing."""
    put(CustomerBook(ledger, [MappingRule.USER_IS_CUSTOMER_ID]), "cus_1", "a@example.com", 100)
    changed = CustomerBook(ledger, [MappingRule.USER_IS_CUSTOMER_EMAIL])
    assert changed.remap(500) == 1
    assert history(ledger, "user:cus_1") == [("cus_1", 0, 500)]
    assert history(ledger, "user:a@example.com") == [("cus_1", 0, None)]
    assert changed.remap(600) == 0


def test_customers_are_listed_with_what_is_theirs(book: CustomerBook, ledger: Engine) -> None:
    """Ended subscriptions and mappings are history, not a customer's present."""
    put(book, "cus_2", None, 100)
    put(book, "cus_2", None, 300, deleted=True, deleted_ms=200)
    put(book, "cus_1", "a@example.com", 100)
    put_subscription(book, "sub_2", "cus_1", 100)
    put_subscription(book, "sub_1", "cus_1", 100)
    put_subscription(book, "sub_0", "cus_1", 100, ended_ms=50)
    assert list_customers(ledger) == (
        CustomerEntry(
            "cus_1",
            "a@example.com",
            None,
            False,
            ("sub_1", "sub_2"),
            ("company:cus_1", "company:sub_1", "company:sub_2", "user:a@example.com", "user:cus_1"),
            100,
        ),
        CustomerEntry("cus_2", None, None, True, (), (), 300),
    )
    assert {row.account for row in list_mappings(ledger, customer_id="cus_2")} == {
        "user:cus_2",
        "company:cus_2",
    }


def test_two_processes_cannot_both_be_an_accounts_first(ledger: Engine, second: Engine) -> None:
    """Of two customers with one e-mail written at once, one holds from 0 and one from its own time."""
    barrier = threading.Barrier(2)

    def write(engine: Engine, customer_id: str) -> None:
        book = CustomerBook(engine, EVERY_RULE)
        sequence = book.take_sequence()
        barrier.wait()
        book.apply_customer(Customer(customer_id, "a@example.com"), sequence=sequence, now_ms=500)

    threads = [
        threading.Thread(target=write, args=(engine, f"cus_{number}"))
        for number, engine in enumerate((ledger, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row[1] for row in history(ledger, "user:a@example.com")) == [0, 500]
    assert len(list_mappings(ledger)) == 6
