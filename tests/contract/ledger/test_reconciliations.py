"""What reconciliation reads of the ledger, what it keeps, and the one repair it has, on each database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import insert, update

from tests.contract.ledger.postings_world import HOUR_MS, NOW, T0, World
from tests.unit.metering.links import of
from tollgate.ledger.billing import Invoice, InvoiceLine
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.directory import DEFAULT_RULES
from tollgate.ledger.engine import ledger_transaction, open_ledger
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.reconciliation_subjects import due_subjects, find_subjects
from tollgate.ledger.reconciliation_views import SubjectView, load_view
from tollgate.ledger.reconciliations import (
    DAY_MS,
    Reconciliation,
    find_posting_findings,
    load_reconciliation,
    load_reconciliations,
    reads_taken,
    store_reconciliation,
    summarise_drift,
    take_read,
    void_missing_posting,
)
from tollgate.ledger.sending import apply_rejections
from tollgate.ledger.tables import item_periods, postings, usage
from tollgate.metering.comparison import compare_postings
from tollgate.metering.reconciliation import Cause, Finding, Remedy, Standing, Subject, Verdict, worst

START, END = T0 - 100 * HOUR_MS, T0 + 600 * HOUR_MS
SUBJECT = Subject("cus_1", "calls", START, END)


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """A customer with one account, an open period and a live meter."""
    made = World.make(ledger_url)
    made.meter()
    made.customer("cus_1", "user:a")
    made.period("cus_1")
    yield made
    made.engine.dispose()


def seen(world: World, subject: Subject = SUBJECT) -> Any:
    """Counted, delivered, and what explains the rest."""
    view = load_view(world.engine, subject)
    posted = compare_postings(view.in_period, view.missing)
    assert posted.counted == posted.delivered + sum(f.quantity for f in posted.findings)
    return posted.counted, posted.delivered, {f.cause: f.quantity for f in posted.findings}


def standings(view: SubjectView) -> list[tuple[Decimal, Standing]]:
    return [(link.sent, link.standing) for link in view.links]


def bill(world: World, status: str, quantity: str, *, start_ms: int = START, number: str = "in_1") -> None:
    """An invoice with one line, as webhooks write it."""
    book = CustomerBook(world.engine, DEFAULT_RULES)
    line = InvoiceLine("si_1", "price_1", "calls", start_ms, END, quantity, "il_1")
    final_ms = END + HOUR_MS if status == "paid" else None
    invoice = Invoice(
        number, "cus_1", "sub_1", status, "subscription_cycle", START, END, END, END + 5, final_ms, (line,)
    )
    book.apply_invoice(invoice, sequence=book.take_sequence(), now_ms=NOW)


# --------------------------------------------------------------------------------------------- the view


def test_usage_is_followed_from_counted_to_delivered(world: World) -> None:
    """Counted since the last planning, planned, delivered, counted on: at each step the parts add up to the whole."""
    world.use(1, "user:a", 10)
    assert seen(world) == (10, 0, {Cause.NOT_PLANNED: 10})
    world.plan()
    assert seen(world) == (10, 0, {Cause.WAITING: 10})
    world.deliver()
    assert seen(world) == (10, 10, {})
    world.use(1, "user:a", 14)
    world.use(1, "user:a", 3, window=1)
    assert seen(world) == (17, 10, {Cause.NOT_PLANNED: 7})
    world.settle_all()
    assert seen(world) == (17, 17, {})


def test_postings_on_their_way_are_named_by_where_they_are(world: World) -> None:
    """Unknown, parked untried, parked after a try, rehearsed."""
    for window, quantity in enumerate((1, 2, 4, 8)):
        world.use(1, "user:a", quantity, window=window)
    world.plan()
    planned = world.journal()
    world.state(planned[0], PostingState.UNKNOWN)
    world.state(planned[1], PostingState.PARKED)
    world.state(planned[2], PostingState.DELIVERED)
    with ledger_transaction(world.engine) as connection:
        connection.execute(
            update(postings).where(postings.c.posting_key == planned[3].posting_key).values(state="parked")
        )
    assert seen(world)[2].keys() == {Cause.IN_FLIGHT, Cause.PARKED}
    found = sorted(standings(load_view(world.engine, SUBJECT)))
    assert [standing for _, standing in found].count(Standing.DOUBTFUL) == 2
    assert {standing for _, standing in found} == {Standing.AT_STRIPE, Standing.DOUBTFUL, Standing.PARKED}


def test_held_usage_has_its_reason(world: World) -> None:
    """Without a place to go it is held; whose it is, is known by the mapping."""
    with ledger_transaction(world.engine) as connection:
        connection.execute(update(item_periods).values(state="closed"))
    world.use(1, "user:a", 10)
    world.use(1, "user:stranger", 99)
    world.plan()
    counted, _, causes = seen(world)
    assert of(counted, causes) == (10, {Cause.HELD: 10})
    view = load_view(world.engine, SUBJECT)
    assert [part.hold_reason for part in view.missing] == ["closed"]


def test_a_void_link_and_its_reversal_leave_what_is_owed(world: World) -> None:
    """Refused after its 2xx, taken back, posted again: at no step is anything counted twice or lost."""
    world.use(1, "user:a", 10)
    world.plan()
    (posting,) = world.deliver()
    world.reject(posting.identifier, "archived_meter")
    apply_rejections(world.engine, world.lease, world.now_ms)
    assert seen(world) == (10, 0, {Cause.NOT_PLANNED: 10})
    world.settle_all()
    assert seen(world) == (10, 10, {})


def test_usage_that_nothing_covers_is_drift(world: World) -> None:
    """A usage row changed behind planning's back, and a posting of which there is more than was counted."""
    world.use(1, "user:a", 10)
    world.settle_all()
    for quantity, missing in ((13, 3), (8, -2)):
        with ledger_transaction(world.engine) as connection:
            connection.execute(update(usage).values(quantity=Decimal(quantity)))
        assert seen(world) == (quantity, 10, {Cause.UNPOSTED: missing})


