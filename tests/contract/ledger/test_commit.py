"""The one transaction: a range of the log is in the ledger once, or not yet."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, select, text, update

from tests.contract.ledger.conftest import PARTITIONS
from tests.contract.ledger.folds import (
    Delta,
    NaiveLedger,
    add_exactly,
    dump,
    make_fold,
    part,
    prints,
    random_deltas,
)
from tollgate.ledger.catalogue import apply_meters, meters_version
from tollgate.ledger.engine import (
    LedgerNotReady,
    LedgerUnavailable,
    ledger_transaction,
    open_ledger,
    read_snapshot,
)
from tollgate.ledger.progress import MetersChanged, commit_fold, load_epochs, load_progress
from tollgate.ledger.tables import catalogue_state, progress, progress_instances, progress_totals, usage
from tollgate.metering.definition import Meter
from tollgate.metering.errors import InvariantViolated
from tollgate.metering.metric import COMBINE_DISTINCT, COMBINE_LATEST, COMBINE_MIN, Metric, MetricKind
from tollgate.metering.outcome import Fold, InstanceFold, TickSeen

CALLS = Meter("calls", None, Metric(MetricKind.COUNT))


def _usage(engine: Engine) -> dict[Any, tuple[Any, ...]]:
    with read_snapshot(engine) as connection:
        return {
            (row.partition, row.meter_id, row.window_start_ms, row.account, row.dimensions): (
                row.quantity,
                row.events,
                row.unvalued,
                row.latest_event_ms,
                row.changed_offset,
            )
            for row in connection.execute(select(usage))
        }


def _full_fold() -> Fold:
    """A fold that touches every table the transaction writes."""
    return make_fold(
        [
            part(
                0,
                0,
                5,
                counted=4,
                duplicate=2,
                weak_duplicate=1,
                seen={20_000: [1, 2], 20_001: [3]},
                ingest_ms=7,
            ),
            part(
                1,
                0,
                3,
                counted=1,
                unmatched=1,
                late=1,
                dead=1,
                instances={"i": InstanceFold(4, TickSeen(9, 2, 2))},
            ),
        ],
        [Delta(), Delta(partition=1), Delta(meter_id=2, combine=COMBINE_DISTINCT, values=frozenset({1, 2}))],
    )


def test_a_commit_moves_progress_and_says_what_became_of_it(ledger: Engine) -> None:
    """Offsets, outcomes, fingerprint and ingest time of each partition, added to what was there."""
    fold = _full_fold()
    assert commit_fold(ledger, fold, prints(fold), 0, now_ms=50) == frozenset()
    later = make_fold([part(0, 5, 9, counted=1, ingest_ms=6)])
    assert commit_fold(ledger, later, prints(later), 0, now_ms=60) == frozenset()
    found = load_progress(ledger)
    zero = found[0]
    assert (zero.next_offset, zero.fingerprint, zero.ingest_ms) == (9, "f9", 7)
    assert (zero.received, zero.counted, zero.duplicate, zero.weak_duplicate) == (7, 5, 2, 1)
    one = found[1]
    assert (one.next_offset, one.received, one.counted, one.unmatched, one.late, one.dead) == (
        3,
        4,
        1,
        1,
        1,
        1,
    )
    assert found[2].next_offset == 0


@pytest.mark.parametrize("seed", range(6))
def test_random_folds_equal_a_naive_model(ledger: Engine, seed: int) -> None:
    """All kinds of metric, several partitions at once, valued and unvalued: exact to the last digit."""
    rng = random.Random(seed)
    model = NaiveLedger()
    offsets = dict.fromkeys(range(PARTITIONS), 0)
    for _ in range(8):
        parts, deltas = [], []
        for partition in rng.sample(range(PARTITIONS), rng.randrange(1, PARTITIONS + 1)):
            start = offsets[partition]
            offsets[partition] = start + rng.randrange(1, 9)
            parts.append(part(partition, start, offsets[partition], counted=1))
            deltas += random_deltas(rng, partition, start, rng.randrange(30))
        fold = make_fold(parts, deltas)
        assert commit_fold(ledger, fold, prints(fold), 0, now_ms=1) == frozenset()
        for delta in deltas:
            model.add(delta, offsets[delta.partition])
    assert _usage(ledger) == model.table()
    with read_snapshot(ledger) as connection:
        totals = {
            (row.partition, row.meter_id): (row.quantity, row.events, row.unvalued)
            for row in connection.execute(select(progress_totals))
        }
    expected: dict[tuple[int, int], list[Any]] = {}
    for key, (quantity, events, unvalued, *_) in model.table().items():
        total = expected.setdefault(key[:2], [Decimal(0), 0, 0])
        total[0] = add_exactly(total[0], quantity if key[1] in (1, 5, 6) else Decimal(0))
        total[1] += events
        total[2] += unvalued
    assert totals == {key: tuple(value) for key, value in expected.items()}


def test_a_zombie_changes_nothing(ledger: Engine, second: Engine) -> None:
    """Two real connections fold the same range: whoever is second is told, and not a row of it is written."""
    fold = _full_fold()
    assert commit_fold(second, fold, prints(fold), 0, now_ms=1) == frozenset()
    before = dump(ledger)
    assert commit_fold(ledger, fold, prints(fold), 0, now_ms=2) == frozenset({0, 1})
    assert dump(ledger) == before


def test_two_writers_at_once_commit_once(ledger: Engine, second: Engine) -> None:
    """Raced for real, again and again: each range is counted by exactly one of them, neither fails."""
    for round_ in range(10):
        fold = make_fold(
            [part(partition, round_, round_ + 1, counted=1) for partition in range(PARTITIONS)],
            [Delta(partition=partition) for partition in range(PARTITIONS)],
        )
        barrier = threading.Barrier(2)
        missed: list[frozenset[int]] = []

        def run(engine: Engine, fold: Fold = fold, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            missed.append(commit_fold(engine, fold, prints(fold), 0, now_ms=1))  # noqa: B023 (joined below)

        threads = [threading.Thread(target=run, args=(engine,)) for engine in (ledger, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(missed, key=len) == [frozenset(), frozenset(range(PARTITIONS))]
    assert {row[0] for row in _usage(ledger).values()} == {Decimal(10)}


def test_one_miss_rolls_back_all_and_the_rest_can_be_retried(ledger: Engine) -> None:
    """The answer names the partitions that missed; without them the others commit."""
    first = make_fold([part(0, 0, 5, counted=1)], [Delta()])
    commit_fold(ledger, first, prints(first), 0, now_ms=1)
    before = dump(ledger)
    fold = _full_fold()
    assert commit_fold(ledger, fold, prints(fold), 0, now_ms=2) == frozenset({0})
    assert dump(ledger) == before
    assert commit_fold(ledger, fold, prints(fold), 0, now_ms=3, partitions={1}) == frozenset()
    found = load_progress(ledger)
    assert (found[0].next_offset, found[1].next_offset) == (5, 3)
    assert {key[0]: row[0] for key, row in _usage(ledger).items()} == {0: Decimal(1), 1: Decimal(1)}
    assert {row[0] for row in dump(ledger)["seen_ids"]} == set()
    assert dump(ledger)["distinct_values"] == []


def test_a_gap_misses_like_a_replay(ledger: Engine) -> None:
    """A fold that begins above the ledger's offset would leave events out: it misses."""
    fold = make_fold([part(0, 3, 5, counted=1)], [Delta()])
    assert commit_fold(ledger, fold, prints(fold), 0, now_ms=1) == frozenset({0})
    assert _usage(ledger) == {}


