"""Plain windows are posted as the planner's own steps would have posted them, on SQLite and PostgreSQL."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import Table, select

from services.stripe_sync.plan import Rules
from tests.contract.ledger.postings_world import HOUR_MS, LEDGER_ID, T0, World
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.insertion import put
from tollgate.ledger.leases import LeaseLost, release_lease
from tollgate.ledger.plan_rows import MeterTerms
from tollgate.ledger.tables import attributions, holds, plan_cursors, postings, reconciliations
from tollgate.metering.anomaly import AnomalyCap

ODD = ("user:a", 'user:"b"', "user:c\\d", "user:{e,f}", "user:g\th", "NULL", "user:é€", "user: i ")
CAP = AnomalyCap(Decimal(3), Decimal(40), 4)


@dataclass(frozen=True, slots=True)
class Longhand(Rules):
    """The same rules, without a shorthand for anything."""

    def shorthand(self, terms: MeterTerms, now_ms: int) -> None:
        return None


@dataclass(frozen=True, slots=True)
class ShorthandOnly(Rules):
    """Rules that nobody may ask where a window goes."""

    def place(self, *_: object) -> NoReturn:
        raise AssertionError("a plain window was put to the rules")


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    made = World.make(ledger_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def plain(world: World) -> World:
    """Two customers with an account and an open period each."""
    for number, account in enumerate(ODD[:2]):
        world.customer(f"cus_{number}", account)
        world.period(f"cus_{number}")
    return world


def dump(world: World, table: Table) -> list[tuple[Any, ...]]:
    with read_snapshot(world.engine) as connection:
        return [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]


def test_plain_windows_are_posted_without_asking_the_rules_one_by_one(plain: World) -> None:
    """One account, one mapping, one open period, nothing posted before: pinned, posted, and nothing held."""
    plain.rules = ShorthandOnly(LEDGER_ID)
    meter = plain.meter()
    for number, account in enumerate(ODD[:2]):
        plain.use(meter, account, number + 1, partition=number)
        plain.use(meter, account, number + 3, partition=number, window=1)
    assert plain.plan().planned == 4
    assert [int(p.quantity) for p in plain.postings()] == [1, 3, 2, 4]
    assert [p.planned_from for p in plain.postings()] == [{0: 2}, {0: 2}, {1: 4}, {1: 4}]
    assert plain.count(attributions) == 4
    assert plain.held() == {}
    plain.rules = Rules(LEDGER_ID)
    plain.use(meter, ODD[0], 11)
    plain.settle_all()
    assert plain.delivered() == {("cus_0", meter): Decimal(14), ("cus_1", meter): Decimal(6)}
    plain.check_chains()


def test_a_mapping_that_ended_at_the_windows_start_pays_for_nothing_of_it(plain: World) -> None:
    """Mappings are `[from, to)`: a window that begins at the end of the only one is nobody's."""
    meter = plain.meter()
    plain.map(ODD[0], "cus_0", to_ms=T0 + HOUR_MS)
    plain.use(meter, ODD[0], 3)
    plain.use(meter, ODD[0], 4, window=1)
    plain.settle_all()
    assert plain.delivered() == {("cus_0", meter): Decimal(3)}
    assert plain.held() == {(meter, 1, ODD[0]): ("no_mapping", Decimal(4))}


@pytest.mark.parametrize("later", [False, True])
def test_two_accounts_of_one_customer_are_one_posting(plain: World, later: bool) -> None:
    """Whether they come together or one after the other, the second never begins the chain anew."""
    meter = plain.meter()
    plain.map(ODD[2], "cus_0")
    plain.use(meter, ODD[0], 3)
    if later:
        plain.settle_all()
    plain.use(meter, ODD[2], 4)
    plain.settle_all()
    assert plain.delivered() == {("cus_0", meter): Decimal(7)}
    assert [p.seq for p in plain.postings()] == ([1, 2] if later else [1])
    plain.check_chains()


def test_a_customer_whose_other_account_has_more_than_one_row_is_not_alone(plain: World) -> None:
    """A slot that is not plain keeps all of its customer's window out."""
    meter = plain.meter()
    plain.map(ODD[2], "cus_0")
    plain.use(meter, ODD[0], 3)
    plain.use(meter, ODD[2], 4)
    plain.use(meter, ODD[2], 5, dimensions='{"m":"x"}')
    plain.settle_all()
    assert [int(p.quantity) for p in plain.postings()] == [12]


def test_a_chain_without_postings_has_all_that_is_pinned_to_it(plain: World) -> None:
    """An account that had used nothing is in the chain: what it used since comes with the first posting."""
    meter = plain.meter()
    plain.map(ODD[2], "cus_0")
    plain.use(meter, ODD[0], 0)
    plain.plan()
    assert (plain.count(attributions), plain.count(postings)) == (1, 0)
    # A plan of one row a partition, which does not come as far as the first account's change.
    plain.use(meter, ODD[1], 1)
    plain.use(meter, ODD[0], 5)
    plain.use(meter, ODD[2], 4, partition=1)
    assert plain.plan(rows_max=2).more
    assert [int(p.quantity) for p in plain.postings()] == [9, 1]