def test_a_meter_that_is_off_is_no_drift(world: World) -> None:
    """What it counts is not posted, and says so."""
    world.switch(1, "off")
    world.use(1, "user:a", 10)
    world.plan()
    assert seen(world) == (10, 0, {Cause.HELD: 10})


@pytest.mark.parametrize(
    ("metric", "quantity"),
    [({"max": "latency_ms"}, 9), ({"min": "latency_ms"}, 4), ({"latest": "status"}, 4)],
)
def test_metrics_that_do_not_add_up_are_combined(world: World, metric: object, quantity: int) -> None:
    """Over the windows of a period, as their postings are."""
    meter = world.meter("other", metric=metric)
    world.period("cus_1", "other", item="si_other")
    world.use(meter, "user:a", 9, order_ms=1)
    world.use(meter, "user:a", 4, window=1, order_ms=2)
    world.settle_all()
    assert seen(world, Subject("cus_1", "other", START, END)) == (quantity, quantity, {})


def test_unique_values_count_once_over_windows(world: World) -> None:
    """As sets: a value in two windows is one."""
    meter = world.meter("unique", metric={"unique": "client_ip"})
    world.period("cus_1", "unique", item="si_unique")
    world.use(meter, "user:a", 2, values=(1, 2))
    world.use(meter, "user:a", 2, window=1, values=(2, 3))
    world.settle_all()
    assert seen(world, Subject("cus_1", "unique", START, END)) == (3, 3, {})


def test_a_straddling_window_is_in_the_period_it_was_stamped_in(world: World) -> None:
    """Two periods that meet within a window: each posting belongs where its stamp lies, and nothing to both."""
    edge = T0 + HOUR_MS // 2
    with ledger_transaction(world.engine) as connection:
        connection.execute(update(item_periods).values(period_end_ms=edge))
    world.period("cus_1", start_ms=edge, end_ms=END, item="si_next")
    before, after = Subject("cus_1", "calls", START, edge), Subject("cus_1", "calls", edge, END)
    world.use(1, "user:a", 10, at_ms=edge - 1000)
    world.settle_all()
    assert of(seen(world, before), seen(world, after)) == ((10, 10, {}), (0, 0, {}))
    world.use(1, "user:a", 16, at_ms=edge + 1000)
    assert seen(world, before)[0] + seen(world, after)[0] == 16
    world.settle_all()
    assert of(seen(world, before), seen(world, after)) == ((10, 10, {}), (6, 6, {}))


def test_the_invoice_is_read_once_it_is_final(world: World) -> None:
    """A draft is known by name; the final one with what it bills, decimals and all lines of the period added up."""
    assert load_view(world.engine, SUBJECT).invoice_id is None
    bill(world, "draft", "3")
    view = load_view(world.engine, SUBJECT)
    assert (view.invoice, view.invoice_id, view.invoice_status) == (None, "in_1", "draft")
    bill(world, "paid", "7.000000000001")
    view = load_view(world.engine, SUBJECT)
    assert view.invoice is not None
    assert (view.invoice.quantity, view.invoice.finalized_ms) == (Decimal("7.000000000001"), END + HOUR_MS)
    assert (view.invoice_id, view.invoice_status) == ("in_1", "paid")
    bill(world, "paid", "1", start_ms=T0, number="in_2")
    view = load_view(world.engine, SUBJECT)
    assert view.invoice is not None
    assert view.invoice.quantity == Decimal("8.000000000001")


