"""The cut-over in the ledger: new partitions begin with what their parents remember, and all of it changes at once."""

from __future__ import annotations

import random
import threading
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, update

from services.ingest.book import Book
from services.ingest.tokens import TokenBook
from services.meter.partition import rebuild_seen
from tests.contract.ledger.conftest import PARTITIONS
from tests.contract.ledger.folds import Delta, dump, make_fold, part, prints
from tollgate.ledger.audit import AuditAction, AuditEntry, list_audit
from tollgate.ledger.catalogue import apply_meters, load_layouts, load_meter_set, meters_version
from tollgate.ledger.cutover import (
    CannotGrow,
    IdsMissing,
    NotDrained,
    copy_ids,
    find_behind,
    find_parents,
    read_standing,
    switch,
)
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.errors import MetersChanged, PinMismatch
from tollgate.ledger.init import read_pins
from tollgate.ledger.progress import commit_fold, expire_seen, load_partition, load_progress
from tollgate.ledger.seen_compaction import compact_partition
from tollgate.ledger.tables import meter_sets
from tollgate.ledger.verify import verify_ledger
from tollgate.metering.meter import Meter, Metric, MetricKind, WindowSize
from tollgate.runtime.clock import ManualClock

AFTER = 12
DAY = 20_000
METER = Meter("calls", None, Metric(MetricKind.COUNT, None), WindowSize.HOUR, (), None)
ENTRY = AuditEntry(5, "ada", AuditAction.CUTOVER, "gateway.events", "more", {"before": 4, "after": 12})


def _flush(engine: Engine, partition: int, ids: dict[int, list[int]]) -> None:
    at = load_progress(engine, [partition])[partition].next_offset
    counted = sum(map(len, ids.values()))
    fold = make_fold(
        [part(partition, at, at + 3, counted=counted, seen=ids)],
        [Delta(partition, account=f"user:{partition}", quantity=Decimal(counted), events=counted)],
    )
    assert not commit_fold(engine, fold, prints(fold), meters_version(engine), 0)


@pytest.fixture
def counted(ledger: Engine) -> tuple[Engine, dict[int, dict[int, set[int]]]]:
    """Four partitions, each with ids of three days in several flushes, and what each has, by day."""
    rng = random.Random(3)
    apply_meters(ledger, [METER], "", 0)
    truth: dict[int, dict[int, set[int]]] = {}
    for partition in range(PARTITIONS):
        days = truth.setdefault(partition, {})
        for _ in range(7):
            brought = {DAY - back: sorted({rng.randrange(2**64) for _ in range(9)}) for back in range(3)}
            _flush(ledger, partition, brought)
            for day, ids in brought.items():
                days.setdefault(day, set()).update(ids)
    return ledger, truth


def _ends(engine: Engine) -> dict[int, int]:
    return {p: each.next_offset for p, each in load_progress(engine).items() if p < PARTITIONS}


def _ids(engine: Engine, partition: int) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for day, to_offset, blob in load_partition(engine, partition, 0)[1]:
        assert to_offset <= load_progress(engine, [partition])[partition].next_offset
        found.setdefault(day, set()).update(np.frombuffer(blob, dtype="<u8").tolist())
    return found


def test_new_partitions_begin_with_their_parents_ids(
    counted: tuple[Engine, dict[int, dict[int, set[int]]]],
) -> None:
    """Each of twelve remembers exactly what its number modulo four remembered, by day; the old ones are as they were."""
    ledger, truth = counted
    ids = sum(len(found) for days in truth.values() for found in days.values())
    before = dump(ledger)
    assert copy_ids(ledger, PARTITIONS, AFTER) == 2 * ids
    standing = read_standing(ledger)
    assert (standing.partitions, standing.ids, standing.ids_copied) == (4, ids, 2 * ids)
    version = meters_version(ledger)
    assert switch(ledger, PARTITIONS, AFTER, _ends(ledger), ENTRY, 9) == version + 1
    after = dump(ledger)
    for table, rows in before.items():
        assert set(rows) <= set(after[table]), f"{table}: nothing there was changed"
    for partition in range(AFTER):
        assert _ids(ledger, partition) == truth[partition % PARTITIONS]
    assert [load_progress(ledger)[p].next_offset for p in range(AFTER)] == [21] * 4 + [0] * 8
    assert read_pins(ledger).partitions == AFTER
    assert load_meter_set(ledger).partitions == AFTER
    assert load_meter_set(ledger).meters == load_meter_set(ledger, version).meters
    assert load_layouts(ledger) == {version: PARTITIONS, version + 1: AFTER}
    assert list_audit(ledger) == [ENTRY]
    assert verify_ledger(ledger) == []


