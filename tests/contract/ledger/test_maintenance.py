"""What is kept long enough leaves, what may still change stays, and the law holds after every transaction."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, select, update

from tests.contract.ledger.conftest import PARTITIONS, PINS
from tests.contract.ledger.folds import Delta, make_fold, part, prints
from tests.contract.ledger.kept_world import END, LATER, MUCH_LATER, START, KeptWorld, billed_history
from tests.contract.ledger.postings_world import HOUR_MS, NOW, T0, World
from tollgate.ledger.audit import AuditAction, AuditEntry, write_audit
from tollgate.ledger.engine import ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.errors import LedgerUnavailable
from tollgate.ledger.init import initialise
from tollgate.ledger.insertion import put
from tollgate.ledger.maintenance import maintain
from tollgate.ledger.maintenance_rows import ENDED_INSTANCES
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.progress import commit_fold, load_progress
from tollgate.ledger.reconciliation_subjects import due_subjects, find_subjects
from tollgate.ledger.reconciliation_views import load_view
from tollgate.ledger.reconciliations import DAY_MS, load_reconciliation, store_reconciliation
from tollgate.ledger.retention import Retention
from tollgate.ledger.retired import load_retired
from tollgate.ledger.roles import ROLES
from tollgate.ledger.tables import (
    OWNERS,
    attributions,
    audit,
    catalogue_state,
    controls,
    distinct_values,
    finalization_delays,
    holds,
    invoice_lines,
    invoices,
    item_periods,
    leases,
    postings,
    progress,
    progress_instances,
    progress_totals,
    reconciliations,
    rejections,
    seen_ids,
    stripe_inbox,
    usage,
)
from tollgate.ledger.verify import verify_ledger
from tollgate.metering.comparison import compare_postings
from tollgate.metering.outcome import InstanceFold, TickSeen
from tollgate.metering.reconciliation import Subject, Verdict


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    made = World.make(ledger_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def kept(world: World) -> KeptWorld:
    """Three customers' billed month of a count, a maximum, a latest value and a unique metric, a year ago."""
    world.meter("calls")
    world.meter("peak", metric={"max": "latency_ms"})
    world.meter("last", metric={"latest": "latency_ms"})
    world.meter("users", metric={"unique": "user"})
    return billed_history(world)


def _law(kept: KeptWorld) -> None:
    assert verify_ledger(kept.world.engine) == []


def _counts(kept: KeptWorld) -> dict[str, int]:
    tables = (usage, distinct_values, attributions, postings, holds, item_periods, reconciliations)
    return {table.name: kept.world.count(table) for table in tables}


# --------------------------------------------------------------------------------------- billed periods


def test_a_billed_month_leaves_whole_and_stays_accounted_for(kept: KeptWorld) -> None:
    """Usage, values, postings, pins and periods go; totals, the account of what went and the evidence stay."""
    _law(kept)
    totals = kept.rows(progress_totals)
    events, unvalued = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    used = kept.rows(usage)
    for partition, meter_id, _, _, _, _, happened, without, *_ in used:
        events[partition, meter_id] += happened
        unvalued[partition, meter_id] += without
    assert len(used) == 4 * 4 * 4

    report = kept.maintain()

    assert report.finished
    assert report.retired_periods == 12
    assert report.removed["usage"] == len(used)
    assert _counts(kept) == {
        "usage": 0,
        "distinct_values": 0,
        "attributions": 0,
        "postings": 0,
        "holds": 0,
        "item_periods": 0,
        "reconciliations": 12,
    }
    assert kept.rows(progress_totals) == totals
    retired = load_retired(kept.world.engine)
    assert {key: gone.events for key, gone in retired.items()} == dict(events)
    assert {key: gone.unvalued for key, gone in retired.items()} == dict(unvalued)
    assert sum(gone.usage_rows for gone in retired.values()) == len(used)
    assert {gone.before_ms for gone in retired.values()} == {T0 + 3 * HOUR_MS + 1}
    _law(kept)
    assert kept.maintain().removed.total() == 0


