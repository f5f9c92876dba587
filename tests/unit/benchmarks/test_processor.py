"""The CPU reader: fields of /proc/<pid>/stat, and who gets which core."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.processor import children_of, cpu_seconds, parse_cpu_ticks, share_cores

STAT = "4711 (meter (py) 3) S 1 4711 4711 0 -1 4194560 9 8 7 6 250 50 1 2 20 0 12 0 100 1000 10 18446744073709551615"


def test_ticks_are_user_plus_system_whatever_the_name() -> None:
    """A command's name with spaces and parentheses does not shift the fields; children's time is left out."""
    assert parse_cpu_ticks(STAT) == 300


def test_ticks_become_seconds(tmp_path: Path) -> None:
    """Ticks are divided by the system's clock rate."""
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711" / "stat").write_text(STAT)
    assert cpu_seconds(4711, tmp_path) == 300 / os.sysconf("SC_CLK_TCK")


def test_a_process_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """No process, no number."""
    with pytest.raises(ProcessLookupError):
        cpu_seconds(4711, tmp_path)


def test_the_measured_process_has_a_core_to_itself() -> None:
    """With two cores or more the first is the measured one's alone; one core is shared."""
    two = share_cores(frozenset({4, 2, 9}))
    assert (two.measured, two.others) == (frozenset({2}), frozenset({4, 9}))
    one = share_cores(frozenset({3}))
    assert (one.measured, one.others) == (frozenset({3}), frozenset({3}))


def test_a_process_knows_its_children(tmp_path: Path) -> None:
    """By the parent's number, which stands behind a name that may hold anything."""
    for pid, parent in ((7, 1), (8, 7), (9, 7), (10, 8)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) 9 (b) S {parent} 1 1 0 -1 4194304")
    (tmp_path / "version").write_text("Linux")
    assert children_of(7, tmp_path) == [8, 9]
