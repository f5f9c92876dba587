"""Completeness, urgency and finalizations on SQLite and PostgreSQL: what stands between a period and its invoice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from tests.contract.ledger.postings_world import HOUR_MS, NOW, T0, World
from tollgate.ledger.billing import Invoice, InvoiceLine
from tollgate.ledger.completeness import Span, load_unsettled, load_watermark
from tollgate.ledger.controls import set_control
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.due import load_due
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.finalizations import (
    Delay,
    DelayState,
    list_delays,
    load_delay,
    load_drafts,
    record_delay,
)
from tollgate.ledger.insertion import put
from tollgate.ledger.leases import LeaseLost, release_lease
from tollgate.ledger.planning import plan_postings
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.postings import park_posting, settle_posting
from tollgate.ledger.tables import progress_instances
from tollgate.ledger.urgency import has_unplanned, load_urgent
from tollgate.metering.completeness import Watermark
from tollgate.metering.finalization import Incomplete

A, B = "user:a", "user:b"
START, END = T0 - 100 * HOUR_MS, T0 + 600 * HOUR_MS
WHOLE = Span("cus_1", "calls", START, END)


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    made = World.make(ledger_url)
    made.customer("cus_1", A)
    made.period("cus_1")
    yield made
    made.engine.dispose()


def tick(world: World, partition: int, instance: str, tick_ms: int) -> None:
    row = {
        "partition": partition,
        "instance": instance,
        "rows_received": 0,
        "tick_ms": tick_ms,
        "tick_acknowledged": 0,
        "tick_received": 0,
    }
    with ledger_transaction(world.engine) as connection:
        put(connection, progress_instances, [row])


def invoice(
    world: World,
    name: str,
    status: str = "draft",
    *,
    customer: str = "cus_1",
    finalizes_ms: int | None = END + HOUR_MS,
    spans: Sequence[tuple[int, int]] = ((START, END),),
) -> None:
    """Webhooks has projected an invoice of the period."""
    lines = tuple(InvoiceLine(f"si_{name}", "price_1", "calls", start, end) for start, end in spans)
    book = CustomerBook(world.engine, ())
    found = Invoice(
        name,
        customer,
        f"sub_{name}",
        status,
        "subscription_cycle",
        START,
        END,
        END,
        finalizes_ms,
        None,
        lines,
    )
    book.apply_invoice(found, sequence=book.take_sequence(), now_ms=END)


# --------------------------------------------------------------------------------------------- watermark


def test_the_watermark_is_read_from_every_partition_of_progress(world: World) -> None:
    """Two partitions: one without a tick holds everything back, then the older of the two counts."""
    assert load_watermark(world.engine, NOW, 600_000) == Watermark(0, 0)
    tick(world, 0, "ingest-1", NOW - 5000)
    assert load_watermark(world.engine, NOW, 600_000) == Watermark(0, 1)
    tick(world, 1, "ingest-1", NOW - 9000)
    tick(world, 1, "ingest-0", NOW - 900_000)
    assert load_watermark(world.engine, NOW, 600_000) == Watermark(NOW - 9000, 1, "ingest-1")


# --------------------------------------------------------------------------------------------- unsettled


def test_usage_is_unsettled_from_its_count_to_stripes_answer(world: World) -> None:
    """Counted, planned, sending, delivered; counted again while sending."""
    meter = world.meter()
    assert load_unsettled(world.engine, [WHOLE]) == {}
    world.use(meter, A, 5)
    assert load_unsettled(world.engine, [WHOLE]) == {WHOLE: Incomplete.PLANNING}
    world.plan()
    assert load_unsettled(world.engine, [WHOLE]) == {WHOLE: Incomplete.POSTING}
    [posting] = world.journal()
    world.use(meter, A, 8)
    world.plan()
    assert load_unsettled(world.engine, [WHOLE]) == {WHOLE: Incomplete.PLANNING}
    world.state(posting, PostingState.DELIVERED)
    assert load_unsettled(world.engine, [WHOLE]) == {WHOLE: Incomplete.PLANNING}
    world.settle_all()
    assert load_unsettled(world.engine, [WHOLE]) == {}


def test_a_parked_posting_is_unsettled_and_a_hold_is_not(world: World) -> None:
    """What waits for time or an operator's word on a call counts; what is held for a decision does not."""
    meter = world.meter()
    world.use(meter, A, 5)
    world.plan()
    [posting] = world.journal()
    assert park_posting(world.engine, *posting.ref, "why not")
    assert load_unsettled(world.engine, [WHOLE]) == {WHOLE: Incomplete.PARKED}
    assert settle_posting(world.engine, *posting.ref, delivered=True, now_ms=NOW)
    world.settle_all()
    world.use(meter, A, 3)
    world.settle_all()
    assert world.held() == {(meter, 0, A): ("negative", Decimal(-2))}
    assert load_unsettled(world.engine, [WHOLE]) == {}