def test_a_dry_run_counts_exactly_what_a_run_removes_and_writes_nothing(kept: KeptWorld) -> None:
    """Of everything that hangs together the count is that of the run that follows, and the run is whole."""
    before = {
        table.name: kept.rows(table) for table in (usage, postings, attributions, reconciliations, leases)
    }
    dry = kept.maintain(dry_run=True, batch_rows=5)
    assert before == {
        table.name: kept.rows(table) for table in (usage, postings, attributions, reconciliations, leases)
    }
    wet = kept.maintain(batch_rows=5)
    assert dry.retired_periods == wet.retired_periods == 12
    for table in ("usage", "distinct_values", "postings", "attributions"):
        assert dry.removed[table] == wet.removed[table] > 0


def test_nothing_goes_before_its_time(kept: KeptWorld) -> None:
    """At four hundred days after the period's end everything is there; a moment later nothing is."""
    before = _counts(kept)
    assert kept.maintain(END + 400 * DAY_MS).removed.total() == 0
    assert _counts(kept) == before
    kept.maintain(END + 400 * DAY_MS + 1)
    assert kept.world.count(usage) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": "drift"},
        {"verdict": "unchecked"},
        {"verdict": "settling"},
        {"due_ms": LATER},
        {"invoice_status": "draft"},
        {"invoice_status": None},
    ],
    ids=str,
)
def test_a_period_that_is_not_said_and_done_stays(kept: KeptWorld, changed: dict[str, object]) -> None:
    """Not billed, not reconciled, or drifting: nothing of that period goes, and the report says that one waits."""
    with ledger_transaction(kept.world.engine) as connection:
        connection.execute(
            update(reconciliations)
            .where(reconciliations.c.customer_id == "cus_1", reconciliations.c.event_name == "calls")
            .values(**changed)
        )
    report = kept.maintain(MUCH_LATER)
    assert report.waiting_periods == 1
    assert {row[1] for row in kept.rows(usage)} == {1}
    assert {row[2] for row in kept.rows(postings)} == {"cus_1"}
    assert {row[4] for row in kept.rows(item_periods)} == {"cus_1"}
    _law(kept)


def test_an_open_item_period_keeps_its_own(kept: KeptWorld) -> None:
    """What webhooks still calls open is not retired, whatever was compared."""
    with ledger_transaction(kept.world.engine) as connection:
        connection.execute(
            update(item_periods).where(item_periods.c.customer_id == "cus_0").values(state="open")
        )
    kept.maintain(MUCH_LATER)
    assert {row[2] for row in kept.rows(postings)} == {"cus_0"}
    _law(kept)


@pytest.mark.parametrize("state", [PostingState.PARKED, PostingState.UNKNOWN, PostingState.JOURNALLED])
def test_an_unsettled_link_keeps_its_whole_chain(kept: KeptWorld, state: PostingState) -> None:
    """A posting that may still change keeps its chain, its usage and its period; the rest goes."""
    key = next(row[0] for row in kept.rows(postings) if row[2] == "cus_0" and row[3] == 1)
    with ledger_transaction(kept.world.engine) as connection:
        connection.execute(update(postings).where(postings.c.posting_key == key).values(state=str(state)))
    kept.maintain(MUCH_LATER)
    assert {row[0] for row in kept.rows(postings)} == {key}
    assert {row[4] for row in kept.rows(attributions)} == {key}
    assert kept.world.count(usage) == 1
    assert {(row[4], row[6]) for row in kept.rows(item_periods)} == {("cus_0", "calls")}
    _law(kept)


def test_a_hold_keeps_its_chain(kept: KeptWorld) -> None:
    """Usage of a posted slot that waits for a decision stays with its chain."""
    slot = next(row for row in kept.rows(attributions) if row[3] == "cus_0" and row[0] == 1)
    with ledger_transaction(kept.world.engine) as connection:
        connection.execute(
            insert(holds).values(
                meter_id=slot[0],
                window_start_ms=slot[1],
                account=slot[2],
                reason="negative",
                quantity=Decimal(-1),
                since_ms=0,
            )
        )
    kept.maintain(MUCH_LATER)
    assert {row[0] for row in kept.rows(postings)} == {slot[4]}
    assert kept.world.count(usage) == kept.world.count(holds) == 1
    _law(kept)


