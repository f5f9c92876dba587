"""Planning on SQLite and PostgreSQL: chains, holds, cursors and the fence."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event, select

from services.stripe_sync.journal import entry_from_posting
from tests.contract.ledger.postings_world import HOUR_MS, NOW, T0, World
from tollgate.ledger import chunks
from tollgate.ledger.due import load_due
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.leases import LeaseLost, read_lease, release_lease, renew_lease, take_lease
from tollgate.ledger.posting_journal import import_journal
from tollgate.ledger.posting_rows import PostingMode, PostingState
from tollgate.ledger.postings import post_dry_run, request_sync_now, set_paused, settle_posting
from tollgate.ledger.sending import apply_rejections, halt_meter
from tollgate.ledger.tables import attributions, holds, plan_cursors, postings
from tollgate.metering.closed import ClosedPolicy

A, B = "user:a", "user:b"


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    made = World.make(ledger_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def billed(world: World) -> World:
    """A customer with two accounts and an open period for the meter `calls`."""
    world.customer("cus_1", A, B)
    world.period("cus_1")
    return world


def test_a_change_becomes_one_posting_per_customer_meter_and_window(billed: World) -> None:
    """Accounts of one customer, dimensions and partitions add up in one posting of each window."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.use(meter, A, 4, dimensions='{"m":"x"}')
    billed.use(meter, B, 5, partition=1)
    billed.use(meter, B, 6, window=1, partition=1)
    report = billed.plan()
    assert report.planned == 2
    first, second = billed.postings()
    assert (first.quantity_from, first.quantity_to) == (Decimal(0), Decimal(12))
    assert (second.quantity_from, second.quantity_to) == (Decimal(0), Decimal(6))
    assert first.body == (
        f'{{"event_name":"calls","identifier":"{first.identifier}",'
        f'"payload":{{"stripe_customer_id":"cus_1","value":"12"}},"timestamp":{(T0 + 1000) // 1000}}}'
    )
    assert first.planned_from == {0: 2, 1: 4}
    assert first.state is PostingState.PLANNED
    assert billed.held() == {}


def test_planning_again_plans_nothing(billed: World) -> None:
    """Cursor and postings move together: the same change is never planned twice."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    assert billed.plan().planned == 1
    assert billed.plan().planned == 0
    assert len(billed.postings()) == 1


def test_an_unsettled_chain_gets_no_new_link_and_loses_nothing(billed: World) -> None:
    """A change that meets an unsettled posting is held as in flight, and planned once that is delivered."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.plan()
    billed.use(meter, A, 10)
    billed.use(meter, B, 5)
    billed.plan()
    assert len(billed.postings()) == 1
    assert billed.held() == {
        (meter, 0, A): ("in_flight", Decimal(12)),
        (meter, 0, B): ("in_flight", Decimal(12)),
    }
    billed.plan()
    assert len(billed.postings()) == 1
    billed.deliver()
    billed.plan()
    assert [(p.seq, int(p.quantity_from), int(p.quantity_to)) for p in billed.postings()] == [
        (1, 0, 3),
        (2, 3, 15),
    ]
    assert billed.held() == {}
    billed.check_chains()


def test_usage_without_a_customer_waits_for_its_mapping(world: World) -> None:
    """No mapping, then no item, then planned: each hold names its reason and ends with the directory's change."""
    meter = world.meter()
    world.use(meter, A, 3)
    world.plan()
    assert world.held() == {(meter, 0, A): ("no_mapping", Decimal(3))}
    world.customer("cus_1", A)
    world.plan()
    assert world.held() == {(meter, 0, A): ("no_item", Decimal(3))}
    world.period("cus_1")
    world.plan()
    assert world.held() == {}
    assert [p.quantity for p in world.postings()] == [Decimal(3)]


def test_holds_are_looked_at_again_in_bounded_steps(world: World) -> None:
    """A mapping that releases more slots than one transaction takes releases all of them in the end."""
    meter = world.meter()
    for number in range(7):
        world.use(meter, f"user:{number}", number + 1)
    world.plan()
    for number in range(7):
        world.map(f"user:{number}", "cus_1")
    world.period("cus_1")
    reports = [world.plan(rows_max=3) for _ in range(4)]
    assert [report.more for report in reports][:2] == [True, True]
    world.settle_all(rows_max=3)
    assert world.held() == {}
    assert world.delivered() == {("cus_1", meter): Decimal(28)}