def test_other_customers_meters_and_times_are_not_in_the_way(world: World) -> None:
    """Only what touches the span: an hourly window up to its end, a posting by its stamp."""
    meter, other = world.meter(), world.meter("tokens")
    world.customer("cus_2", B)
    world.period("cus_2")
    world.use(other, A, 5)
    world.use(meter, B, 5)
    world.use(meter, A, 5, window=2)
    hour = Span("cus_1", "calls", T0, T0 + HOUR_MS)
    into_it = Span("cus_1", "calls", T0, T0 + 2 * HOUR_MS + 1)
    assert load_unsettled(world.engine, [hour, into_it]) == {into_it: Incomplete.PLANNING}
    world.plan()
    assert load_unsettled(world.engine, [hour, into_it]) == {}
    past_its_stamp = replace(into_it, end_ms=T0 + 2 * HOUR_MS + 1001)
    assert load_unsettled(world.engine, [past_its_stamp]) == {past_its_stamp: Incomplete.POSTING}


def test_a_meter_that_is_off_holds_nothing_up(world: World) -> None:
    """Its usage is not meant for Stripe."""
    meter = world.meter(send="off")
    world.use(meter, A, 5)
    assert load_unsettled(world.engine, [WHOLE]) == {}


def test_after_a_restore_nothing_is_settled(world: World) -> None:
    """While planning waits for the counts to reach the journal, no period is complete."""
    set_control(world.engine, "journal_wait:0", "7", NOW)
    assert load_unsettled(world.engine, [WHOLE]) == {WHOLE: Incomplete.PLANNING}


# ----------------------------------------------------------------------------------------------- urgency


def test_drafts_and_periods_about_to_end_are_urgent_the_nearest_first(world: World) -> None:
    """Not those that end later, nor invoices that are final or held by hand."""
    invoice(world, "in_late", customer="cus_late", finalizes_ms=NOW + 2 * HOUR_MS)
    invoice(world, "in_soon", customer="cus_soon", finalizes_ms=NOW + HOUR_MS)
    invoice(world, "in_final", "paid", customer="cus_final")
    invoice(world, "in_hand", customer="cus_hand", finalizes_ms=None)
    world.period("cus_ending", start_ms=START, end_ms=NOW + 60_000, item="si_2")
    world.period("cus_later", start_ms=START, end_ms=NOW + 60_001, item="si_3")
    world.period("cus_over", start_ms=START, end_ms=NOW, item="si_4")
    assert load_urgent(world.engine, NOW, 60_000) == ("cus_soon", "cus_late", "cus_ending")