# ------------------------------------------------------------------------------------------ what is kept


def reconciliation(subject: Subject = SUBJECT, **changed: object) -> Reconciliation:
    values: dict[str, object] = {
        "subject": subject,
        "counted": Decimal("10.5"),
        "delivered": Decimal(10),
        "stripe": "10.000000000000002",
        "invoiced": None,
        "invoice_id": None,
        "invoice_status": None,
        "verdict": Verdict.AGREES,
        "drift": Decimal(0),
        "findings": (),
        "checked_ms": NOW,
        "asked_ms": NOW,
        "due_ms": NOW + DAY_MS,
    }
    return Reconciliation(**(values | changed))  # type: ignore[arg-type]


def test_a_reconciliation_is_kept_as_it_was(world: World) -> None:
    """Findings included; an older one never replaces a newer one."""
    finding = Finding(Cause.MISSING, Decimal("0.000000000001"), "x", ("k:1",), 7200, Remedy.VOID)
    kept = reconciliation(verdict=Verdict.DRIFT, drift=finding.quantity, findings=(finding,))
    store_reconciliation(world.engine, kept)
    assert load_reconciliation(world.engine, SUBJECT) == kept
    store_reconciliation(world.engine, reconciliation(checked_ms=NOW - 1))
    assert load_reconciliations(world.engine, [SUBJECT]) == [kept]
    newer = reconciliation(checked_ms=NOW + 1)
    store_reconciliation(world.engine, newer)
    assert load_reconciliation(world.engine, SUBJECT) == newer


def test_drift_is_summed_by_meter(world: World) -> None:
    """Customers are counted, meters are named, what agrees shows as zero."""
    for number, drift in enumerate(("3", "0.5", "0")):
        verdict = Verdict.DRIFT if drift != "0" else Verdict.AGREES
        subject = Subject(f"cus_{number}", "calls", START, END)
        store_reconciliation(world.engine, reconciliation(subject, verdict=verdict, drift=Decimal(drift)))
    calm = Subject("cus_9", "calm", START, END)
    store_reconciliation(world.engine, reconciliation(calm, checked_ms=NOW + 7))
    summary = summarise_drift(world.engine)
    assert summary.drift_by_meter == {"calls": Decimal("3.5"), "calm": 0}
    assert (summary.customers_with_drift, summary.last_checked_ms) == (2, NOW + 7)
    assert summary.by_verdict == {Verdict.AGREES: 2, Verdict.DRIFT: 2}