def test_a_cursor_passes_only_what_was_planned(billed: World) -> None:
    """More changes than one transaction takes, some of one flush: all are planned in the end, the cursor at the last."""
    meter = billed.meter()
    billed.settle_all()
    for number in range(7):
        billed.use(meter, A, number + 1, window=-number)
    last_flush = billed.offset
    for number in range(4):
        billed.offset = last_flush
        billed.use(meter, B, 10, window=-number)
    assert billed.plan(rows_max=3).more
    billed.settle_all(rows_max=3)
    assert billed.delivered() == {("cus_1", meter): Decimal(28 + 40)}
    with read_snapshot(billed.engine) as connection:
        cursors = {row.partition: row.planned_offset for row in connection.execute(select(plan_cursors))}
    assert cursors == {0: last_flush + 1}


def test_two_customers_or_two_items_are_ambiguous(billed: World) -> None:
    """Nothing is posted while two could be meant."""
    meter = billed.meter()
    billed.map(A, "cus_2")
    billed.period("cus_1", item="si_2")
    billed.use(meter, A, 3)
    billed.use(meter, B, 4)
    billed.plan()
    assert {reason for reason, _ in billed.held().values()} == {"ambiguous"}
    assert billed.postings() == []


def test_a_closed_period_holds(billed: World) -> None:
    """Usage of a period whose invoice is final is held as closed, where that is the policy."""
    billed.rules = replace(billed.rules, closed=ClosedPolicy.HOLD)
    meter = billed.meter("tokens")
    billed.period("cus_1", "tokens", T0 - HOUR_MS, T0 + HOUR_MS, "closed")
    billed.period("cus_1", "tokens", T0 + HOUR_MS, T0 + 9 * HOUR_MS, "open")
    billed.use(meter, A, 3)
    billed.use(meter, A, 4, window=1)
    billed.plan()
    assert billed.held() == {(meter, 0, A): ("closed", Decimal(3))}
    assert [p.quantity for p in billed.postings()] == [Decimal(4)]


def test_a_mapping_is_pinned_at_the_first_posting(billed: World) -> None:
    """A window once posted to a customer stays with it, whatever the directory says later."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.settle_all()
    billed.map(A, "cus_1", 0, T0)
    billed.customer("cus_2")
    billed.map(A, "cus_2", T0)
    billed.period("cus_2")
    billed.use(meter, A, 5)
    billed.use(meter, A, 7, window=1)
    billed.settle_all()
    assert billed.delivered() == {("cus_1", meter): Decimal(5), ("cus_2", meter): Decimal(7)}


def test_a_count_that_fell_is_held_as_negative(billed: World) -> None:
    """A sum below what was posted is never sent, and shown."""
    meter = billed.meter()
    billed.use(meter, A, 9)
    billed.settle_all()
    billed.use(meter, A, 4)
    billed.plan()
    assert billed.held() == {(meter, 0, A): ("negative", Decimal(-5))}
    billed.use(meter, A, 11)
    billed.settle_all()
    assert billed.held() == {}
    assert billed.delivered() == {("cus_1", meter): Decimal(11)}


def test_a_meter_that_is_off_is_planned_whole_once_it_is_on(billed: World) -> None:
    """Off plans nothing; on plans everything since, in bounded steps; off and on again loses nothing."""
    meter = billed.meter(send="off")
    for window in range(5):
        billed.use(meter, A, window + 1, window=window - 4)
    billed.plan()
    assert billed.postings() == []
    assert billed.held() == {}
    billed.switch(meter, "live")
    billed.settle_all(rows_max=2)
    assert billed.delivered() == {("cus_1", meter): Decimal(15)}
    billed.switch(meter, "off")
    billed.use(meter, A, 101, window=-4)
    billed.plan()
    billed.switch(meter, "live")
    billed.settle_all(rows_max=2)
    assert billed.delivered() == {("cus_1", meter): Decimal(115)}


def test_a_dry_run_is_closed_without_counting_and_released_only_by_an_operator(billed: World) -> None:
    """Dry postings end as dry_run; live, the meter's dry windows wait for an explicit word, then are posted whole."""
    meter = billed.meter(send="dry_run")
    billed.use(meter, A, 3)
    billed.plan()
    billed.journal()
    (dry,) = billed.postings()
    assert dry.state is PostingState.DRY_RUN
    assert billed.delivered() == {}
    billed.switch(meter, "live")
    billed.use(meter, A, 8)
    billed.plan()
    assert billed.held() == {(meter, 0, A): ("dry_run", Decimal(8))}
    assert post_dry_run(billed.engine, meter, NOW) == 1
    billed.settle_all()
    assert billed.delivered() == {("cus_1", meter): Decimal(8)}
    assert billed.held() == {}
    billed.check_chains()