def test_urgent_usage_is_planned_before_everybody_elses(world: World) -> None:
    """One slot a transaction: the urgent customer's is in it although five changed before."""
    meter = world.meter()
    world.plan()
    for number in range(5):
        world.customer(f"cus_x{number}", f"user:x{number}")
        world.period(f"cus_x{number}", item=f"si_x{number}")
        world.use(meter, f"user:x{number}", 1)
    world.use(meter, A, 5)
    assert has_unplanned(world.engine, ["cus_1"])
    assert not has_unplanned(world.engine, [])
    plan_postings(world.engine, world.lease, world.rules, NOW, 1)
    assert "cus_1" not in {posting.customer_id for posting in world.postings()}
    plan_postings(world.engine, world.lease, world.rules, NOW, 1, ("cus_1",))
    assert "cus_1" in {posting.customer_id for posting in world.postings()}
    world.settle_all(rows_max=1)
    assert not has_unplanned(world.engine, ["cus_1", "cus_x4"])
    assert world.delivered()["cus_1", meter] == 5
    world.check_chains()


def test_urgent_usage_alone_is_planned_ahead_of_the_cursors(world: World) -> None:
    """The others wait for their cadence; what was planned ahead counts as planned, until more is counted."""
    meter = world.meter()
    world.plan()
    world.customer("cus_2", B)
    world.period("cus_2", item="si_2")
    world.use(meter, B, 1)
    world.use(meter, A, 5)
    report = plan_postings(world.engine, world.lease, world.rules, NOW, 10, ("cus_1",), urgent_only=True)
    assert {posting.customer_id for posting in world.postings()} == {"cus_1"}
    ahead = {"cus_1": report.urgent_offsets}
    assert has_unplanned(world.engine, ["cus_1"])
    assert not has_unplanned(world.engine, ["cus_1"], ahead)
    assert has_unplanned(world.engine, ["cus_2"], ahead)
    assert load_unsettled(world.engine, [WHOLE], ahead) == {WHOLE: Incomplete.POSTING}
    world.use(meter, A, 6)
    assert load_unsettled(world.engine, [WHOLE], ahead) == {WHOLE: Incomplete.PLANNING}
    held = plan_postings(world.engine, world.lease, world.rules, NOW, 10, ("cus_1",), urgent_only=True)
    assert (held.planned, dict(held.held)) == (0, {"in_flight": 1})
    world.deliver()
    freed = plan_postings(world.engine, world.lease, world.rules, NOW, 10, ("cus_1",), urgent_only=True)
    assert freed.planned == 1
    world.use(meter, A, 9)
    world.plan()
    world.deliver()
    assert not has_unplanned(world.engine, ["cus_1"])
    waited = plan_postings(world.engine, world.lease, world.rules, NOW, 10, ("cus_1",), urgent_only=True)
    assert waited.planned == 1
    world.settle_all()
    assert world.delivered() == {("cus_1", meter): 9, ("cus_2", meter): 1}
    world.check_chains()


def test_urgent_usage_that_did_not_fit_is_not_planned_ahead(world: World) -> None:
    """Three windows, two a transaction: nothing is said about how far it has been planned."""
    meter = world.meter()
    world.plan()
    for window in range(3):
        world.use(meter, A, 5, window=window)
    report = plan_postings(world.engine, world.lease, world.rules, NOW, 2, ("cus_1",), urgent_only=True)
    assert (report.planned, dict(report.urgent_offsets)) == (2, {})


def test_urgent_postings_are_due_before_older_ones(world: World) -> None:
    """By stamp alone the other customer's would be first."""
    meter = world.meter()
    world.customer("cus_2", B)
    world.period("cus_2", item="si_2")
    world.use(meter, B, 5)
    world.use(meter, A, 5, window=2)
    world.plan()
    world.journal()
    by_stamp = [entry.posting.customer_id for entry in load_due(world.engine, NOW, 1)]
    urgent = [entry.posting.customer_id for entry in load_due(world.engine, NOW, 1, (), ("cus_1",))]
    assert (by_stamp, urgent) == (["cus_2"], ["cus_1"])


# ----------------------------------------------------------------------------------------- finalizations


