"""A process under watch: what it and its children have used, and how far it says it is.

Owns reading `/proc` and lines of progress. It refuses to know who the process is.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.installation import Sight

_PROC = Path("/proc")
# From the field after the command's name on: user and system time, then those of children waited for.
_TIMES = slice(11, 15)
_PROGRESS = re.compile(r"^counted (\d+)$", re.MULTILINE)
_POLL_SECONDS = 0.05


class StoodStill(RuntimeError):
    """A peer did not count everything in time."""


def tree_cpu_seconds(pid: int, proc: Path = _PROC) -> float:
    """CPU seconds of a process, its threads, its living children and those it has waited for; 0 once it is gone."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
        children = [
            int(child)
            for path in (proc / str(pid) / "task").glob("*/children")
            for child in path.read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    ticks = sum(int(field) for field in stat.rpartition(")")[2].split()[_TIMES])
    return ticks / os.sysconf("SC_CLK_TCK") + sum(tree_cpu_seconds(child, proc) for child in children)


def ended_cpu_seconds() -> float:
    """CPU seconds of every process this one has started and waited for, their children included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parse_progress(output: str) -> int:
    """Events counted by the last whole line of progress; 0 without one."""
    found = _PROGRESS.findall(output[: output.rfind("\n") + 1])
    return int(found[-1]) if found else 0


def watch_progress(
    pid: int, output: Callable[[], str], events: int, *, timeout_seconds: float
) -> list[Sight]:
    """Look until `events` are counted; one sight for each change seen. Raises StoodStill."""
    deadline = time.monotonic() + timeout_seconds
    sights: list[Sight] = []
    while True:
        counted = parse_progress(output())
        if counted and (not sights or counted != sights[-1].received):
            sights.append(Sight(time.monotonic(), counted, tree_cpu_seconds(pid)))
        if counted >= events:
            return sights
        if time.monotonic() > deadline:
            raise StoodStill(
                f"{counted} of {events} events counted after {timeout_seconds:g} s\n{output()[-2000:]}"
            )
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """Broker and database: what they used while somebody counted."""

    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        return sum(tree_cpu_seconds(pid) for pid in self.pids)


def begin_watch(meanwhile: Meanwhile | None) -> Callable[[], float | None]:
    """What broker and database have used since this call; None where somebody else runs them."""
    if meanwhile is None:
        return lambda: None
    before = meanwhile.cpu_seconds()
    return lambda: meanwhile.cpu_seconds() - before