def test_a_paused_ledger_plans_nothing_and_forgets_nothing(billed: World) -> None:
    """Pause stops planning; what changed meanwhile is planned afterwards; a hurry is answered once."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    set_paused(billed.engine, True, NOW)
    request_sync_now(billed.engine, NOW)
    assert billed.plan().paused
    set_paused(billed.engine, False, NOW)
    assert billed.plan().planned == 1


def test_a_rejected_posting_is_taken_back_and_posted_again(billed: World) -> None:
    """Refused after its 2xx: void, a reversal takes it back, and the next link posts it under a new identifier."""
    meter = billed.meter()
    billed.use(meter, A, 10)
    billed.settle_all()
    billed.use(meter, A, 15)
    billed.plan()
    (first,) = [p for p in billed.postings() if p.seq == 1]
    billed.reject(first.identifier, "timestamp_in_future")
    assert [r.code for r in apply_rejections(billed.engine, billed.lease, NOW)] == ["timestamp_in_future"]
    assert apply_rejections(billed.engine, billed.lease, NOW) == []
    billed.settle_all()
    chain = billed.postings()
    assert [(p.seq, int(p.quantity_from), int(p.quantity_to), p.state) for p in chain] == [
        (1, 0, 10, PostingState.VOID),
        (2, 10, 15, PostingState.DELIVERED),
        (3, 15, 5, PostingState.REVERSAL),
        (4, 5, 15, PostingState.DELIVERED),
    ]
    assert len({p.identifier for p in chain}) == 4
    assert billed.delivered() == {("cus_1", meter): Decimal(15)}
    billed.check_chains()


def test_a_refusal_that_would_repeat_parks_its_successor(billed: World) -> None:
    """A posting for a customer Stripe does not know is not posted again without an operator."""
    meter = billed.meter()
    billed.use(meter, A, 10)
    billed.settle_all()
    billed.reject(billed.postings()[0].identifier, "meter_event_customer_not_found")
    apply_rejections(billed.engine, billed.lease, NOW)
    billed.settle_all()
    assert [p.state for p in billed.postings()] == [
        PostingState.VOID,
        PostingState.REVERSAL,
        PostingState.PARKED,
    ]
    last = billed.postings()[-1]
    assert settle_posting(billed.engine, *last.ref, delivered=True, now_ms=NOW)
    billed.settle_all()
    assert billed.held() == {}


def test_more_digits_than_stripe_takes_go_in_two_postings(billed: World) -> None:
    """A quantity of 18 significant digits is posted exactly, in two links."""
    meter = billed.meter(metric={"sum": "weight"})
    billed.use(meter, A, "123456789012.123456")
    billed.settle_all()
    assert [p.quantity for p in billed.postings()] == [Decimal("123456789012.123"), Decimal("0.000456")]
    assert billed.delivered() == {("cus_1", meter): Decimal("123456789012.123456")}
    assert billed.held() == {}


def test_kinds_that_do_not_add_up_are_posted_by_period(billed: World) -> None:
    """Max, min, latest and unique have one chain a period, whose change is posted."""
    biggest = billed.meter("biggest", metric={"max": "weight"})
    newest = billed.meter("newest", metric={"latest": "weight"})
    who = billed.meter("who", metric={"unique": "user"})
    for name in ("biggest", "newest", "who"):
        billed.period("cus_1", name)
    billed.use(biggest, A, 5)
    billed.use(biggest, B, 9, window=1, partition=1)
    billed.use(newest, A, 70, order_ms=T0 + 10)
    billed.use(newest, B, 60, window=1, order_ms=T0 + HOUR_MS)
    billed.use(who, A, 2, values=(1, 2))
    billed.use(who, B, 2, window=1, values=(2, 3))
    billed.settle_all()
    assert billed.delivered() == {
        ("cus_1", biggest): Decimal(9),
        ("cus_1", newest): Decimal(60),
        ("cus_1", who): Decimal(3),
    }
    billed.use(biggest, A, 12, window=2)
    billed.use(newest, A, 10, window=2, order_ms=T0 + 2 * HOUR_MS)
    billed.use(who, A, 1, window=2, values=(1,))
    billed.settle_all()
    assert billed.delivered() == {
        ("cus_1", biggest): Decimal(12),
        ("cus_1", newest): Decimal(10),
        ("cus_1", who): Decimal(3),
    }
    assert billed.held() == {}
    billed.check_chains()


def test_what_stripe_no_longer_takes_is_held_as_too_old(billed: World) -> None:
    """Usage older than Stripe's bound is shown and not sent."""
    meter = billed.meter()
    billed.period("cus_1", start_ms=T0 - 2000 * HOUR_MS)
    billed.use(meter, A, 3, window=-24 * 40)
    billed.plan()
    assert billed.held() == {(meter, -960, A): ("too_old", Decimal(3))}