def test_a_chain_without_attributions_goes_on_where_it_ended(plain: World) -> None:
    """As after a restore whose journal had the posting: it is not posted as if it were the first."""
    meter = plain.meter()
    plain.use(meter, ODD[0], 3)
    plain.plan()
    plain.deliver()
    with plain.engine.begin() as connection:
        connection.execute(attributions.delete())
        connection.execute(plan_cursors.delete())
    plain.use(meter, ODD[0], 5)
    plain.settle_all()
    assert [(p.seq, int(p.quantity_from), int(p.quantity_to)) for p in plain.postings()] == [
        (1, 0, 3),
        (2, 3, 5),
    ]


def test_nothing_is_posted_into_a_retired_period(plain: World) -> None:
    """Its chains may be gone: a window there looks as if nothing had been posted of it, even where it is open again."""
    meter = plain.meter()
    retired = {
        "customer_id": "cus_0",
        "event_name": "calls",
        "period_start_ms": T0 - 100 * HOUR_MS,
        "period_end_ms": T0 + 600 * HOUR_MS,
        "counted": Decimal(0),
        "delivered": Decimal(0),
        "verdict": "agrees",
        "drift": "0",
        "findings": [],
        "checked_ms": 0,
        "retired_ms": 1,
    }
    with ledger_transaction(plain.engine) as connection:
        put(connection, reconciliations, [retired])
    plain.use(meter, ODD[0], 3)
    plain.use(meter, ODD[1], 4)
    plain.plan()
    assert [p.customer_id for p in plain.postings()] == ["cus_1"]
    assert list(plain.held()) == [(meter, 0, ODD[0])]


def test_a_lost_lease_writes_nothing_and_leaves_the_collector_running(plain: World) -> None:
    """The fence holds for plain windows too; Python's collector runs again after a plan and after one that failed."""
    meter = plain.meter()
    plain.use(meter, ODD[0], 3)
    release_lease(plain.engine, plain.lease)
    with pytest.raises(LeaseLost):
        plain.plan()
    assert gc.isenabled()
    assert (plain.count(postings), plain.count(attributions)) == (0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_ledger_is_the_one_the_steps_would_have_left(world: World, tmp_path: Path, seed: int) -> None:
    """Twin ledgers, one planned without shorthand: after every plan the same postings, pins, holds and cursors."""
    other = World.make(f"sqlite:///{tmp_path / 'longhand.db'}")
    twins = world, other
    world.rules, other.rules = Rules(LEDGER_ID, anomaly=CAP), Longhand(LEDGER_ID, anomaly=CAP)
    chosen = random.Random(seed)
    meters = [_same(twins, "meter", name=f"m{n}", **kind) for n, kind in enumerate(KINDS)]
    for number, account in enumerate(ODD):
        _same(twins, "map", account, f"cus_{number % 6}")
    for number in range(5):
        for customer in range(5):
            _same(twins, "period", f"cus_{customer}", f"m{number}")
    planned = 0
    for _ in range(8):
        for _ in range(chosen.randrange(1, 12)):
            _change(chosen, twins, meters)
        report = _same(twins, "plan", rows_max=chosen.choice([4, 1000]))
        planned += report.planned
        for table in (postings, attributions, holds, plan_cursors):
            assert dump(world, table) == dump(other, table), table.name
        if chosen.random() < 0.5:
            for twin in twins:
                twin.deliver()
    assert planned > 10
    world.check_chains()
    other.engine.dispose()


KINDS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"send": "dry_run"},
    {"metric": "count", "window": "minute"},
    {"mode": "window_total"},
)


def _same(twins: tuple[World, World], what: str, *args: Any, **options: Any) -> Any:
    found = [getattr(twin, what)(*args, **options) for twin in twins]
    assert found[0] == found[1]
    return found[0]


def _change(chosen: random.Random, twins: tuple[World, World], meters: list[int]) -> None:
    """Something that the services around planning may do: mostly a count that rises."""
    customer = f"cus_{chosen.randrange(6)}"
    kind = chosen.random()
    if kind < 0.05:
        ends = chosen.choice([None, None, T0 + HOUR_MS])
        _same(twins, "map", chosen.choice(ODD), customer, chosen.choice([0, 0, T0]), ends)
    elif kind < 0.12:
        edge = chosen.choice([600 * HOUR_MS, 600 * HOUR_MS, HOUR_MS, HOUR_MS // 2])
        _same(
            twins,
            "period",
            customer,
            f"m{chosen.randrange(len(meters))}",
            end_ms=T0 + edge,
            state=chosen.choice(["open", "open", "open", "closed", "removed"]),
            item=chosen.choice(["si_1", "si_1", "si_2"]),
        )
    else:
        window = chosen.randrange(-4, 3)
        _same(
            twins,
            "use",
            chosen.choice(meters),
            chosen.choice(ODD),
            str(Decimal(chosen.randrange(-5, 200)) / chosen.choice([1, 1, 2])),
            window=window,
            partition=chosen.randrange(2),
            dimensions=chosen.choice(["", "", "", '{"m":"x"}']),
            at_ms=T0 + window * HOUR_MS + chosen.choice([0, 1000, 1000, HOUR_MS - 1, HOUR_MS + 5]),
        )