def test_a_partition_without_progress_says_what_to_run(ledger: Engine) -> None:
    """Never silently begun at the fold's offset."""
    with ledger_transaction(ledger) as connection:
        connection.execute(delete(progress).where(progress.c.partition == 1))
    fold = _full_fold()
    with pytest.raises(LedgerNotReady, match="1"):
        commit_fold(ledger, fold, prints(fold), 0, now_ms=1)
    assert _usage(ledger) == {}


_STATEMENTS = [
    "progress",
    "progress_epochs",
    "distinct_values",
    "usage",
    "progress_totals",
    "progress_instances",
    "seen_ids",
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("table", _STATEMENTS)
def test_dying_at_any_statement_leaves_no_trace(ledger: Engine, table: str, when: str) -> None:
    """Before or after each statement of the transaction: the flush is not in the ledger, and a retry commits it."""
    first = make_fold([part(0, 0, 1, counted=1, seen={20_000: [9]})], [Delta()])
    commit_fold(ledger, first, prints(first), 0, now_ms=1)
    _set_version(ledger, 1)
    fold = make_fold(
        [
            part(0, 1, 6, counted=3, seen={20_000: [1, 2]}),
            part(1, 0, 3, counted=1, instances={"i": InstanceFold(1, TickSeen(9, 2, 1))}),
        ],
        [Delta(), Delta(partition=1), Delta(meter_id=2, combine=COMBINE_DISTINCT, values=frozenset({1, 2}))],
    )
    before = dump(ledger)

    def die(*args: Any) -> None:
        if f"INSERT INTO {table} " in args[2]:
            raise ZeroDivisionError(table)

    moment = f"{when}_cursor_execute"
    event.listen(ledger, moment, die)
    with pytest.raises(ZeroDivisionError):
        commit_fold(ledger, fold, prints(fold), 1, now_ms=2)
    event.remove(ledger, moment, die)
    assert dump(ledger) == before
    assert commit_fold(ledger, fold, prints(fold), 1, now_ms=2) == frozenset()
    after = dump(ledger)
    # What was removed for its age is no flush's business.
    assert [name for name in after if after[name] == before[name]] == ["usage_retired"]


@pytest.mark.postgres
def test_a_connection_killed_in_the_middle_leaves_no_trace(
    postgres_url: str, request: pytest.FixtureRequest
) -> None:
    """The server ends the session between two statements: LedgerUnavailable, nothing written, the retry commits."""
    request.getfixturevalue("_initialised")
    engine, killer = open_ledger(postgres_url), open_ledger(postgres_url)
    fold = _full_fold()

    def kill(connection: Any, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO progress_totals" in statement:
            pid = connection.connection.driver_connection.info.backend_pid
            with ledger_transaction(killer) as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    event.listen(engine, "before_cursor_execute", kill)
    with pytest.raises(LedgerUnavailable):
        commit_fold(engine, fold, prints(fold), 0, now_ms=1)
    event.remove(engine, "before_cursor_execute", kill)
    assert _usage(engine) == {}
    assert load_progress(engine)[0].next_offset == 0
    assert commit_fold(engine, fold, prints(fold), 0, now_ms=1) == frozenset()
    for each in (engine, killer):
        each.dispose()


@pytest.fixture
def _initialised(postgres_url: str) -> None:
    from tests.contract.ledger.conftest import PINS
    from tollgate.ledger.init import initialise

    engine = open_ledger(postgres_url)
    initialise(engine, PINS, PARTITIONS, now_ms=1)
    engine.dispose()


def _set_version(engine: Engine, version: int) -> None:
    with ledger_transaction(engine) as connection:
        connection.execute(update(catalogue_state).values(meters_version=version))


def test_a_fold_with_other_meters_is_refused(ledger: Engine) -> None:
    """MetersChanged names the set in force; nothing is written."""
    apply_meters(ledger, [CALLS], "", 1)
    before = dump(ledger)
    fold = _full_fold()
    for folded_with in (0, 2):
        with pytest.raises(MetersChanged) as caught:
            commit_fold(ledger, fold, prints(fold), folded_with, now_ms=1)
        assert caught.value.current == 1
    assert dump(ledger) == before
    assert commit_fold(ledger, fold, prints(fold), 1, now_ms=1) == frozenset()


@pytest.mark.postgres
def test_meters_cannot_change_between_the_check_and_the_commit(
    postgres_url: str, request: pytest.FixtureRequest
) -> None:
    """`apply_meters` waits for a flush under way, and the next flush is told of the new set."""
    request.getfixturevalue("_initialised")
    engine, other = open_ledger(postgres_url), open_ledger(postgres_url)
    fold = _full_fold()
    applied = threading.Event()
    waited: list[bool] = []
    thread: list[threading.Thread] = []

    def apply() -> None:
        apply_meters(other, [CALLS], "", 1)
        applied.set()

    def start(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO usage" in statement and not thread:
            thread.append(threading.Thread(target=apply))
            thread[0].start()
            # Not a sleep to be lucky with: it must never be set while the flush is open, however long one waits.
            waited.append(not applied.wait(timeout=0.3))

    event.listen(engine, "before_cursor_execute", start)
    assert commit_fold(engine, fold, prints(fold), 0, now_ms=1) == frozenset()
    event.remove(engine, "before_cursor_execute", start)
    thread[0].join()
    assert waited == [True]
    assert meters_version(engine) == 1
    later = make_fold([part(0, 5, 6)])
    with pytest.raises(MetersChanged):
        commit_fold(engine, later, prints(later), 0, now_ms=1)
    for each in (engine, other):
        each.dispose()


def test_epochs_say_which_set_folded_what(ledger: Engine) -> None:
    """One entry at each offset where the set changed, per partition."""
    for version, start, end in ((0, 0, 2), (0, 2, 4), (1, 4, 6), (1, 6, 7), (3, 7, 9)):
        _set_version(ledger, version)
        fold = make_fold([part(0, start, end)])
        commit_fold(ledger, fold, prints(fold), version, now_ms=1)
    assert load_epochs(ledger, 0) == [(0, 0), (4, 1), (7, 3)]
    fold = make_fold([part(1, 0, 2)])
    commit_fold(ledger, fold, prints(fold), 3, now_ms=1)
    assert load_epochs(ledger, 1) == [(0, 3)]
    assert load_epochs(ledger, 2) == [(0, 0)]


def test_a_tick_is_compared_with_what_was_received_before_it(ledger: Engine) -> None:
    """tick_received = rows of earlier flushes + rows of this flush before the tick; without a tick the last stays."""
    flushes = [
        InstanceFold(5, None),
        InstanceFold(10, TickSeen(wall_ms=100, rows_acknowledged=8, rows_received_before=4)),
        InstanceFold(3, None),
        InstanceFold(0, TickSeen(wall_ms=200, rows_acknowledged=18, rows_received_before=0)),
    ]
    expected = [(5, 0, 0, 0), (15, 100, 8, 9), (18, 100, 8, 9), (18, 200, 18, 18)]
    for offset, (instance, row) in enumerate(zip(flushes, expected, strict=True)):
        fold = make_fold(
            [part(0, offset, offset + 1, counted=0, instances={"i-1": instance, "i-2": instance})]
        )
        commit_fold(ledger, fold, prints(fold), 0, now_ms=1)
        with read_snapshot(ledger) as connection:
            found = connection.execute(
                select(progress_instances).order_by(progress_instances.c.instance)
            ).all()
        assert [tuple(each) for each in found] == [(0, "i-1", *row), (0, "i-2", *row)]


def test_ten_thousand_rows_are_upserted_exactly(ledger: Engine) -> None:
    """Twice the same 10,000 keys, as sums: each row is the sum of both flushes."""
    deltas = [
        Delta(
            account=f"user:{number}",
            window_start_ms=number % 24 * 3_600_000,
            quantity=Decimal(number).scaleb(-9),
        )
        for number in range(10_000)
    ]
    for offset in range(2):
        fold = make_fold([part(0, offset, offset + 1, counted=10_000)], deltas)
        assert commit_fold(ledger, fold, prints(fold), 0, now_ms=1) == frozenset()
    found = _usage(ledger)
    assert len(found) == 10_000
    assert all(found[delta.key] == (2 * delta.quantity, 2, 0, 10, 2) for delta in deltas)


def test_a_flush_costs_statements_not_rows(ledger: Engine) -> None:
    """On PostgreSQL the number of statements does not depend on the number of rows."""
    statements: list[str] = []
    event.listen(ledger, "before_cursor_execute", lambda *args: statements.append(args[2]))
    counts = []
    for offset, rows in enumerate((1, 500)):
        statements.clear()
        deltas = [Delta(account=f"user:{number}") for number in range(rows)]
        fold = make_fold([part(0, offset, offset + 1, counted=rows)], deltas)
        commit_fold(ledger, fold, prints(fold), 0, now_ms=1)
        counts.append(len(statements))
    assert counts[0] == counts[1] < 12


def test_values_without_a_usage_row_are_a_bug(ledger: Engine) -> None:
    """A fold that holds distinct values of a window it has no usage of would lose them: it stops, nothing is written."""
    fold = make_fold([part(0, 0, 1)], [Delta(combine=COMBINE_DISTINCT, values=frozenset({1}))])
    broken = replace(fold, usage=fold.usage.clear())
    with pytest.raises(InvariantViolated):
        commit_fold(ledger, broken, prints(broken), 0, now_ms=1)
    assert dump(ledger)["distinct_values"] == []


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_an_unvalued_window_has_no_minimum(ledger: Engine, order: list[int]) -> None:
    """A row whose events had no value offers no 0 to a minimum, whichever comes first; nor to the latest."""
    for combine, meter_id in ((COMBINE_MIN, 1), (COMBINE_LATEST, 2)):
        deltas = [
            Delta(meter_id=meter_id, combine=combine, quantity=Decimal(0), events=0, unvalued=1),
            Delta(meter_id=meter_id, combine=combine, quantity=Decimal(7), order_ms=1, order_offset=1),
        ]
        partition = meter_id
        for offset, index in enumerate(order):
            delta = replace(deltas[index], partition=partition)
            fold = make_fold([part(partition, offset, offset + 1)], [delta])
            commit_fold(ledger, fold, prints(fold), 0, now_ms=1)
    assert {row[0] for row in _usage(ledger).values()} == {Decimal(7)}


def test_a_sum_past_the_column_is_refused_whole(ledger: Engine) -> None:
    """Neither database wraps, rounds or keeps half of it."""
    big = Decimal(99999999999999999999999999999)
    first = make_fold([part(0, 0, 1)], [Delta(quantity=big)])
    commit_fold(ledger, first, prints(first), 0, now_ms=1)
    before = dump(ledger)
    second = make_fold([part(0, 1, 2)], [Delta(quantity=Decimal(1))])
    with pytest.raises(Exception, match=r"overflow|exception|digits"):
        commit_fold(ledger, second, prints(second), 0, now_ms=1)
    assert dump(ledger) == before


def test_nothing_chosen_is_nothing_done(ledger: Engine) -> None:
    """A fold of no partition commits without asking the ledger."""
    before = dump(ledger)
    assert commit_fold(ledger, make_fold([]), {}, 99, now_ms=1) == frozenset()
    assert dump(ledger) == before
