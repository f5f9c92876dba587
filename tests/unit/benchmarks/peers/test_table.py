"""A contender's line: the arithmetic of its runs, and the table."""

from __future__ import annotations

import json

from benchmarks.installation import Sight
from benchmarks.peers.contender import Count, KilledCount, Line, draw_line, warm_cpu_us
from benchmarks.peers.outcome import Miscount
from benchmarks.peers.table import HEADINGS, render_markdown, render_table

EXACT = Miscount(0, 0, 0)
SIGHTS = [Sight(1.0, 1_000, 2.0), Sight(2.0, 5_000, 5.0), Sight(4.0, 9_000, 7.0), Sight(5.0, 11_000, 7.5)]


def make_line(name: str, cpu_us: float, miscount: Miscount) -> Line:
    return Line(
        name, "exact", 11_000, cpu_us, warm_cpu_us=1.5, rate=250_000.4, killed_at=6_000, after_kill=miscount
    )


def test_starting_and_ending_is_taken_off() -> None:
    """CPU and events of the short run are subtracted; the rate is from the first sight to the last."""
    start = Count(1_000, SIGHTS[:1], cpu_seconds=2.0, elsewhere_cpu_seconds=0.5, miscount=EXACT)
    full = Count(11_000, SIGHTS, cpu_seconds=8.0, elsewhere_cpu_seconds=1.5, miscount=EXACT)
    line = draw_line("peer", "mode", start, full, KilledCount(11_000, 6_000, Miscount(3, 0, 9)))
    assert line.cpu_us == 600.0
    assert line.elsewhere_cpu_us == 100.0
    assert line.rate == 2_500.0
    assert line.warm_cpu_us == 250.0
    assert (line.events, line.killed_at, line.after_kill) == (11_000, 6_000, Miscount(3, 0, 9))


def test_somebody_elses_broker_has_no_cpu() -> None:
    """Unknown is unknown, not nothing."""
    start = Count(1_000, SIGHTS[:1], 2.0, None, EXACT)
    full = Count(11_000, SIGHTS, 8.0, None, EXACT)
    line = draw_line("peer", "mode", start, full, KilledCount(11_000, 6_000, EXACT))
    assert line.elsewhere_cpu_us is None
    assert line.to_document()["broker_and_database_cpu_seconds_per_million"] is None


def test_a_second_half_that_was_never_seen_has_no_cost() -> None:
    """One sight past half is no span."""
    assert warm_cpu_us(SIGHTS[:1]) == 0.0
    assert warm_cpu_us([SIGHTS[0], SIGHTS[3]]) == 0.0


def test_everybody_is_compared_with_the_first_line() -> None:
    """The ratio is to Tollgate's figure, what a kill did stands in words, and who did not run says why."""
    lines = [
        make_line("Tollgate's meter", 2.0, EXACT),
        make_line("loop", 8.0, Miscount(232_000, 0, 900)),
        Line("Kafka Streams (Java)", "-", not_run="no JDK"),
    ]
    for text in (render_table(lines), render_markdown(lines)):
        own, loop, streams = text.splitlines()[2:]
        assert "1.0" in own
        assert "250,000" in own
        assert "exact (killed at 6,000)" in own
        assert "4.0" in loop
        assert "lost 232,000 (killed at 6,000)" in loop
        assert "not run: no JDK" in streams
    assert all(line.count("|") == len(HEADINGS) + 1 for line in render_markdown(lines).splitlines())


def test_documents_are_json() -> None:
    """What is written to disk is plain JSON, also of who did not run."""
    document = json.loads(json.dumps(make_line("loop", 8.0, Miscount(1, 2, 3)).to_document()))
    assert document["after_kill"] == {"lost": 1, "doubled": 2, "rows_off": 3}
    assert Line("x", "-", not_run="no JDK").to_document() == {"name": "x", "mode": "-", "not_run": "no JDK"}
