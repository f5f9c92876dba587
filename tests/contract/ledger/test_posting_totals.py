"""Chains of totals that replace, on SQLite and PostgreSQL: superseding, order, falls, and the law."""

from __future__ import annotations

import random
from collections.abc import Iterator
from decimal import Decimal

import pytest

from services.stripe_sync.journal import entry_from_posting
from services.stripe_sync.plan import Rules
from tests.contract.ledger.postings_world import HOUR_MS, LEDGER_ID, NOW, T0, World
from tollgate.ledger.due import load_due
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.posting_journal import import_journal
from tollgate.ledger.posting_rows import Outcome, PostingState
from tollgate.ledger.postings import park_posting, post_dry_run, resume_posting
from tollgate.ledger.sending import apply_rejections, mark_sending, record_outcomes
from tollgate.ledger.verify_postings import PostedMeter, verify_postings
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.metric import MetricKind

A, B = "user:a", "user:b"
MODES = ("window_total", "usage_record")

SUPERSEDED, DELIVERED, VOID = PostingState.SUPERSEDED, PostingState.DELIVERED, PostingState.VOID


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    made = World.make(ledger_url)
    # What else can become of usage for a closed period is tested with the policies.
    made.rules = Rules(LEDGER_ID, closed=ClosedPolicy.HOLD)
    made.customer("cus_1", A, B)
    made.period("cus_1")
    yield made
    made.engine.dispose()


def lawful(world: World, meter: int, kind: MetricKind = MetricKind.COUNT) -> bool:
    """Whether the ledger's own check finds nothing."""
    with read_snapshot(world.engine) as connection:
        found = verify_postings(connection, {meter: PostedMeter("calls", kind)})
    assert found == [], links(world)
    return True


def links(world: World) -> list[tuple[int, int, int, PostingState]]:
    return [(p.seq, int(p.quantity_from), int(p.quantity_to), p.state) for p in world.postings()]


def due(world: World) -> list[int]:
    """The sequence numbers that may be sent now."""
    return [entry.posting.seq for entry in load_due(world.engine, world.now_ms, 100)]


@pytest.mark.parametrize("mode", MODES)
def test_an_unsent_total_is_superseded_by_a_newer_one(world: World, mode: str) -> None:
    """Nothing of the old one is sent; the newer one brings the whole, and the chain adds up."""
    meter = world.meter(mode=mode)
    for quantity in (3, 5, 9):
        world.use(meter, A, quantity)
        world.plan()
        world.journal()
        assert lawful(world, meter)
    assert due(world) == [3]
    world.deliver()
    assert links(world) == [(1, 0, 3, SUPERSEDED), (2, 3, 5, SUPERSEDED), (3, 5, 9, DELIVERED)]
    assert world.delivered() == {("cus_1", meter): Decimal(9)}
    assert lawful(world, meter)
    world.check_chains()


@pytest.mark.parametrize("mode", MODES)
def test_a_newer_total_waits_for_one_that_may_be_at_stripe(world: World, mode: str) -> None:
    """Planned before the older one was marked: it goes when that has settled, never before."""
    meter = world.meter(mode=mode)
    world.use(meter, A, 3)
    world.plan()
    world.journal()
    world.use(meter, A, 5)
    world.plan()
    world.journal()
    older, newer = world.postings()
    # A sender that read what is due before the newer one was planned.
    assert mark_sending(world.engine, world.lease, [older.ref], NOW) == {older.ref}
    record_outcomes(
        world.engine, world.lease, [Outcome(*older.ref, PostingState.UNKNOWN, retry_ms=NOW + 9)], NOW
    )
    assert due(world) == []
    world.use(meter, A, 8)
    world.plan()
    assert world.held() == {(meter, 0, A): ("in_flight", Decimal(3))}
    world.now_ms = NOW + 9
    assert due(world) == [1]
    world.settle_all()
    assert [link[3] for link in links(world)] == [DELIVERED, DELIVERED, DELIVERED]
    assert world.delivered() == {("cus_1", meter): Decimal(8)}
    assert newer.seq == 2
    assert lawful(world, meter)


@pytest.mark.parametrize("mode", MODES)
def test_a_parked_total_stops_its_chain(world: World, mode: str) -> None:
    """A newer one neither passes it nor is planned; resumed, it is superseded and never sent late."""
    meter = world.meter(mode=mode)
    world.use(meter, A, 3)
    world.plan()
    world.journal()
    world.use(meter, A, 5)
    world.plan()
    world.journal()
    first = world.postings()[0]
    assert park_posting(world.engine, *first.ref, "by hand")
    assert due(world) == []
    world.use(meter, A, 6)
    world.plan()
    assert len(world.postings()) == 2
    assert resume_posting(world.engine, *first.ref)
    world.settle_all()
    assert [link[3] for link in links(world)] == [SUPERSEDED, DELIVERED, DELIVERED]
    assert world.delivered() == {("cus_1", meter): Decimal(6)}


