"""Seen ids become few rows and stay the same ids, beside a live meter, beside another compaction, and when killed."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event, insert, select, update

from services.meter.partition import rebuild_seen
from tests.contract.ledger.folds import make_fold, part, prints
from tollgate.ledger.engine import ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.errors import LedgerUnavailable
from tollgate.ledger.maintenance import maintain
from tollgate.ledger.progress import commit_fold, expire_seen, load_partition, load_progress
from tollgate.ledger.retention import DAY_MS, ROWS_A_MERGE, Retention, Stretch
from tollgate.ledger.seen_compaction import compact_partition, merge_stretch
from tollgate.ledger.tables import catalogue_state, seen_ids
from tollgate.ledger.verify import verify_ledger
from tollgate.metering.errors import InvariantViolated

DAY = 20_000


def _flush(engine: Engine, ids_by_day: dict[int, list[int]], partition: int = 0) -> int:
    at = load_progress(engine, [partition])[partition].next_offset
    with read_snapshot(engine) as connection:
        version = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
    counted = sum(map(len, ids_by_day.values()))
    folded = part(partition, at, at + 2, counted=counted, seen=ids_by_day, ingest_ms=DAY * DAY_MS)
    fold = make_fold([folded])
    assert not commit_fold(engine, fold, prints(fold), version, 0)
    return at + 2


def _rows(engine: Engine, partition: int = 0) -> list[tuple[int, int, int]]:
    with read_snapshot(engine) as connection:
        rows = connection.execute(
            select(seen_ids.c.day, seen_ids.c.to_offset, seen_ids.c.count.label("held"))
            .where(seen_ids.c.partition == partition)
            .order_by(seen_ids.c.day, seen_ids.c.to_offset)
        )
        return [tuple(row) for row in rows]


def _ids(engine: Engine, partition: int = 0) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for day, _, blob in load_partition(engine, partition, 0)[1]:
        ids = np.frombuffer(blob, dtype="<u8")
        assert (ids[1:] >= ids[:-1]).all(), "a row's ids are sorted"
        found.setdefault(day, []).extend(ids.tolist())
    return {day: sorted(ids) for day, ids in found.items()}


@pytest.fixture
def flushed(ledger: Engine) -> tuple[Engine, dict[int, list[int]]]:
    """Two hundred small flushes over four days, the newest in all of them, and every id they brought."""
    rng = random.Random(7)
    truth: dict[int, list[int]] = {}
    for _ in range(200):
        brought = {
            DAY - back: sorted({rng.randrange(2**64) for _ in range(rng.randrange(1, 9))})
            for back in {0, rng.randrange(4)}
        }
        _flush(ledger, brought)
        for day, ids in brought.items():
            truth.setdefault(day, []).extend(ids)
    return ledger, {day: sorted(ids) for day, ids in truth.items()}


def test_the_same_ids_in_fewer_rows(flushed: tuple[Engine, dict[int, list[int]]]) -> None:
    """Same ids by day, sorted, no row above progress, each merged row at the offset of its last flush."""
    engine, truth = flushed
    before = _rows(engine)
    assert maintain(engine, Retention(), DAY * DAY_MS).removed["seen_ids"] == len(before) - len(_rows(engine))
    after = _rows(engine)
    assert _ids(engine) == truth
    assert {row[:2] for row in after} <= {row[:2] for row in before}
    assert max(row[1] for row in after) == max(row[1] for row in before)
    # Days nothing more comes for are one row each; the two newest keep less than a few dozen.
    by_day = {day: [row for row in after if row[0] == day] for day in truth}
    assert [len(by_day[day]) for day in sorted(by_day)][:2] == [1, 1]
    assert all(len(rows) <= 64 for rows in by_day.values())
    assert verify_ledger(engine) == []
    progress, blobs = load_partition(engine, 0, 0)
    seen = rebuild_seen(progress.next_offset, blobs)
    assert seen.committed_offset == progress.next_offset
    everything = np.array(sorted(i for ids in truth.values() for i in ids), dtype=np.uint64)
    assert seen.probe(everything).all()
    assert not seen.probe(everything + np.uint64(1))[~np.isin(everything + np.uint64(1), everything)].any()
    assert maintain(engine, Retention(), DAY * DAY_MS).removed["seen_ids"] == 0


def test_a_dry_run_counts_the_rows_and_leaves_them(flushed: tuple[Engine, dict[int, list[int]]]) -> None:
    """As many as the run then merges away."""
    engine, _ = flushed
    before = _rows(engine)
    dry = maintain(engine, Retention(), DAY * DAY_MS, dry_run=True)
    assert _rows(engine) == before
    assert dry.removed["seen_ids"] == maintain(engine, Retention(), DAY * DAY_MS).removed["seen_ids"] > 100


def test_full_rows_are_never_read_again(ledger: Engine) -> None:
    """What was merged to its size stays as it is, row by row, while more comes."""
    written: list[tuple[int, int, int]] = []
    for number in range(300):
        _flush(ledger, {DAY: [number * 10 + n for n in range(10)]})
        compact_partition(ledger, 0, ids_max=200)
        full = [row for row in _rows(ledger) if row[2] >= 100]
        assert full[: len(written)] == written
        written = full
    assert len(written) >= 12
    assert _ids(ledger) == {DAY: list(range(3_000))}
    assert all(count <= 200 for _, _, count in _rows(ledger))
    assert len(_rows(ledger)) <= 4 * 3_000 // 200 + 64 + 9


def test_a_merge_does_nothing_when_the_rows_are_not_those_it_meant(
    flushed: tuple[Engine, dict[int, list[int]]],
) -> None:
    """One more, one less, or merged already: somebody else was there."""
    engine, truth = flushed
    offsets = [row[1] for row in _rows(engine) if row[0] == DAY]
    good = Stretch(offsets[3], offsets[9], 7)
    for wrong in (
        replace(good, rows=6),
        replace(good, rows=8),
        replace(good, first_offset=offsets[3] - 1),
        replace(good, last_offset=offsets[9] + 1),
    ):
        with ledger_transaction(engine) as connection:
            assert merge_stretch(connection, 0, DAY, wrong) == 0
    with ledger_transaction(engine) as connection:
        assert merge_stretch(connection, 0, DAY, good) == 6
    with ledger_transaction(engine) as connection:
        assert merge_stretch(connection, 0, DAY, good) == 0
    assert _ids(engine) == truth


def test_a_row_that_lies_about_its_ids_is_not_merged(flushed: tuple[Engine, dict[int, list[int]]]) -> None:
    """It is somebody's mistake, and stays there to be looked at."""
    engine, _ = flushed
    before = load_partition(engine, 0, 0)[1]
    with ledger_transaction(engine) as connection:
        connection.execute(
            update(seen_ids).where(seen_ids.c.to_offset == before[5][1]).values(count=seen_ids.c.count + 1)
        )
    with pytest.raises(InvariantViolated, match="ids in rows that say"):
        maintain(engine, Retention(), DAY * DAY_MS)
    assert load_partition(engine, 0, 0)[1] == before


