"""Watching a peer: CPU of a tree of processes, and its lines of progress."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.peers.watching import StoodStill, parse_progress, tree_cpu_seconds, watch_progress

STAT = "{pid} (java (x)) S 1 1 1 0 -1 4194560 9 8 7 6 {user} {system} {waited_user} {waited_system} 20 0 12 0 100 1000"


def put(proc: Path, pid: int, times: tuple[int, int, int, int], children: dict[int, str]) -> None:
    user, system, waited_user, waited_system = times
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "stat").write_text(
        STAT.format(pid=pid, user=user, system=system, waited_user=waited_user, waited_system=waited_system)
    )
    for thread, pids in children.items():
        (proc / str(pid) / "task" / str(thread)).mkdir(parents=True)
        (proc / str(pid) / "task" / str(thread) / "children").write_text(pids)


def test_cpu_of_a_tree_is_its_own_and_that_of_children_dead_and_alive(tmp_path: Path) -> None:
    """Own time, children waited for, and living children of every thread, and theirs; one just gone adds nothing."""
    put(tmp_path, 10, (100, 20, 3, 4), {10: "11 ", 12: "13 99 "})
    put(tmp_path, 11, (1_000, 0, 0, 0), {11: "14 "})
    put(tmp_path, 13, (5_000, 0, 0, 0), {13: ""})
    put(tmp_path, 14, (20_000, 0, 0, 0), {14: ""})
    assert tree_cpu_seconds(10, tmp_path) == 26_127 / os.sysconf("SC_CLK_TCK")


def test_progress_is_the_last_whole_line() -> None:
    """Other output does not disturb it, and half a number is not read."""
    assert parse_progress("") == 0
    assert parse_progress("WARN counted 7\ncounted 1000\nlog\ncounted 2000\ncounted 30") == 2_000
    assert parse_progress("counted 10") == 0


def test_watching_ends_with_the_last_event_or_with_an_error() -> None:
    """A sight for each change; a peer that stands still is an error that shows its output."""
    outputs = iter(["", "counted 1000\n", "counted 1000\n", "counted 1000\ncounted 3000\n"])
    sights = watch_progress(os.getpid(), lambda: next(outputs), 3_000, timeout_seconds=60)
    assert [sight.received for sight in sights] == [1_000, 3_000]
    with pytest.raises(StoodStill, match=r"1000 of 2000 events .*\ncounted 1000"):
        watch_progress(os.getpid(), lambda: "counted 1000\n", 2_000, timeout_seconds=0)