def test_the_budget_is_shared_and_ends_with_the_day(world: World, ledger_url: str) -> None:
    """Eight threads over two connections want more than there is: exactly as many reads as allowed are taken."""
    taken: list[bool] = []
    second = open_ledger(ledger_url)

    def take(number: int) -> None:
        engine = (world.engine, second)[number % 2]
        for _ in range(5):
            taken.append(take_read(engine, NOW, 13))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.dispose()
    assert (len(taken), sum(taken), reads_taken(world.engine, NOW)) == (40, 13, 13)
    assert not take_read(world.engine, NOW, 0)
    tomorrow = (NOW // DAY_MS + 1) * DAY_MS
    assert take_read(world.engine, tomorrow, 13)
    assert reads_taken(world.engine, tomorrow) == 1


# ------------------------------------------------------------------------------------------- what is due


def test_a_period_is_due_once_something_was_posted(world: World) -> None:
    """Not before; then at once, and again when its last check says so."""
    assert due_subjects(world.engine, NOW, 10) == []
    world.use(1, "user:a", 10)
    world.settle_all()
    assert due_subjects(world.engine, NOW, 10) == [SUBJECT]
    store_reconciliation(world.engine, reconciliation(due_ms=NOW + DAY_MS))
    assert due_subjects(world.engine, NOW, 10) == []
    assert due_subjects(world.engine, NOW + DAY_MS, 10) == [SUBJECT]


def test_a_draft_and_a_final_invoice_are_each_looked_at_once(world: World) -> None:
    """When webhooks have written them, whatever the last check said."""
    world.use(1, "user:a", 10)
    world.settle_all()
    store_reconciliation(world.engine, reconciliation(due_ms=None))
    assert due_subjects(world.engine, NOW, 10) == []
    bill(world, "draft", "10")
    assert due_subjects(world.engine, NOW, 10) == [SUBJECT]
    drafted = reconciliation(invoice_id="in_1", invoice_status="draft", due_ms=None, checked_ms=NOW + 1)
    store_reconciliation(world.engine, drafted)
    assert due_subjects(world.engine, NOW, 10) == []
    bill(world, "paid", "10")
    assert due_subjects(world.engine, NOW, 10) == [SUBJECT]
    final = reconciliation(invoice_id="in_1", invoiced="10", due_ms=None, checked_ms=NOW + 2)
    store_reconciliation(world.engine, final)
    assert due_subjects(world.engine, NOW, 10) == []


def test_what_was_looked_at_longest_ago_comes_first(world: World) -> None:
    """After invoices; what was never looked at is oldest of all. The limit cuts off the youngest."""
    for number in range(2, 6):
        world.customer(f"cus_{number}", f"user:{number}")
        world.period(f"cus_{number}")
        world.use(1, f"user:{number}", 5)
    world.use(1, "user:a", 10)
    world.settle_all()
    for number, checked_ms in ((2, NOW - 5), (3, NOW - 9), (4, NOW - 7)):
        subject = Subject(f"cus_{number}", "calls", START, END)
        store_reconciliation(world.engine, reconciliation(subject, checked_ms=checked_ms, due_ms=NOW - 1))
    bill(world, "draft", "10")
    order = [subject.customer_id for subject in due_subjects(world.engine, NOW, 10)]
    assert order == ["cus_1", "cus_5", "cus_3", "cus_4", "cus_2"]
    assert [s.customer_id for s in due_subjects(world.engine, NOW, 3)] == order[:3]


def test_periods_are_found_by_customer_meter_and_moment(world: World) -> None:
    """By our name of the meter or Stripe's; half open in time."""
    world.customer("cus_2", "user:b")
    world.period("cus_2")
    assert find_subjects(world.engine, customer="cus_1") == [SUBJECT]
    assert len(find_subjects(world.engine, meter="calls")) == 2
    assert find_subjects(world.engine, meter="unheard_of") == []
    assert find_subjects(world.engine, customer="cus_1", at_ms=START) == [SUBJECT]
    assert find_subjects(world.engine, customer="cus_1", at_ms=END) == []
    assert find_subjects(world.engine, since_ms=END) == []
    with ledger_transaction(world.engine) as connection:
        # Two items on one meter, which is a mistake, are one period to look at.
        row = dict(connection.execute(item_periods.select().limit(1)).mappings().one())
        connection.execute(insert(item_periods).values({**row, "item_id": "si_twin"}))
    assert len(find_subjects(world.engine)) == 2


# ------------------------------------------------------------------------------------------------ repair


def test_a_missing_posting_is_taken_back_and_posted_again(world: World) -> None:
    """Once, and only if it was delivered before the check that missed it; a new identifier carries its quantity."""
    world.use(1, "user:a", 10)
    world.plan()
    (lost,) = world.deliver()
    finding = Finding(Cause.MISSING, Decimal(10), "", (f"{lost.posting_key}:1",), None, Remedy.VOID)
    drifting = reconciliation(verdict=Verdict.DRIFT, findings=(finding,))
    store_reconciliation(world.engine, drifting)
    assert find_posting_findings(world.engine, f"{lost.posting_key}:1") == [(drifting, finding)]
    assert find_posting_findings(world.engine, f"{lost.posting_key}:2") == []
    assert find_posting_findings(world.engine, "nothing:1") == []
    assert not void_missing_posting(world.engine, *lost.ref, checked_ms=NOW - 1, now_ms=NOW)
    assert void_missing_posting(world.engine, *lost.ref, checked_ms=NOW + 1, now_ms=NOW + 2)
    assert not void_missing_posting(world.engine, *lost.ref, checked_ms=NOW + 1, now_ms=NOW + 2)
    world.settle_all()
    world.check_chains()
    states = [of(p.state, p.quantity) for p in world.postings()]
    assert states == [
        (PostingState.VOID, 10),
        (PostingState.REVERSAL, -10),
        (PostingState.DELIVERED, 10),
    ]
    assert len({p.identifier for p in world.postings()}) == 3
    view = load_view(world.engine, SUBJECT)
    assert worst(compare_postings(view.in_period, view.missing).findings) is Verdict.AGREES
