"""`verify_ledger` is silent while the law holds, and names what was changed behind the ledger's back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, update

from tests.contract.ledger.conftest import PARTITIONS
from tests.contract.ledger.folds import Delta, make_fold, part, prints, random_deltas
from tests.contract.ledger.postings_world import T0, World
from tollgate.ledger.catalogue import apply_meters, load_meter_set
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.progress import commit_fold
from tollgate.ledger.tables import (
    attributions,
    distinct_values,
    holds,
    postings,
    progress,
    progress_totals,
    seen_ids,
    usage,
)
from tollgate.ledger.usage import verify_ledger
from tollgate.metering.conservation import Law
from tollgate.metering.definition import Meter
from tollgate.metering.metric import Metric, MetricKind
from tollgate.metering.outcome import InstanceFold, TickSeen

_KINDS = [
    MetricKind.SUM,
    MetricKind.MAX,
    MetricKind.MIN,
    MetricKind.LATEST,
    MetricKind.UNIQUE,
    MetricKind.SUM,
]
"""In the order of the meter ids that `random_deltas` draws."""


def _laws(engine: Engine) -> set[Law]:
    return {violation.law for violation in verify_ledger(engine)}


def _change(engine: Engine, *statements: Any) -> None:
    with ledger_transaction(engine) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0


@pytest.fixture
def counted(ledger: Engine) -> Engine:
    """A ledger with flushes of every kind of metric, ids, ticks and distinct values."""
    meters = [Meter(f"m{index}", None, Metric(kind, "latency_ms")) for index, kind in enumerate(_KINDS)]
    apply_meters(ledger, meters, "", 0)
    assert [each.meter_id for each in load_meter_set(ledger).meters] == [1, 2, 3, 4, 5, 6]
    rng = random.Random(3)
    for offset in range(4):
        deltas = [each for p in range(PARTITIONS) for each in random_deltas(rng, p, offset, 20)]
        deltas.append(
            Delta(
                meter_id=5, window_start_ms=7, combine=4, quantity=Decimal(0), values=frozenset({offset, 77})
            )
        )
        tick = TickSeen(wall_ms=offset, rows_acknowledged=3 * offset + 2, rows_received_before=2)
        parts = [
            part(
                p,
                offset,
                offset + 1,
                counted=2,
                duplicate=1,
                seen={20_000: [offset]},
                instances={"i": InstanceFold(3, tick)},
            )
            for p in range(PARTITIONS)
        ]
        fold = make_fold(parts, deltas)
        assert commit_fold(ledger, fold, prints(fold), 1, now_ms=1) == frozenset()
    return ledger


def test_what_the_transaction_writes_obeys_the_law(counted: Engine) -> None:
    """Flushes of all kinds of metric: no violation. An empty ledger has none either."""
    assert verify_ledger(counted) == []


def test_an_empty_ledger_obeys_the_law(ledger: Engine) -> None:
    """Nothing counted, nothing posted."""
    assert verify_ledger(ledger) == []


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (update(usage).where(usage.c.meter_id == 1).values(quantity=Decimal(5)), Law.TOTALS),
        (update(usage).where(usage.c.meter_id == 2).values(events=usage.c.events + 1), Law.TOTALS),
        (update(usage).where(usage.c.meter_id == 3).values(unvalued=99), Law.TOTALS),
        (delete(usage).where(usage.c.meter_id == 4), Law.TOTALS),
        (delete(progress_totals).where(progress_totals.c.meter_id == 1), Law.TOTALS),
        (delete(distinct_values).where(distinct_values.c.value_hash == 77), Law.TOTALS),
        (update(progress).values(counted=progress.c.counted + 1), Law.PARTITION),
        (update(progress).values(received=1, counted=1, duplicate=0), Law.PARTITION),
        (update(progress).where(progress.c.partition == 2).values(next_offset=2), Law.PARTITION),
        (delete(progress).where(progress.c.partition == 2), Law.PARTITION),
        (update(seen_ids).where(seen_ids.c.to_offset == 4).values(to_offset=9), Law.PARTITION),
    ],
    ids=lambda value: str(value).split("\n")[0][:40] if not isinstance(value, Law) else value.value,
)
def test_a_row_changed_by_hand_is_found(counted: Engine, change: Any, law: Law) -> None:
    """Each change breaks the part of the law it should."""
    _change(counted, change)
    assert law in _laws(counted)


def test_a_log_that_lost_its_tail_is_found(ledger: Engine) -> None:
    """An instance had 5 rows acknowledged, 3 came out of the log before its tick said so."""
    tick = TickSeen(wall_ms=9, rows_acknowledged=5, rows_received_before=3)
    fold = make_fold([part(0, 0, 4, counted=3, instances={"i": InstanceFold(3, tick)})])
    commit_fold(ledger, fold, prints(fold), 0, now_ms=1)
    (violation,) = verify_ledger(ledger)
    assert violation.law is Law.INSTANCE
    assert "2 lost" in violation.detail


@pytest.fixture
def empty_world(ledger_url: str) -> Iterator[World]:
    """A ledger that posts, without a meter."""
    made = World.make(ledger_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def world(empty_world: World) -> World:
    """Usage of a live meter, posted and delivered, for two customers."""
    made = empty_world
    meter = made.meter()
    for account, customer in (("user:a", "cus_a"), ("user:b", "cus_b")):
        made.customer(customer, account)
        made.period(customer)
    made.use(meter, "user:a", 5)
    made.use(meter, "user:b", 7, window=1)
    made.settle_all()
    made.use(meter, "user:a", 9)
    made.settle_all()
    return made


def _postings_law(world: World) -> list[Law]:
    """Violations of law 3. The world writes usage without its totals, so law 2 has no part in it."""
    return [each.law for each in verify_ledger(world.engine) if each.law in (Law.CHAIN, Law.UNPOSTED)]


def test_posted_usage_obeys_the_law(world: World) -> None:
    """Delivered, then more: two links, nothing missing."""
    assert len(world.postings()) == 3
    assert _postings_law(world) == []


def test_usage_on_its_way_obeys_the_law_at_every_step(world: World) -> None:
    """Not planned yet, planned, in flight and more behind it, refused, taken back: never a violation."""
    world.use(1, "user:a", 12)
    assert _postings_law(world) == []
    world.plan()
    assert _postings_law(world) == []
    world.use(1, "user:a", 20)
    world.plan()
    assert world.held()[1, 0, "user:a"][0] == "in_flight"
    assert _postings_law(world) == []
    (planned,) = world.journal()
    world.state(planned, PostingState.VOID)
    assert _postings_law(world) == []
    world.settle_all()
    assert world.delivered()["cus_a", 1] == Decimal(20)
    assert _postings_law(world) == []


def test_held_usage_obeys_the_law_and_lost_holds_do_not(world: World) -> None:
    """Nobody is mapped: held with a reason. Without that row it is usage nobody will ever post."""
    world.use(1, "user:nobody", 3)
    world.settle_all()
    assert _postings_law(world) == []
    _change(world.engine, delete(holds))
    assert _postings_law(world) == [Law.UNPOSTED]


@pytest.mark.parametrize("seq", [1, 2])
def test_a_deleted_posting_is_found(world: World, seq: int) -> None:
    """The first leaves a gap; the last leaves usage that no posting covers."""
    (key,) = {posting.posting_key for posting in world.postings() if posting.seq == 2}
    _change(world.engine, delete(postings).where(postings.c.posting_key == key, postings.c.seq == seq))
    assert _postings_law(world)[0] == (Law.CHAIN if seq == 1 else Law.UNPOSTED)


def test_a_posting_changed_by_hand_is_found(world: World) -> None:
    """Its quantities join neither its neighbours nor the usage."""
    _change(world.engine, update(postings).where(postings.c.seq == 2).values(quantity_from=Decimal(4)))
    assert Law.CHAIN in _postings_law(world)


def test_usage_changed_by_hand_is_found_in_what_was_posted(world: World) -> None:
    """Less used than posted."""
    _change(world.engine, update(usage).where(usage.c.account == "user:b").values(quantity=Decimal(6)))
    assert _postings_law(world) == [Law.UNPOSTED]


def test_a_chain_nobody_used_is_found(world: World) -> None:
    """The pins of a delivered chain are gone: money was asked for no usage."""
    _change(world.engine, delete(attributions).where(attributions.c.account == "user:b"))
    assert Law.UNPOSTED in _postings_law(world)


@pytest.mark.parametrize(
    ("metric", "first", "second"),
    [({"max": "latency_ms"}, 5, 9), ({"min": "latency_ms"}, 9, 5), ({"latest": "latency_ms"}, 9, 4)],
)
def test_kinds_that_do_not_add_up_obey_the_law(
    empty_world: World, metric: object, first: int, second: int
) -> None:
    """One chain a period over windows and accounts, combined as the kind says."""
    world = empty_world
    meter = world.meter(metric=metric)
    world.customer("cus_a", "user:a", "user:b")
    world.period("cus_a")
    world.use(meter, "user:a", first, order_ms=T0)
    world.settle_all()
    world.use(meter, "user:b", second, window=1, order_ms=T0 + 1)
    assert _postings_law(world) == []
    world.settle_all()
    assert _postings_law(world) == []
    assert len(world.postings()) == 2
    _change(world.engine, update(usage).values(quantity=Decimal(77)))
    assert _postings_law(world) == [Law.UNPOSTED]


def test_a_unique_meter_obeys_the_law(empty_world: World) -> None:
    """Values met in two windows count once."""
    world = empty_world
    meter = world.meter(metric={"unique": "client_ip"})
    world.customer("cus_a", "user:a")
    world.period("cus_a")
    world.use(meter, "user:a", 2, values=(1, 2))
    world.use(meter, "user:a", 2, window=1, values=(2, 3))
    world.settle_all()
    assert world.delivered() == {("cus_a", meter): Decimal(3)}
    assert _postings_law(world) == []
    with ledger_transaction(world.engine) as connection:
        connection.execute(
            insert(distinct_values).values(
                partition=0, meter_id=meter, window_start_ms=T0, account="user:a", dimensions="", value_hash=9
            )
        )
    assert _postings_law(world) == [Law.UNPOSTED]


def test_usage_of_a_meter_that_is_off_is_not_due(empty_world: World) -> None:
    """Counted and not sent: nothing is missing; when it is switched on, only what was walked over is due."""
    world = empty_world
    meter = world.meter(send="off")
    world.customer("cus_a", "user:a")
    world.period("cus_a")
    world.use(meter, "user:a", 5)
    world.settle_all()
    assert _postings_law(world) == []
    world.switch(meter, "live")
    assert _postings_law(world) == []
    world.settle_all()
    assert world.delivered() == {("cus_a", meter): Decimal(5)}
    assert _postings_law(world) == []
