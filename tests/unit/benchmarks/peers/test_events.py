"""The peers' events and their ten meters: both against the backlog's own truth."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

from benchmarks.backlog import ACCOUNTS
from benchmarks.peers.events import Span, closing_lines, render_lines
from benchmarks.peers.meters import GRACE_MS, HOUR_MS, REPORT_EVERY, add_event, new_row
from benchmarks.peers.outcome import compare_usage, usage_of_rows
from tollgate.contracts.events import assign_partition

SPAN = Span(events=4_000, partitions=2, now_ms=1_795_392_000_000)


def count(lines: list[bytes]) -> dict[tuple[str, int], dict[str, Any]]:
    rows: dict[tuple[str, int], dict[str, Any]] = defaultdict(new_row)
    for line in lines:
        event = json.loads(line.split(b"\t", 3)[3])
        add_event(rows[event["account"], event["time_ms"] // HOUR_MS * HOUR_MS], event)
    return rows


def test_meters_by_hand_over_the_json_equal_the_truth_of_the_backlog() -> None:
    """Row by row over the JSON comes to what NumPy counted while the backlog was made, copies left out."""
    backlog = SPAN.backlog()
    lines = list(render_lines(backlog.records()))
    truth = backlog.truth()
    assert truth.duplicates > 0
    assert len(lines) == truth.events - truth.duplicates
    assert compare_usage(usage_of_rows(count(lines), SPAN.end_ms), truth.usage).exact


def test_a_line_names_its_partition_and_time() -> None:
    """The head of a line is the event's own: the account's partition, the event's time, the account."""
    for line in render_lines(SPAN.backlog().records()):
        partition, time_ms, account, value = line.split(b"\t", 3)
        event = json.loads(value)
        assert (int(time_ms), account.decode()) == (event["time_ms"], event["account"])
        assert int(partition) == assign_partition(event["account"], SPAN.partitions)


def test_the_same_span_is_the_same_events_whatever_the_id_seed() -> None:
    """Tollgate's meter and the peers see one truth, though they hash ids with different seeds."""
    one, other = SPAN.backlog(1), SPAN.backlog(2)
    assert list(render_lines(one.records())) == list(render_lines(other.records()))
    assert one.truth() == other.truth()


def test_closing_events_round_the_log_up_and_close_every_window() -> None:
    """Each account has one or more, past the grace of the last window compared, in a window that is not."""
    for written in (0, 1, 3_961, 4_000):
        lines = list(closing_lines(written, SPAN))
        assert (written + len(lines)) % REPORT_EVERY == 0
        assert len(lines) < ACCOUNTS + REPORT_EVERY
        assert len(Counter(line.split(b"\t")[2] for line in lines)) == ACCOUNTS
        assert all(int(line.split(b"\t")[1]) > SPAN.end_ms + GRACE_MS for line in lines)
        assert not usage_of_rows(count(lines), SPAN.end_ms)