def test_usage_that_planning_has_not_read_stays(kept: KeptWorld) -> None:
    """An amendment counted just now keeps its chain until it has been planned."""
    kept.count(*(_again(kept, meter_id=1, account="user:0a"),))
    kept.maintain(MUCH_LATER)
    assert [(row[1], row[3]) for row in kept.rows(usage)] == [(1, "user:0a")]
    assert kept.world.count(postings) == 1
    _law(kept)


def _again(kept: KeptWorld, meter_id: int, account: str) -> Delta:
    row = next(row for row in kept.rows(usage) if row[1] == meter_id and row[3] == account)
    return Delta(
        partition=row[0],
        meter_id=meter_id,
        window_start_ms=row[2],
        account=account,
        quantity=Decimal(5),
        latest_event_ms=row[8],
    )


def test_a_chain_restamped_into_a_period_that_stays_stays_too(world: World) -> None:
    """A late link stamped in a later period belongs to that one's bill: the chain goes with the last of its periods."""
    world.meter()
    kept = billed_history(world, customers=1, windows=1)
    world.period("cus_0", "calls", END, END + 600 * HOUR_MS)
    with ledger_transaction(world.engine) as connection:
        row = dict(connection.execute(select(postings)).mappings().one())
        second = row | {
            "seq": 2,
            "quantity_from": row["quantity_to"],
            "quantity_to": row["quantity_to"] + 1,
            "identifier": "again",
            "timestamp_s": END // 1000 + 60,
            "for_period_ms": START,
        }
        connection.execute(insert(postings).values(second))
        raised = {"quantity": row["quantity_to"] + 1}
        connection.execute(update(usage).values(raised))
        connection.execute(update(progress_totals).values(raised))
    _law(kept)
    kept.maintain(MUCH_LATER)
    assert world.count(postings) == 2
    assert world.count(usage) == 1
    kept.bill("cus_0", start_ms=END, period_end_ms=END + 600 * HOUR_MS)
    kept.maintain(MUCH_LATER)
    assert world.count(postings) == world.count(usage) == world.count(item_periods) == 0
    _law(kept)


def test_usage_for_a_retired_window_is_held_and_never_posted_again(kept: KeptWorld) -> None:
    """Counted when it comes, whether before its chain's postings have gone or after; held as without a period."""
    late = [_again(kept, meter_id=1, account=account) for account in ("user:0a", "user:1a")]
    for number, delta in enumerate(late):
        steps = iter(range(100))
        # The first run ends between the two owners' parts.
        kept.maintain(out_of_time=lambda: next(steps) > 5) if not number else kept.maintain()  # noqa: B023
        kept.count(delta)
        kept.world.plan()
        assert kept.world.journal() == []
        held = {key: value for key, value in kept.world.held().items() if key[2] == delta.account}
        assert {reason for reason, _ in held.values()} == {"no_item"}
        _law(kept)
    kept.maintain()
    assert {(row[1], row[3]) for row in kept.rows(usage)} >= {(1, "user:0a"), (1, "user:1a")}
    _law(kept)


def test_a_plan_that_began_before_a_period_was_retired_changes_nothing(
    kept: KeptWorld, second: Engine
) -> None:
    """Its view of the period is older than the mark: it is refused and begins again. (SQLite: one writer at a time.)"""
    if second.dialect.name == "sqlite":
        return
    refused: list[BaseException] = []
    with second.connect() as raw:
        raw = raw.execution_options(isolation_level="REPEATABLE READ")
        raw.execute(select(progress)).all()  # its moment
        kept.maintain()
        try:
            raw.execute(update(leases).values(version=leases.c.version))
        except Exception as error:
            refused.append(error)
        raw.rollback()
    assert "could not serialize" in str(refused[0])


def test_a_chain_that_settles_between_the_two_parts_keeps_its_links(kept: KeptWorld) -> None:
    """Its usage stayed while a link was unsettled; so do its links, though they would be free by now."""
    key = next(row[0] for row in kept.rows(postings) if row[2] == "cus_0" and row[3] == 1)

    def become(state: PostingState) -> None:
        with ledger_transaction(kept.world.engine) as connection:
            connection.execute(update(postings).where(postings.c.posting_key == key).values(state=str(state)))

    become(PostingState.UNKNOWN)
    kept.maintain(
        on_progress=lambda done: become(PostingState.SETTLED) if done.step == "remove billed usage" else None
    )
    assert {row[0] for row in kept.rows(postings)} == {key}
    assert kept.world.count(usage) == 1
    _law(kept)
    kept.maintain()
    assert kept.world.count(postings) == kept.world.count(usage) == 0
    _law(kept)