def test_drafts_about_to_become_final_are_loaded_with_what_they_bill(world: World) -> None:
    """Spans of the period that is over; not those of a first period, nor drafts without any usage."""
    invoice(world, "in_1", spans=((START, END), (END, END + HOUR_MS)))
    invoice(world, "in_later", finalizes_ms=END + 2 * HOUR_MS)
    invoice(world, "in_final", "paid")
    invoice(world, "in_hand", finalizes_ms=None)
    invoice(world, "in_licences", spans=())
    found, later = load_drafts(world.engine, 10).drafts
    assert (found.invoice_id, found.customer_id, found.spans) == ("in_1", "cus_1", (WHOLE,))
    assert (found.draft.created_ms, found.draft.finalizes_ms, found.draft.planned_ms) == (
        END,
        END + HOUR_MS,
        None,
    )
    assert found.period_end_ms == END
    assert later.invoice_id == "in_later"


def test_drafts_come_in_pages_and_none_twice(world: World) -> None:
    """By moment and name; a page may be shorter than asked for where drafts bill no usage, and is not the last."""
    for number in range(5):
        invoice(world, f"in_{number}", spans=() if number == 1 else ((START, END),))
    found, after = [], None
    for _ in range(3):
        page = load_drafts(world.engine, 2, after)
        found += [draft.invoice_id for draft in page.drafts]
        after = page.next_after
    assert (found, after) == (["in_0", "in_2", "in_3", "in_4"], None)


def test_a_delayed_draft_stays_in_sight_until_it_is_released(world: World) -> None:
    """With the moment we set, though the webhook that tells of it is late, and the one Stripe had planned."""
    invoice(world, "in_1")
    delay = Delay(
        "in_1", "cus_1", END + HOUR_MS, END + 2 * HOUR_MS, Incomplete.COUNTING, DelayState.DELAYED, 1, END
    )
    record_delay(world.engine, world.lease, delay)
    invoice(world, "in_2")
    [found] = load_drafts(world.engine, 10, delayed_only=True).drafts
    assert (found.draft.finalizes_ms, found.draft.planned_ms) == (END + 2 * HOUR_MS, END + HOUR_MS)
    assert load_delay(world.engine, "in_1") == delay
    assert load_delay(world.engine, "in_2") is None
    for over in (DelayState.RELEASED, DelayState.GIVEN_UP):
        record_delay(world.engine, world.lease, replace(delay, state=over))
        assert [draft.invoice_id for draft in load_drafts(world.engine, 10).drafts] == ["in_2"]
        assert load_drafts(world.engine, 10, delayed_only=True).drafts == ()
    assert list_delays(world.engine, waiting_only=True) == [replace(delay, state=DelayState.GIVEN_UP)]
    invoice(world, "in_1", "paid", finalizes_ms=None)
    assert list_delays(world.engine, waiting_only=True) == []


def test_a_refused_delay_is_as_if_nothing_had_been_done(world: World) -> None:
    """It has its own moment of the next try, and Stripe's plan is still the plan."""
    invoice(world, "in_1")
    delay = Delay(
        "in_1", "cus_1", END + HOUR_MS, END + HOUR_MS, Incomplete.POSTING, DelayState.REFUSED, 0, END, END + 5, "no"
    )  # fmt: skip
    record_delay(world.engine, world.lease, delay)
    [found] = load_drafts(world.engine, 10).drafts
    assert (found.state, found.retry_ms, found.draft.planned_ms) == (DelayState.REFUSED, END + 5, None)


def test_a_lost_lease_records_nothing(world: World) -> None:
    """Another process leads: it will decide."""
    release_lease(world.engine, world.lease)
    delay = Delay("in_1", "cus_1", END, END, Incomplete.COUNTING, DelayState.DELAYED, 1, END)
    with pytest.raises(LeaseLost):
        record_delay(world.engine, world.lease, delay)
    assert list_delays(world.engine) == []