def test_beside_a_live_meter_and_another_compaction_no_id_is_lost(ledger_url: str, ledger: Engine) -> None:
    """One flushes, two compact, one expires old days and one reloads all the while: each load is exact."""
    flushes, errors, over = 150, list[BaseException](), threading.Event()
    old = DAY - 30
    with ledger_transaction(ledger) as connection:
        for n in range(50):
            row = {"partition": 0, "day": old, "to_offset": 0 - n, "ids": b"", "count": 0}
            connection.execute(insert(seen_ids).values(row))

    def work(action: Any) -> threading.Thread:
        def run() -> None:
            engine = open_ledger(ledger_url)
            try:
                while not over.is_set():
                    try:
                        action(engine)
                    except LedgerUnavailable:
                        continue
            except BaseException as error:
                errors.append(error)
            finally:
                engine.dispose()

        return threading.Thread(target=run)

    def reload(engine: Engine) -> None:
        progress, blobs = load_partition(engine, 0, DAY)
        ids = sorted(i for _, _, blob in blobs for i in np.frombuffer(blob, dtype="<u8").tolist())
        assert ids == list(range(3 * progress.next_offset // 2))

    others = [
        work(lambda engine: compact_partition(engine, 0, ids_max=64)),
        work(lambda engine: compact_partition(engine, 0, ids_max=64)),
        work(lambda engine: expire_seen(engine, 0, old + 1)),
        work(reload),
    ]
    for thread in others:
        thread.start()
    try:
        done = 0
        while done < flushes:
            try:
                _flush(ledger, {DAY: [3 * done, 3 * done + 1, 3 * done + 2]})
            except LedgerUnavailable:
                continue
            done += 1
    finally:
        over.set()
        for thread in others:
            thread.join()
    assert errors == []
    reload(ledger)
    assert {row[0] for row in _rows(ledger)} == {DAY}
    assert len(_rows(ledger)) < flushes
    assert verify_ledger(ledger) == []


class _Killed(BaseException):
    """As by SIGKILL."""


def test_killed_before_any_statement_all_ids_are_there(
    ledger_url: str, flushed: tuple[Engine, dict[int, list[int]]]
) -> None:
    """And the next run goes on."""
    engine, truth = flushed
    deaths = 0
    for statements in range(400):
        worker = open_ledger(ledger_url)
        left = [statements]

        def die(*_: object, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise _Killed

        event.listen(worker, "before_cursor_execute", die)
        try:
            compact_partition(worker, 0, ids_max=40)
        except _Killed:
            deaths += 1
        else:
            break
        finally:
            worker.dispose()
        assert _ids(engine) == truth
    assert deaths > 5
    assert _ids(engine) == truth


def test_a_zombie_that_wakes_up_changes_nothing(
    ledger_url: str, flushed: tuple[Engine, dict[int, list[int]]], second: Engine
) -> None:
    """A flush folded before the compaction misses its compare-and-set; its ids are not in the ledger."""
    engine, truth = flushed
    at = load_progress(engine, [0])[0].next_offset
    zombie = make_fold([part(0, at - 2, at, counted=1, seen={DAY: [123]})])
    maintain(engine, Retention(), DAY * DAY_MS)
    with read_snapshot(engine) as connection:
        version = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
    assert commit_fold(second, zombie, prints(zombie), version, 0) == {0}
    assert compact_partition(second, 0) == 0
    assert _ids(engine) == truth


def test_a_backlog_of_more_rows_than_one_look_is_worked_off(ledger: Engine) -> None:
    """Tens of thousands of rows of sub-second flushes, of a day that still grows, become a few dozen."""
    rows = 3 * ROWS_A_MERGE + 1_000
    with ledger_transaction(ledger) as connection:
        connection.execute(
            insert(seen_ids),
            [
                {
                    "partition": 3,
                    "day": DAY,
                    "to_offset": n - rows,
                    "ids": np.array([n], dtype="<u8").tobytes(),
                    "count": 1,
                }
                for n in range(rows)
            ],
        )
    assert maintain(ledger, Retention(), DAY * DAY_MS).finished
    assert _ids(ledger, 3) == {DAY: list(range(rows))}
    assert len(_rows(ledger, 3)) <= 64