def test_a_stale_lease_plans_nothing(billed: World) -> None:
    """Who lost the lease writes neither posting nor cursor nor hold."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.use(meter, "user:nobody", 3)
    seen = read_lease(billed.engine, "stripe_sync")
    assert seen is not None
    assert take_lease(billed.engine, "stripe_sync", "two", seen, NOW + 1) is not None
    assert take_lease(billed.engine, "stripe_sync", "three", seen, NOW + 1) is None
    with pytest.raises(LeaseLost):
        billed.plan()
    with pytest.raises(LeaseLost):
        renew_lease(billed.engine, billed.lease, NOW + 2)
    with pytest.raises(LeaseLost):
        release_lease(billed.engine, billed.lease)
    assert [billed.count(t) for t in (postings, plan_cursors, holds, attributions)] == [0, 0, 0, 0]


def test_a_lease_renewed_since_it_was_looked_at_cannot_be_taken(billed: World) -> None:
    """Its holder lives: whoever has watched an older row has watched nothing."""
    seen = read_lease(billed.engine, "stripe_sync")
    renew_lease(billed.engine, billed.lease, NOW + 5)
    assert take_lease(billed.engine, "stripe_sync", "two", seen, NOW + 10) is None
    renew_lease(billed.engine, billed.lease, NOW + 6)


def test_the_first_attempt_is_remembered_over_all_that_follow(billed: World) -> None:
    """The horizon of sending again counts from when Stripe may have had it first."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.plan()
    (posting,) = billed.journal()
    for hours in (0, 5, 19):
        billed.now_ms = NOW + hours * HOUR_MS
        billed.state(posting, PostingState.UNKNOWN)
        (found,) = billed.postings()
        assert (found.first_sent_ms, found.last_sent_ms) == (NOW, billed.now_ms)


def test_an_imported_posting_is_as_old_as_its_plan(billed: World) -> None:
    """After a restore Stripe may have had it since it was planned: the horizon of sending again counts from there."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.plan()
    (posting,) = billed.journal()
    billed.forget({posting.posting_key: 0})
    later_ms = NOW + 30 * HOUR_MS
    import_journal(billed.engine, billed.lease, [entry_from_posting(posting)], {}, later_ms)
    (found,) = billed.postings()
    assert (found.state, found.identifier) == (PostingState.UNKNOWN, posting.identifier)
    assert (found.first_sent_ms, found.last_sent_ms, found.attempts) == (NOW, NOW, 1)


def test_only_a_live_meter_that_is_not_halted_is_due(billed: World) -> None:
    """What was planned live waits while its meter is on a dry run, off or halted, and goes afterwards."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.plan()
    (posting,) = billed.journal()

    def due() -> list[tuple[str, int]]:
        return [entry.posting.ref for entry in load_due(billed.engine, NOW, 10)]

    assert due() == [posting.ref]
    for send in ("dry_run", "off"):
        billed.switch(meter, send)
        assert due() == []
    billed.switch(meter, "live")
    halt_meter(billed.engine, "calls", "not active at Stripe", NOW)
    assert due() == []
    halt_meter(billed.engine, "calls", None, NOW)
    assert due() == [posting.ref]