def test_a_period_with_nothing_posted_goes_unless_its_comparison_is_open(world: World) -> None:
    """Nothing was ever compared or posted: it goes. A drift of it keeps it, until somebody has looked."""
    world.meter()
    kept = KeptWorld(world)
    for customer in ("cus_idle", "cus_drift"):
        world.period(customer, "calls", START, END, state="closed")
    kept.bill("cus_drift", verdict="drift")
    kept.maintain(MUCH_LATER)
    assert [row[4] for row in kept.rows(item_periods)] == ["cus_drift"]


def test_reconciliation_leaves_retired_periods_alone(kept: KeptWorld) -> None:
    """From the mark on they are neither due nor found, and a comparison made meanwhile does not replace the last."""
    engine = kept.world.engine
    subject = Subject("cus_0", "calls", START, END)
    assert subject in find_subjects(engine)
    steps = iter(range(100))
    kept.maintain(out_of_time=lambda: next(steps) > 4)
    assert kept.world.count(item_periods) == 12
    assert find_subjects(engine) == []
    assert due_subjects(engine, LATER, 100) == []
    assert subject in find_subjects(engine, retired=True)
    last = load_reconciliation(engine, subject)
    assert last is not None
    store_reconciliation(engine, replace(last, verdict=Verdict.DRIFT, checked_ms=LATER + 1))
    assert load_reconciliation(engine, subject) == last


def test_a_period_that_stays_still_reconciles_exactly(kept: KeptWorld) -> None:
    """Its view adds up to the same numbers before and after the others have gone."""
    subject = Subject("cus_1", "calls", START, END)
    with ledger_transaction(kept.world.engine) as connection:
        connection.execute(
            update(reconciliations)
            .where(reconciliations.c.customer_id == "cus_1", reconciliations.c.event_name == "calls")
            .values(verdict="unchecked")
        )

    def compared() -> Any:
        view = load_view(kept.world.engine, subject)
        return compare_postings(view.in_period, view.missing)

    before = compared()
    assert before.counted == before.delivered == sum(2 * (3 + window) for window in range(4))
    kept.maintain(MUCH_LATER)
    assert kept.world.count(usage) == 8
    assert compared() == before


def test_evidence_goes_last(kept: KeptWorld) -> None:
    """The result of a period's reconciliation stays seven years."""
    kept.maintain()
    kept.maintain(END + 2_557 * DAY_MS)
    assert kept.world.count(reconciliations) == 12
    kept.maintain(END + 2_558 * DAY_MS)
    assert kept.world.count(reconciliations) == 0
    _law(kept)


# ------------------------------------------------------------------------------------------- unbilled


def test_usage_nobody_was_asked_to_pay_goes_after_its_own_time(world: World) -> None:
    """Held without a customer, or of a meter that is not sent; what planning has not read stays."""
    world.meter("calls")
    world.meter("inner", send="off")
    kept = KeptWorld(world)
    kept.use(1, "user:nobody", 7)
    kept.use(2, "user:nobody", 9)
    world.plan()
    kept.use(1, "user:new", 5)
    _law(kept)
    kept.maintain(T0 + 800 * DAY_MS)
    assert world.count(usage) == 3
    kept.maintain(T0 + 801 * DAY_MS)
    assert [row[3] for row in kept.rows(usage)] == ["user:new"]
    assert world.count(holds) == 0
    assert {key: gone.quantity for key, gone in load_retired(world.engine).items()} == {(0, 1): 7, (0, 2): 9}
    _law(kept)


def test_zero_days_keeps_for_ever(kept: KeptWorld) -> None:
    """A setting of nought removes nothing at any time."""
    before = _counts(kept)
    for_ever = Retention(0, 0, 0, 0, 0, 0, 0)
    assert kept.maintain(END + 10_000 * DAY_MS, retention=for_ever).removed.total() == 0
    assert _counts(kept) == before


