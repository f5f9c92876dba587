"""What a worker reads when it is given a partition, and forgetting ids that are too old to matter."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sqlalchemy import Engine

from tests.contract.ledger.folds import dump, make_fold, part, prints
from tollgate.ledger.engine import LedgerNotReady
from tollgate.ledger.progress import commit_fold, expire_seen, load_partition, load_progress, load_seen


def _commit(engine: Engine, partition: int, offset: int, seen: dict[int, list[int]]) -> None:
    fold = make_fold([part(partition, offset, offset + 1, counted=1, seen=seen)])
    assert commit_fold(engine, fold, prints(fold), 0, now_ms=1) == frozenset()


def test_seen_ids_come_back_as_they_were(ledger: Engine) -> None:
    """Every bit of every id, by day and offset, of this partition only."""
    rng = random.Random(7)
    truth: dict[tuple[int, int], list[int]] = {}
    for offset in range(5):
        seen = {
            day: sorted({rng.getrandbits(64) for _ in range(rng.randrange(1, 2_000))})
            for day in (20_000 + offset, 20_001 + offset)
        }
        seen[20_000 + offset] = sorted({0, 2**63, 2**64 - 1, *seen[20_000 + offset]})
        _commit(ledger, 0, offset, seen)
        _commit(ledger, 1, offset, {20_000: [5]})
        truth |= {(day, offset + 1): ids for day, ids in seen.items()}
    found = {(day, to): np.frombuffer(ids, dtype="<u8").tolist() for day, to, ids in load_seen(ledger, 0, 0)}
    assert found == truth
    assert list(found) == sorted(found)
    progress, blobs = load_partition(ledger, 0, from_day=20_003)
    assert progress.next_offset == 5
    assert [(day, to) for day, to, _ in blobs] == sorted(key for key in truth if key[0] >= 20_003)
    assert all(row[4] == len(row[3]) // 8 for row in dump(ledger)["seen_ids"])


def test_a_flush_without_ids_writes_no_blob(ledger: Engine) -> None:
    """Duplicates and ticks alone leave nothing to remember."""
    _commit(ledger, 0, 0, {20_000: []})
    assert dump(ledger)["seen_ids"] == []


def test_ids_belong_to_the_offset_read_with_them(ledger: Engine, second: Engine) -> None:
    """A flush committed by another between the two reads of a load is in both or in neither."""
    _commit(ledger, 0, 0, {20_000: [1]})
    blobs = load_seen(ledger, 0, 0)
    assert next(blobs)[1] == 1
    _commit(second, 0, 1, {20_000: [2]})
    assert list(blobs) == []
    progress, after = load_partition(ledger, 0, 0)
    assert progress.next_offset == max(to for _, to, _ in after) == 2


def test_old_days_are_forgotten_whole(ledger: Engine) -> None:
    """Only that partition, only days before; how many blobs went is said."""
    for partition in (0, 1):
        for offset in range(3):
            _commit(ledger, partition, offset, {20_000 + offset: [1], 20_001 + offset: [2]})
    assert expire_seen(ledger, 0, before_day=20_002) == 3
    assert expire_seen(ledger, 0, before_day=20_002) == 0
    assert {day for day, _, _ in load_seen(ledger, 0, 0)} == {20_002, 20_003}
    assert len(list(load_seen(ledger, 1, 0))) == 6
    assert load_progress(ledger, [0])[0].next_offset == 3


def test_a_partition_the_ledger_does_not_know_is_an_error(ledger: Engine) -> None:
    """Never taken for a partition at offset 0: that would count a log from its beginning."""
    with pytest.raises(LedgerNotReady, match="99"):
        load_partition(ledger, 99, 0)
    with pytest.raises(LedgerNotReady, match="99"):
        load_progress(ledger, [0, 99])