def test_a_new_partition_counts_on_and_knows_both_kinds_of_ids(
    counted: tuple[Engine, dict[int, dict[int, set[int]]]],
) -> None:
    """What it inherits and what it adds are one set when it is loaded, and stay so when rows are merged and days go."""
    ledger, truth = counted
    copy_ids(ledger, PARTITIONS, AFTER)
    switch(ledger, PARTITIONS, AFTER, _ends(ledger), ENTRY, 9)
    own = [1, 2, 3]
    _flush(ledger, 9, {DAY: own})
    wanted = np.array(sorted(truth[1][DAY] | set(own)), np.uint64)
    for _ in range(2):
        progress_, blobs = load_partition(ledger, 9, 0)
        seen = rebuild_seen(progress_.next_offset, blobs)
        assert seen.probe(wanted).all()
        assert seen.count == sum(map(len, truth[1].values())) + len(own)
        compact_partition(ledger, 9)
    assert expire_seen(ledger, 9, DAY) > 0
    assert _ids(ledger, 9) == {DAY: truth[1][DAY] | set(own)}
    assert _ids(ledger, 1) == truth[1]
    assert verify_ledger(ledger) == []


async def test_an_ingest_that_slept_through_ends_at_its_next_reading(ledger: Engine, tmp_path: Path) -> None:
    """The pins are compared each time, not once: what it knew to be right at its start no longer is."""
    book = Book(ledger, TokenBook(tmp_path / "tokens", ManualClock(now_ms=0)), {"partitions": PARTITIONS})
    assert await book.read()
    switch(ledger, PARTITIONS, AFTER, _ends(ledger), ENTRY, 9)
    with pytest.raises(PinMismatch):
        await book.read()


def test_a_worker_that_slept_through_folds_again(
    counted: tuple[Engine, dict[int, dict[int, set[int]]]],
) -> None:
    """A fold made before the switch is refused after it, though nothing was counted meanwhile."""
    ledger, _ = counted
    version = meters_version(ledger)
    fold = make_fold([part(2, 21, 24, counted=1)])
    copy_ids(ledger, PARTITIONS, AFTER)
    switch(ledger, PARTITIONS, AFTER, _ends(ledger), ENTRY, 9)
    with pytest.raises(MetersChanged):
        commit_fold(ledger, fold, prints(fold), version, 0)
    assert not commit_fold(ledger, fold, prints(fold), version + 1, 0)


def test_what_is_not_counted_to_the_end_is_refused(
    counted: tuple[Engine, dict[int, dict[int, set[int]]]],
) -> None:
    """One record too many, or one too few, in one partition: nothing is written, and the refusal says where."""
    ledger, _ = counted
    copy_ids(ledger, PARTITIONS, AFTER)
    before = dump(ledger)
    for end in (22, 20):
        with pytest.raises(NotDrained) as refused:
            switch(ledger, PARTITIONS, AFTER, {**_ends(ledger), 3: end}, ENTRY, 9)
        assert refused.value.behind == {3: end - 21}
    with pytest.raises(NotDrained):
        switch(ledger, PARTITIONS, AFTER, {}, ENTRY, 9)
    assert dump(ledger) == before
    assert (read_pins(ledger).partitions, list_audit(ledger)) == (PARTITIONS, [])


