"""The processor: what a process has used of it, and which core it may use.

Owns reading `/proc` and setting affinity; Linux alone. It refuses to know what is measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# Fields of /proc/<pid>/stat counted from the one after the command's name: proc(5) numbers them 14 and 15.
_UTIME, _STIME = 11, 12


def cpu_seconds(pid: int, proc: Path = _PROC) -> float:
    """CPU seconds a process has used, user and system, all its threads, also those that have ended.

    Raises ProcessLookupError when there is no such process.
    """
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    return parse_cpu_ticks(stat) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int, proc: Path = _PROC) -> list[int]:
    """The processes a process has started and that live."""
    found = []
    for path in proc.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return sorted(found)


def parse_cpu_ticks(stat: str) -> int:
    """User plus system ticks of one line of /proc/<pid>/stat. The command's name may hold spaces and parentheses."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[_UTIME]) + int(fields[_STIME])


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: what is measured has a core to itself, as far as there are two."""

    measured: frozenset[int]
    others: frozenset[int]
    """Broker, database and load generator."""

    @property
    def both(self) -> frozenset[int]:
        return self.measured | self.others


def share_cores(allowed: frozenset[int]) -> Cores:
    """The first core for what is measured, the rest for everything else; one core alone is shared."""
    first, *rest = sorted(allowed)
    return Cores(frozenset({first}), frozenset(rest) or frozenset({first}))


@contextmanager
def pinned_to(cores: frozenset[int]) -> Iterator[None]:
    """Run this process, and what it starts meanwhile, on `cores`.

    A child inherits the affinity of the thread that starts it, and so do the child's own threads: setting it from
    outside would miss those that exist already.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
