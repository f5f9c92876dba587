"""The curves: every point counts exactly, and notices when it does not."""

from __future__ import annotations

import pytest

from benchmarks.backlog import Backlog
from benchmarks.curves.folding import fold_backlog
from benchmarks.curves.varied import curves, repeat_meters, ten_meters
from benchmarks.row import CountsDiffer
from tollgate.metering.definition import MeterSet, MeterVersion
from tollgate.metering.seen import SeenIds

NOW_MS = 1_790_000_000_000
METERS = repeat_meters(12, ten_meters())


def make_backlog(duplicates: float = 0.2, accounts: int = 30) -> Backlog:
    return Backlog(
        [40] * 50, partitions=4, id_seed=7, now_ms=NOW_MS, accounts=accounts, duplicates=duplicates
    )


def make_set() -> MeterSet:
    return MeterSet(1, tuple(MeterVersion(n, meter, 0, None) for n, (meter, _) in enumerate(METERS, start=1)))


def test_meters_are_repeated_under_names_of_their_own() -> None:
    """Each still equals the meter it was made of."""
    assert len({meter.name for meter, _ in METERS}) == 12
    assert [truth for _, truth in METERS[10:]] == [truth for _, truth in METERS[:2]]


def test_a_backlog_is_folded_and_equals_its_own_count() -> None:
    """Repeated meters, few accounts and many copies included."""
    seen = {partition: SeenIds() for partition in range(4)}
    truth_of = {meter.name: truth for meter, truth in METERS}
    folded = fold_backlog(make_backlog(), make_set(), seen, truth_of)
    assert folded.events == 2_000
    assert sum(each.count for each in seen.values()) < 2_000


def test_a_total_that_differs_is_noticed() -> None:
    """A meter held against another one's truth."""
    truth_of = {meter.name: truth for meter, truth in METERS} | {METERS[0][0].name: "failures"}
    with pytest.raises(CountsDiffer, match="totals that differ"):
        fold_backlog(make_backlog(), make_set(), {partition: SeenIds() for partition in range(4)}, truth_of)


def test_ids_seen_before_are_not_the_backlogs() -> None:
    """They are as many as asked for, over partitions and days, and count nobody out."""
    [none, some] = curves(12_000, seen_max=1_000_000)["ids seen before"]
    assert (none.value, none.notes) == (0, {})
    assert some.notes["ids"] == pytest.approx(1_000_000, rel=0.001)
    assert some.folded.events == 12_000
