"""The table of the benchmarks: verdicts, ratios and their rendering."""

from __future__ import annotations

import json

import pytest

from benchmarks.row import Bound, CountsDiffer, Measure, Row, assert_counts
from benchmarks.table import HEADINGS, render_markdown, render_table


def make_row(
    *,
    cpu_us: float = 6.0,
    measure: Measure = Measure.CPU,
    floor: float | None = 8.0,
    target: float = 5.0,
    freshness: float | None = None,
    offered: float | None = None,
    bare_us: float | None = 2.0,
) -> Row:
    return Row(
        name="ingest, Kong bodies of 500",
        unit="event",
        count=200_000,
        seconds=2.0,
        cpu_us=cpu_us,
        bound=Bound(measure, floor, target, offered),
        bare="typed decode",
        bare_us=bare_us,
        freshness_p99_seconds=freshness,
    )


@pytest.mark.parametrize(
    ("cpu_us", "verdict"), [(5.0, "target"), (5.1, "floor"), (8.0, "floor"), (8.1, "below")]
)
def test_less_cpu_is_better(cpu_us: float, verdict: str) -> None:
    """A row judged by CPU reaches what it is not above."""
    assert make_row(cpu_us=cpu_us).verdict == verdict


def test_more_rate_is_better() -> None:
    """A row judged by rate reaches what it is not below: 100,000 a second here."""
    assert make_row(measure=Measure.RATE, floor=90_000, target=100_000).verdict == "target"
    assert make_row(measure=Measure.RATE, floor=90_000, target=110_000).verdict == "floor"
    assert make_row(measure=Measure.RATE, floor=110_000, target=120_000).verdict == "below"


def test_freshness_is_judged_by_its_own_number() -> None:
    """A row judged by freshness looks at nothing else."""
    assert make_row(measure=Measure.FRESHNESS, floor=3, target=3, freshness=2.9).verdict == "target"
    assert make_row(measure=Measure.FRESHNESS, floor=3, target=3, freshness=3.1).verdict == "below"


def test_a_load_that_was_not_taken_reaches_nothing() -> None:
    """Fresh events are no merit when half of what was offered still waits outside: 100,000 a second were taken."""
    for offered, verdict in ((100_000, "target"), (105_000, "target"), (106_000, "below")):
        row = make_row(measure=Measure.FRESHNESS, floor=3, target=3, freshness=0.5, offered=offered)
        assert row.verdict == verdict


def test_missing_floor_is_not_reached() -> None:
    """Without a floor there is only the target to reach."""
    assert make_row(floor=None).verdict == "below"


def test_table_lines_up_and_holds_rate_cost_and_ratio() -> None:
    """Every line has the same columns, and the numbers are those of the row."""
    heading, rule, line = render_table([make_row()]).splitlines()
    assert set(rule) == {"-"}
    assert len(rule) == max(len(heading), len(line))
    for text in ("100,000 events/s", "6.00", "≤ 8.00", "≤ 5.00", "floor", "2.00 (typed decode)", "3.0"):
        assert text in line
    assert heading.startswith("stage ")
    assert line[: heading.index(" rate") + len(" rate")].endswith(" events/s"), (
        "numbers end under their heading"
    )
    assert len(line) == len(heading)


def test_row_without_bare_limit_shows_dashes() -> None:
    """A row that has no bare limit has no ratio either."""
    row = make_row(bare_us=None)
    assert row.ratio is None
    assert render_table([row]).splitlines()[2].split()[-2:] == ["-", "-"]


def test_markdown_has_one_cell_a_heading() -> None:
    """Each Markdown line has as many cells as there are headings."""
    for line in render_markdown([make_row(), make_row(bare_us=None)]).splitlines():
        assert len(line.strip("|").split("|")) == len(HEADINGS)


def test_document_is_json_and_holds_the_ratio() -> None:
    """What is written to disk can be read back, ratio and verdict with it."""
    document = json.loads(json.dumps(make_row().to_document()))
    assert document["ratio_to_bare"] == 3.0
    assert document["verdict"] == "floor"
    assert document["rate_per_second"] == 100_000


def test_a_count_that_is_off_is_an_error() -> None:
    """Different counts raise and say both; equal ones do nothing."""
    assert_counts("events", 3, 3)
    with pytest.raises(CountsDiffer, match="events: found 2, expected 3"):
        assert_counts("events", 2, 3)