def test_pins_of_usage_that_came_to_nothing_go_with_it(world: World) -> None:
    """A window with events and no value is pinned to a chain without a posting; both go, the pin after its usage."""
    world.meter("sum", metric={"sum": "latency_ms"})
    world.customer("cus_0", "user:a")
    world.period("cus_0", "sum", START, END)
    kept = KeptWorld(world)
    kept.use(1, "user:a", 0)
    world.settle_all()
    assert (world.count(attributions), world.count(postings)) == (1, 0)
    kept.maintain(MUCH_LATER)
    assert (world.count(attributions), world.count(usage)) == (0, 0)
    _law(kept)


# ------------------------------------------------------------------------------------- killed, and twice


class _Killed(BaseException):
    """As by SIGKILL: nothing catches it."""


def _killing(engine: Engine, statements: int) -> Callable[[], None]:
    """Have the process die before the n-th statement from now on; returns what ends that."""
    left = [statements]

    def die(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _Killed

    event.listen(engine, "before_cursor_execute", die)
    return lambda: event.remove(engine, "before_cursor_execute", die)


def test_killed_before_any_statement_the_law_holds_and_the_next_run_ends_the_same(
    ledger_url: str, kept: KeptWorld
) -> None:
    """Dying before every single statement of a run, one after the other, each going on where the last one left."""
    worker = open_ledger(ledger_url)
    deaths = 0
    sizes = []
    for statements in range(1, 2_000, 3 if worker.dialect.name == "sqlite" else 17):
        undo = _killing(worker, statements)
        try:
            maintain(worker, Retention(), LATER, batch_rows=6)
        except _Killed:
            deaths += 1
        else:
            undo()
            break
        undo()
        assert verify_ledger(kept.world.engine) == []
        sizes.append(kept.world.count(usage))
    worker.dispose()
    assert deaths > 10
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 5
    assert kept.world.count(usage) == kept.world.count(postings) == kept.world.count(item_periods) == 0
    _law(kept)


def test_it_stops_when_its_time_is_up_and_goes_on_later(kept: KeptWorld) -> None:
    """Bounded runs come to the same end, and each says whether it is one."""
    runs = 0
    while True:
        asked = iter(range(10_000))
        report = kept.maintain(batch_rows=3, out_of_time=lambda: next(asked) >= 12 + runs)  # noqa: B023
        _law(kept)
        if report.finished:
            break
        assert report.out_of_time
        runs += 1
    assert runs > 1
    assert kept.world.count(postings) == 0


def test_two_runs_at_once_remove_everything_once(ledger_url: str, kept: KeptWorld) -> None:
    """The account holds each row once, however often it was looked at."""
    rows = kept.world.count(usage)
    errors: list[BaseException] = []

    def run() -> None:
        engine = open_ledger(ledger_url)
        try:
            for _ in range(20):
                if maintain(engine, Retention(), LATER, batch_rows=3, sleep_seconds=lambda _: None).finished:
                    return
        except BaseException as error:
            errors.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    kept.maintain()
    assert kept.world.count(usage) == kept.world.count(postings) == 0
    assert sum(gone.usage_rows for gone in load_retired(kept.world.engine).values()) == rows
    _law(kept)


def test_a_live_meter_flushes_meanwhile(ledger_url: str, kept: KeptWorld) -> None:
    """Flushes of new windows and of retired ones, while everything old goes: totals, rows and account agree."""
    late = _again(kept, meter_id=1, account="user:0a")
    fresh = [late, *(_moved(late, window) for window in range(5_000, 5_030))]
    flushed, errors = [0], list[BaseException]()
    over = threading.Event()

    def flush() -> None:
        engine = open_ledger(ledger_url)
        with read_snapshot(engine) as connection:
            version = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
        try:
            while not over.is_set() or flushed[0] < 10:
                at = load_progress(engine, [late.partition])[late.partition].next_offset
                deltas = [fresh[flushed[0] % len(fresh)]] if flushed[0] % 3 else fresh
                fold = make_fold([part(late.partition, at, at + 1, counted=len(deltas))], deltas)
                try:
                    assert not commit_fold(engine, fold, prints(fold), version, 0)
                except LedgerUnavailable:
                    continue  # as the meter does
                flushed[0] += 1
        except BaseException as error:
            errors.append(error)
        finally:
            engine.dispose()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        for _ in range(50):
            if kept.maintain(batch_rows=4).finished and flushed[0] >= 5:
                break
    finally:
        over.set()
        thread.join()
    assert errors == []
    assert flushed[0] >= 10
    kept.world.plan()
    kept.maintain()
    _law(kept)
    gone = {row[0] for row in kept.rows(postings)}
    assert all(row[2] == "cus_0" for row in kept.rows(postings)), gone


def _moved(delta: Delta, window: int) -> Delta:
    start_ms = T0 + window * HOUR_MS
    return replace(delta, window_start_ms=start_ms, latest_event_ms=start_ms + 1)


def test_a_busy_ledger_postpones_and_never_fails(kept: KeptWorld, second: Engine) -> None:
    """A lock somebody holds on: the step is left for the next run, the others are done."""
    if second.dialect.name == "sqlite":
        return
    waits: list[float] = []
    with second.begin() as blocking:
        blocking.execute(select(leases).with_for_update())
        report = kept.maintain(sleep_seconds=waits.append, lock_wait_ms=20)
    assert set(report.postponed) == {"retire periods"}
    assert waits == sorted(waits)
    assert len(waits) == 4
    assert kept.world.count(usage) == 64
    assert kept.maintain().finished


def test_while_planning_catches_up_no_chain_is_touched(kept: KeptWorld) -> None:
    """After a restore what is pinned to a chain may not be known yet."""
    with ledger_transaction(kept.world.engine) as connection:
        put(connection, controls, [{"name": "journal_wait:0", "value": "9", "changed_ms": 0}])
    report = kept.maintain()
    assert "remove postings" in report.postponed
    assert not report.finished
    assert kept.world.count(usage) == 64


@pytest.mark.postgres
def test_each_step_acts_as_the_owner_of_what_it_removes(postgres_url: str) -> None:
    """Every statement that writes runs as the role of its table's owner: none of them needs another's rights."""
    made = World.make(postgres_url)
    made.meter()
    kept = billed_history(made)
    _rest(kept)
    written: dict[str, set[str]] = {}

    def note(connection: Connection, _cursor: Any, statement: str, *_: object) -> None:
        verb, *words = statement.split()
        if verb in ("DELETE", "UPDATE", "INSERT"):
            table = words[0] if verb == "UPDATE" else words[1]
            role = connection.connection.driver_connection.execute("SELECT current_user").fetchone()[0]  # type: ignore[union-attr]
            written.setdefault(role, set()).add(table)

    event.listen(made.engine, "before_cursor_execute", note)
    report = kept.maintain(MUCH_LATER, retention=Retention(audit_days=850))
    event.remove(made.engine, "before_cursor_execute", note)
    made.engine.dispose()
    assert report.finished
    assert set(written) == set(ROLES.values())
    for owner, tables in OWNERS.items():
        assert written[ROLES[owner]] <= {table.name for table in tables}


# ---------------------------------------------------------------------------------------- plain rows


def _rest(kept: KeptWorld) -> None:
    """Rows of every other table that goes, old and young (of the last day before LATER), and some that never go."""
    rows: list[tuple[Any, dict[str, Any]]] = []
    for age, at_ms in (("old", END), ("young", MUCH_LATER - DAY_MS)):
        rows += [
            (
                stripe_inbox,
                {
                    "event_id": f"evt_{age}_{outcome[:4]}",
                    "type": "t",
                    "object_id": "o",
                    "customer_id": "c",
                    "created_s": at_ms // 1000,
                    "projected_ms": at_ms,
                    "outcome": outcome,
                },
            )
            for outcome in ("projected", "failed: no such customer")
        ]
        rows.append(
            (
                rejections,
                {
                    "identifier": f"id_{age}",
                    "event_id": "evt",
                    "code": "c",
                    "message": "m",
                    "reported_ms": at_ms,
                    "sequence": 1,
                },
            )
        )
        for status in ("paid", "open"):
            invoice = {
                "invoice_id": f"in_{age}_{status}",
                "customer_id": "cus_0",
                "subscription_id": "sub",
                "status": status,
                "billing_reason": None,
                "period_start_ms": at_ms - 1,
                "period_end_ms": at_ms,
                "created_ms": at_ms,
                "finalizes_ms": None,
                "finalized_ms": None,
                "sequence": 1,
            }
            line = {
                "invoice_id": invoice["invoice_id"],
                "position": 0,
                "line_id": "il",
                "customer_id": "cus_0",
                "item_id": "si",
                "price_id": "p",
                "event_name": "calls",
                "period_start_ms": START,
                "period_end_ms": END,
                "quantity": "1",
            }
            delay = {
                "invoice_id": invoice["invoice_id"],
                "customer_id": "cus_0",
                "planned_ms": at_ms,
                "until_ms": at_ms,
                "reason": "counting",
                "delays": 1,
                "since_ms": at_ms,
                "state": "released",
                "retry_ms": None,
                "error": None,
            }
            rows += [(invoices, invoice), (invoice_lines, line), (finalization_delays, delay)]
    with ledger_transaction(kept.world.engine) as connection:
        for table, row in rows:
            connection.execute(insert(table).values(row))
        for name, at_ms in (("old", END), ("young", MUCH_LATER - DAY_MS)):
            amended = AuditEntry(at_ms, "ada", AuditAction.AMEND, "1/5/user:x", "why", {"quantity": "-1"})
            write_audit(connection, amended, f"amend_{name}")


def test_the_other_tables_lose_what_is_old_and_over(world: World) -> None:
    """Done webhook events, refusals, ended invoices with their lines and delays; nothing young, open or failed."""
    world.meter()
    kept = billed_history(world)
    _rest(kept)
    kept.maintain(MUCH_LATER, retention=Retention(audit_days=850))

    def left(column: Any) -> set[str]:
        with read_snapshot(world.engine) as connection:
            return set(connection.execute(select(column)).scalars())

    assert left(stripe_inbox.c.event_id) == {"evt_old_fail", "evt_young_fail", "evt_young_proj"}
    assert left(rejections.c.identifier) == {"id_young"}
    stay = {"in_old_open", "in_young_open", "in_young_paid"}
    assert left(invoices.c.invoice_id) == left(invoice_lines.c.invoice_id) == stay
    assert left(finalization_delays.c.invoice_id) == stay
    assert left(audit.c.audit_id) == {"amend_young"}
    _law(kept)


def test_an_invoice_stays_while_a_period_it_bills_does(world: World) -> None:
    """The reconciliation of that period would look for it."""
    world.meter()
    kept = billed_history(world)
    _rest(kept)
    with ledger_transaction(world.engine) as connection:
        connection.execute(
            update(reconciliations).where(reconciliations.c.customer_id == "cus_0").values(verdict="drift")
        )
    kept.maintain(MUCH_LATER)
    assert {row[0] for row in kept.rows(invoices)} >= {"in_old_paid"}


def test_a_refusal_waits_until_its_posting_was_taken_back(world: World) -> None:
    """A report of a posting that still counts as delivered has not been acted upon."""
    world.meter()
    kept = billed_history(world, customers=1, windows=1)
    kept.bill("cus_0", verdict="drift")
    [posting] = world.postings()
    world.reject(posting.identifier, "no_such_meter")
    kept.maintain(MUCH_LATER)
    assert world.count(rejections) == 1
    with ledger_transaction(world.engine) as connection:
        connection.execute(update(postings).values(state="void"))
    kept.maintain(MUCH_LATER)
    assert world.count(rejections) == 0


def test_audit_entries_planning_reads_stay(world: World) -> None:
    """An amendment of usage that is there, and the release of a posting that is."""
    world.meter()
    kept = billed_history(world, customers=1, windows=1)
    kept.bill("cus_0", verdict="drift")
    [posting] = world.postings()
    with ledger_transaction(world.engine) as connection:
        for name, action, subject in (
            ("amended", AuditAction.AMEND, f"1/{T0}/user:0a"),
            ("amended_gone", AuditAction.AMEND, f"1/{T0}/user:zz"),
            ("released", AuditAction.RELEASE_POSTING, posting.posting_key),
            ("released_gone", AuditAction.RELEASE_POSTING, "nothing"),
        ):
            write_audit(connection, AuditEntry(0, "ada", action, subject, "why", {"quantity": "-1"}), name)
    kept.maintain(MUCH_LATER)
    assert world.count(audit) == 4
    kept.maintain(MUCH_LATER, retention=Retention(audit_days=800))
    assert {row[0] for row in kept.rows(audit)} == {"amended", "released"}


# ------------------------------------------------------------------------------------------ meter's own


def test_ended_instances_are_added_up(ledger: Engine) -> None:
    """Silent for long on every partition and nothing lost: one row a partition has their sums. Others stay."""
    now_ms = 100 * DAY_MS

    def flush(partition: int, instance: str, rows: int, tick_ms: int, acknowledged: int) -> None:
        at = load_progress(ledger, [partition])[partition].next_offset
        tick = TickSeen(tick_ms, acknowledged, rows) if tick_ms else None
        folded = part(partition, at, at + 1, counted=rows, instances={instance: InstanceFold(rows, tick)})
        fold = make_fold([folded])
        with read_snapshot(ledger) as connection:
            version = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
        assert not commit_fold(ledger, fold, prints(fold), version, 0)

    for partition in (0, 1):
        flush(partition, "old-1", 10, 5 * DAY_MS, 10)
        flush(partition, "old-2", 20, 6 * DAY_MS, 19)
        flush(partition, "elsewhere", 1, 7 * DAY_MS if partition else 99 * DAY_MS, 1)
        flush(partition, "mute", 3, 0, 0)
        flush(partition, "living", 5, 99 * DAY_MS, 5)
    flush(1, "lossy", 1, 8 * DAY_MS, 2)
    flush(2, "old-1", 4, 5 * DAY_MS, 4)  # nobody is newer there
    before = _received(ledger)
    maintain(ledger, Retention(), now_ms)
    assert {name for _, name, *_ in _instances(ledger)} == {
        "old-1", "elsewhere", "mute", "living", "lossy", ENDED_INSTANCES,
    }  # fmt: skip
    assert (1, ENDED_INSTANCES, 20, 6 * DAY_MS, 19, 20) in _instances(ledger)
    flush(2, "living", 1, 99 * DAY_MS, 1)
    maintain(ledger, Retention(), now_ms, batch_rows=1)
    assert (1, ENDED_INSTANCES, 30, 6 * DAY_MS, 29, 30) in _instances(ledger)
    assert (2, ENDED_INSTANCES, 4, 5 * DAY_MS, 4, 4) in _instances(ledger)
    assert "old-1" not in {name for _, name, *_ in _instances(ledger)}
    assert _received(ledger) == {**before, 2: before[2] + 1}
    maintain(ledger, Retention(), now_ms + 10_000 * DAY_MS)
    assert (1, ENDED_INSTANCES, 30, 6 * DAY_MS, 29, 30) in _instances(ledger)


def _instances(engine: Engine) -> list[tuple[Any, ...]]:
    with read_snapshot(engine) as connection:
        return [tuple(row) for row in connection.execute(select(progress_instances))]


def _received(engine: Engine) -> dict[int, int]:
    found = Counter[int]()
    for partition, _, rows, *_ in _instances(engine):
        found[partition] += rows
    return dict(found)


def test_days_that_no_event_can_be_of_any_more_go(ledger: Engine) -> None:
    """By each partition's own time, whatever the clock says; a partition that stands still keeps everything."""
    day = 20_000
    with read_snapshot(ledger) as connection:
        version = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
    for partition, ingest_ms in ((0, day * DAY_MS), (1, (day - 4) * DAY_MS)):
        seen = {day - back: [back + 1] for back in range(8)}
        fold = make_fold([part(partition, 0, 1, counted=8, seen=seen, ingest_ms=ingest_ms)])
        assert not commit_fold(ledger, fold, prints(fold), version, 0)
    maintain(ledger, Retention(), (day + 1_000) * DAY_MS, batch_rows=1)
    with read_snapshot(ledger) as connection:
        days = sorted(tuple(row) for row in connection.execute(select(seen_ids.c.partition, seen_ids.c.day)))
    # Accepted for three days, and a day's margin.
    assert days == [(0, d) for d in range(day - 4, day + 1)] + [(1, d) for d in range(day - 7, day + 1)]


def test_a_ledger_without_rules_is_not_ready(empty_ledger: Engine) -> None:
    """How old an event may be is not guessed; and a batch has a row."""
    initialise(empty_ledger, PINS, PARTITIONS, now_ms=1_000)
    with pytest.raises(ValueError, match="batch_rows"):
        maintain(empty_ledger, Retention(), NOW, batch_rows=0)