def test_missing_ids_are_refused_and_copying_goes_on(
    counted: tuple[Engine, dict[int, dict[int, set[int]]]],
) -> None:
    """Cut off after its third day, then with a parent that counted on and one whose rows were merged: the switch
    refuses until the copying was run again, which copies what is not there."""
    ledger, truth = counted

    class Killed(Exception):
        pass

    seen: list[tuple[int, int, int]] = []

    def die(partition: int, day: int, count: int) -> None:
        seen.append((partition, day, count))
        if len(seen) == 3:
            raise Killed

    with pytest.raises(Killed):
        copy_ids(ledger, PARTITIONS, AFTER, die)
    with pytest.raises(IdsMissing):
        switch(ledger, PARTITIONS, AFTER, _ends(ledger), ENTRY, 9)
    _flush(ledger, 0, {DAY: [4, 5]})
    truth[0][DAY] |= {4, 5}
    compact_partition(ledger, 1)
    ids = sum(len(found) for days in truth.values() for found in days.values())
    already = sum(count for _, day, count in seen if day != DAY)
    assert copy_ids(ledger, PARTITIONS, AFTER) == 2 * ids - already
    assert copy_ids(ledger, PARTITIONS, AFTER) == 0
    switch(ledger, PARTITIONS, AFTER, _ends(ledger), ENTRY, 9)
    assert [_ids(ledger, partition) for partition in (4, 8)] == [truth[0]] * 2


def test_a_plan_for_more_that_was_given_up_leaves_nothing(
    counted: tuple[Engine, dict[int, dict[int, set[int]]]],
) -> None:
    """Ids copied for sixteen do no harm to eight, nor to sixteen later, when they come from eight."""
    ledger, truth = counted
    copy_ids(ledger, PARTITIONS, 16)
    copy_ids(ledger, PARTITIONS, 8)
    switch(ledger, PARTITIONS, 8, _ends(ledger), ENTRY, 9)
    _flush(ledger, 5, {DAY: [7]})
    assert read_standing(ledger).ids_copied == 0
    copy_ids(ledger, 8, 16)
    ends = {p: each.next_offset for p, each in load_progress(ledger).items()}
    switch(ledger, 8, 16, ends, ENTRY, 10)
    assert _ids(ledger, 13) == {**truth[1], DAY: truth[1][DAY] | {7}}
    assert _ids(ledger, 9) == truth[1]
    assert verify_ledger(ledger) == []


def test_two_at_once_and_one_that_comes_late(
    counted: tuple[Engine, dict[int, dict[int, set[int]]]], second: Engine
) -> None:
    """Two that cut over together: one does, the other is told; ids of a partition that counts are never touched."""
    ledger, _ = counted
    ends = _ends(ledger)
    results: list[object] = []

    def run(engine: Engine) -> None:
        try:
            copy_ids(engine, PARTITIONS, AFTER)
            results.append(switch(engine, PARTITIONS, AFTER, ends, ENTRY, 9))
        except LookupError as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(engine,)) for engine in (ledger, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(type(each).__name__ for each in results) == ["LookupError", "int"]
    _flush(ledger, 4, {DAY: [1]})
    before = dump(ledger)
    with pytest.raises(LookupError, match="another cut-over was quicker"):
        copy_ids(ledger, PARTITIONS, AFTER)
    assert dump(ledger) == before
    assert len(list_audit(ledger)) == 1


def test_a_ledger_without_meters_and_one_of_an_older_release(ledger: Engine) -> None:
    """Sets that do not say for how many partitions they counted are told when there first is another number."""
    switch(ledger, PARTITIONS, AFTER, _ends(ledger), ENTRY, 9)
    assert load_layouts(ledger) == {0: PARTITIONS, 1: AFTER}
    with ledger_transaction(ledger) as connection:
        connection.execute(update(meter_sets).values(partitions=None))
    ends = {p: each.next_offset for p, each in load_progress(ledger).items()}
    switch(ledger, AFTER, 24, ends, ENTRY, 9)
    assert load_layouts(ledger) == {0: AFTER, 1: AFTER, 2: 24}
    apply_meters(ledger, [METER], "", 10)
    assert load_meter_set(ledger).partitions == 24


def test_only_a_multiple_can_follow() -> None:
    """Only there every partition has a parent; and what is behind is told in both directions."""
    assert find_parents(2, 6) == {2: 0, 3: 1, 4: 0, 5: 1}
    for wanted in (4, 3, 6, 2, 1):
        with pytest.raises(CannotGrow):
            find_parents(4, wanted)
    assert find_behind({0: 5, 1: 5, 2: 5}, {0: 5, 1: 7}) == {1: 2, 2: -5}