def test_a_total_that_fell_is_posted_in_its_open_period(world: World) -> None:
    """A correction upstream replaces; once the period is closed it is held as a credit."""
    for mode, name in zip(MODES, ("totals", "records"), strict=True):
        world.period("cus_1", name)
        meter = world.meter(name, mode=mode)
        world.use(meter, A, 9)
        world.settle_all()
        world.use(meter, A, 4)
        world.settle_all()
        assert world.delivered()["cus_1", meter] == 4
        world.period("cus_1", name, state="closed")
        world.use(meter, A, 3)
        world.use(meter, B, 0)
        world.plan()
        assert world.held()[meter, 0, A] == ("negative", Decimal(-1))
        world.use(meter, A, 6)
        world.plan()
        assert world.held()[meter, 0, A] == ("closed", Decimal(2))
        assert lawful(world, meter)


@pytest.mark.parametrize("kind", ["min", "latest"])
def test_a_value_that_fell_after_its_period_closed_is_a_credit(world: World, kind: str) -> None:
    """In the open period the fall is sent as a change; afterwards it is held as negative, the rise as closed."""
    meter = world.meter(metric={kind: "weight"})
    world.use(meter, A, 9, order_ms=1)
    world.settle_all()
    world.use(meter, A, 7, order_ms=2)
    world.settle_all()
    assert [p.quantity for p in world.postings()] == [9, -2]
    world.period("cus_1", state="closed")
    world.use(meter, A, 5, order_ms=3)
    world.plan()
    assert world.held() == {(meter, 0, A): ("negative", Decimal(-2))}
    world.use(meter, A, 8, order_ms=4)
    world.plan()
    assert world.held() == {(meter, 0, A): ("closed", Decimal(1))}
    assert len(world.postings()) == 2


def test_what_a_closed_period_lacks_belongs_to_nobody_yet(world: World) -> None:
    """Held and not pinned: until something of it is posted, a mapping may still give it to another customer."""
    meter = world.meter()
    world.period("cus_1", state="closed")
    world.use(meter, A, 3)
    world.plan()
    assert world.held() == {(meter, 0, A): ("closed", Decimal(3))}
    world.map(A, "cus_1", 0, T0)
    world.customer("cus_2")
    world.map(A, "cus_2", T0)
    world.period("cus_2")
    world.settle_all()
    assert world.delivered() == {("cus_2", meter): Decimal(3)}