def test_a_crash_between_any_two_statements_leaves_nothing(billed: World) -> None:
    """The planning transaction interrupted at each of its statements in turn, then run: the same postings once."""
    meter = billed.meter()
    billed.use(meter, A, 3)
    billed.use(meter, "user:nobody", 4)
    executed = 0
    fail_at = -1

    def count(*_: Any) -> None:
        nonlocal executed
        executed += 1
        if executed == fail_at:
            raise KeyboardInterrupt

    event.listen(billed.engine, "before_cursor_execute", count)
    for attempt in range(1, 200):
        executed, fail_at = 0, attempt
        try:
            billed.plan()
        except KeyboardInterrupt:
            with read_snapshot(billed.engine) as connection:
                executed = -1000
                assert connection.execute(select(postings)).all() == []
                assert connection.execute(select(holds)).all() == []
                assert connection.execute(select(plan_cursors)).all() == []
        else:
            break
    event.remove(billed.engine, "before_cursor_execute", count)
    assert fail_at > 10
    assert [p.quantity for p in billed.postings()] == [Decimal(3)]
    assert list(billed.held()) == [(meter, 0, "user:nobody")]


def test_random_counts_and_interruptions_end_in_exact_totals(billed: World) -> None:
    """Whatever the order of growth, planning, delivery and refusals, Stripe ends with exactly the counts."""
    rng = random.Random(20_261_122)
    meter = billed.meter()
    truth: dict[tuple[str, int], int] = {}
    for _ in range(60):
        step = rng.random()
        if step < 0.5:
            key = rng.choice([A, B]), rng.randrange(3)
            truth[key] = truth.get(key, 0) + rng.randrange(1, 9)
            billed.use(meter, key[0], truth[key], window=key[1], partition=int(key[0] == B))
        elif step < 0.75:
            billed.plan(rows_max=rng.choice([1, 2, 100]))
        elif step < 0.9:
            billed.deliver()
        else:
            delivered = [p for p in billed.postings() if p.state is PostingState.DELIVERED]
            if delivered:
                billed.reject(rng.choice(delivered).identifier, "timestamp_in_future")
                apply_rejections(billed.engine, billed.lease, NOW)
        billed.check_chains()
    billed.settle_all(rows_max=2)
    assert billed.delivered() == {("cus_1", meter): Decimal(sum(truth.values()))}
    assert billed.held() == {}
    assert all(p.mode is not PostingMode.DRY_RUN for p in billed.postings())


HOSTILE = (
    "a\tb",
    "new\nline",
    'quo"te',
    "back\\slash",
    "\\N",
    "NULL",
    "{1,2}",
    "comma,",
    "ü€😀",
    "'",
    " ",
    "%s",
)


def test_many_keys_and_hostile_names_are_planned_to_the_unit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys cross the borders of the lists they are asked for in, and names hold what a database might read as syntax."""
    monkeypatch.setattr(chunks, "CHUNK", 7)
    monkeypatch.setattr(chunks, "_ARRAY_CHUNK", 7)
    meter = world.meter()
    expected: dict[tuple[str, int], int] = {}
    names = [f"{name}{number}" for number in range(2) for name in HOSTILE]
    for number, name in enumerate(names):
        customer = f"cus_{name}"
        world.customer(customer, f"user:{name}", f"user:{name}-2")
        world.period(customer)
        for window in range(2):
            world.use(meter, f"user:{name}", 3 + number, window=window)
            world.use(meter, f"user:{name}-2", 1000 * number, window=window, partition=1)
            expected[customer, window] = 3 + number + 1000 * number
    world.settle_all(rows_max=5)
    for number, name in enumerate(names):
        world.use(meter, f"user:{name}", 50 + number)
        expected[f"cus_{name}", 0] += 47
    world.settle_all(rows_max=5)
    found: dict[tuple[str, int], Decimal] = {}
    for posting in world.postings():
        key = posting.customer_id, (posting.window_start_ms - T0) // HOUR_MS
        found[key] = found.get(key, Decimal(0)) + posting.quantity_to - posting.quantity_from
    assert found == expected
    assert world.held() == {}