def test_a_straddled_window_stays_with_the_period_it_went_to_first(world: World) -> None:
    """Its total cannot be split: later usage past the edge goes there as well, and is held once that is closed."""
    meter = world.meter("totals", mode="window_total")
    edge_ms = T0 + HOUR_MS // 2
    world.period("cus_1", "totals", T0 - 9 * HOUR_MS, edge_ms)
    world.period("cus_1", "totals", edge_ms, T0 + 9 * HOUR_MS)
    world.use(meter, A, 3, at_ms=edge_ms - 1)
    world.settle_all()
    world.use(meter, A, 5, at_ms=edge_ms + 1)
    world.use(meter, B, 2, at_ms=edge_ms + 2)
    world.settle_all()
    stamps = {p.timestamp_s for p in world.postings()}
    assert stamps == {T0 // 1000 + 1}
    assert world.delivered() == {("cus_1", meter): Decimal(7)}
    world.period("cus_1", "totals", T0 - 9 * HOUR_MS, edge_ms, "closed")
    world.use(meter, B, 4, at_ms=edge_ms + 3)
    world.plan()
    assert world.held() == {(meter, 0, B): ("closed", Decimal(2))}


def test_a_refused_total_takes_the_superseded_ones_back_with_it(world: World) -> None:
    """Void together, reversed together: also when the total then falls to what a superseded one said."""
    meter = world.meter(mode="window_total")
    for quantity in (3, 5):
        world.use(meter, A, quantity)
        world.plan()
        world.journal()
    world.deliver()
    world.reject(world.postings()[-1].identifier, "timestamp_in_future")
    apply_rejections(world.engine, world.lease, NOW)
    assert lawful(world, meter)
    world.use(meter, A, 3)
    world.settle_all()
    assert [(seq, start, end) for seq, start, end, _ in links(world)] == [
        (1, 0, 3),
        (2, 3, 5),
        (3, 5, 0),
        (4, 0, 3),
    ]
    assert [link[3] for link in links(world)] == [VOID, VOID, PostingState.REVERSAL, DELIVERED]
    assert world.delivered() == {("cus_1", meter): Decimal(3)}
    assert lawful(world, meter)


def test_after_a_restore_only_the_newest_total_is_asked_again(world: World) -> None:
    """An older one would undo it, and Stripe would answer the newer one's identifier with `duplicate`."""
    meter = world.meter(mode="window_total")
    for quantity in (3, 5, 9):
        world.use(meter, A, quantity)
        world.settle_all()
    entries = [entry_from_posting(p) for p in world.postings()]
    first = world.postings()[0]
    world.forget({first.posting_key: 1})
    report = import_journal(world.engine, world.lease, entries, {}, NOW)
    assert report.imported == 2
    assert [link[3] for link in links(world)] == [DELIVERED, SUPERSEDED, PostingState.UNKNOWN]
    assert due(world) == [3]
    world.deliver()
    assert world.delivered() == {("cus_1", meter): Decimal(9)}
    assert lawful(world, meter)


def test_a_record_refused_for_its_period_is_held_and_never_posted_again(world: World) -> None:
    """Void, reversed, and what is missing waits as `period_over`."""
    meter = world.meter(mode="usage_record")
    world.use(meter, A, 3)
    world.plan()
    (posting,) = world.journal()
    world.state(posting, VOID, error="rejected:period_over:no")
    world.settle_all()
    assert world.held() == {(meter, 0, A): ("period_over", Decimal(3))}
    world.use(meter, A, 4)
    world.settle_all()
    assert world.held() == {(meter, 0, A): ("period_over", Decimal(4))}
    assert world.delivered() == {}
    assert lawful(world, meter)


def test_a_record_of_an_ended_period_is_held(world: World) -> None:
    """What came too late for usage records, though the invoice is still a draft."""
    meter = world.meter(mode="usage_record")
    world.period("cus_1", end_ms=NOW)
    world.use(meter, A, 3)
    world.plan()
    assert world.held() == {(meter, 0, A): ("period_over", Decimal(3))}
    assert lawful(world, meter)


def test_a_dry_run_of_totals_goes_live_whole(world: World) -> None:
    """Rehearsed totals, taken back and posted for real on request: the mode's body, the whole total."""
    meter = world.meter(mode="window_total", send="dry_run")
    world.use(meter, A, 3)
    world.settle_all()
    assert '"value":"3"' in world.postings()[0].body
    world.switch(meter, "live")
    world.use(meter, A, 8)
    world.plan()
    assert world.held() == {(meter, 0, A): ("dry_run", Decimal(8))}
    post_dry_run(world.engine, meter, NOW)
    world.settle_all()
    assert world.delivered() == {("cus_1", meter): Decimal(8)}
    assert lawful(world, meter)


@pytest.mark.parametrize("mode", MODES)
def test_random_counts_end_in_exact_totals(world: World, mode: str) -> None:
    """Growth, falls, plannings, lost answers, certain failures and refusals in any order: the law holds throughout."""
    rng = random.Random(f"{mode} 20261122")
    meter = world.meter(mode=mode)
    truth: dict[tuple[str, int], int] = {}
    for _ in range(70):
        step = rng.random()
        if step < 0.45:
            key = rng.choice([A, B]), rng.randrange(2)
            truth[key] = max(0, truth.get(key, 0) + rng.randrange(-3, 9))
            world.use(meter, key[0], truth[key], window=key[1], partition=int(key[0] == B))
        elif step < 0.7:
            world.plan(rows_max=rng.choice([1, 100]))
            world.journal()
        elif step < 0.95:
            sent = load_due(world.engine, world.now_ms, rng.choice([1, 10]))
            refs = [entry.posting.ref for entry in sent]
            mark_sending(world.engine, world.lease, refs, world.now_ms)
            ends = [PostingState.DELIVERED, PostingState.UNKNOWN, PostingState.JOURNALLED]
            outcomes = []
            for entry in sent:
                state = rng.choice(ends)
                if state is PostingState.JOURNALLED and entry.posting.first_sent_ms is not None:
                    state = PostingState.UNKNOWN
                outcomes.append(Outcome(*entry.posting.ref, state, certain=state is PostingState.JOURNALLED))
            record_outcomes(world.engine, world.lease, outcomes, world.now_ms)
        else:
            delivered = [p for p in world.postings() if p.state is DELIVERED]
            if delivered:
                world.reject(rng.choice(delivered).identifier, "timestamp_in_future")
                apply_rejections(world.engine, world.lease, NOW)
        world.check_chains()
        assert lawful(world, meter)
    world.settle_all(rows_max=2)
    assert world.delivered().get(("cus_1", meter), Decimal(0)) == sum(truth.values())
    assert world.held() == {}
    assert lawful(world, meter)
