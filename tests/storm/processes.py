"""The processes of a storm by name: services, brokers, database and Stripe's stand-in, all killed and started alike.

Owns who holds a process at a moment (a fault, or the supervisor that starts again what has ended by itself) and the
record of ends nobody asked for. It refuses to know why a fault wants it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_RESTART_SECONDS = 1.0
"""Between an end and the next start, as a supervisor's back-off."""
_WATCH_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Process:
    """One process and what can be done to it."""

    name: str
    pid: Callable[[], int | None]
    """None when it does not run."""
    end: Callable[[signal.Signals], int]
    """Send the signal and wait until it has ended; returns the exit code."""
    start: Callable[[], None]
    """Start it; does not wait until it is ready."""
    ready: Callable[[], bool]
    exit_code: Callable[[], int | None]
    """Of a process that has ended by itself."""
    is_part: bool = False
    """A broker, the database or Stripe: a fault of theirs is over when they serve again."""

    def pause(self) -> None:
        """SIGSTOP."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT; nothing when it has ended meanwhile."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            os.kill(pid, number)


@dataclass(frozen=True, slots=True)
class Exit:
    """An end nobody asked for."""

    at_seconds: float
    name: str
    code: int | None
    last_words: str
    """The last line of its log."""


@dataclass(slots=True)
class Processes:
    """All of them. Thread-safe: what is held is touched by its holder alone."""

    members: dict[str, Process]
    log_of: Callable[[str], Path]
    started: float = field(default_factory=time.monotonic)
    exits: list[Exit] = field(default_factory=list)
    terminations: list[tuple[str, int]] = field(default_factory=list)
    """Exit codes after SIGTERM."""
    _locks: dict[str, threading.RLock] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._locks = {name: threading.RLock() for name in self.members}

    @contextmanager
    def held(self, names: Iterable[str]) -> Iterator[list[Process]]:
        """These are the caller's alone inside; whoever else wants one waits."""
        ordered = sorted(names)
        for name in ordered:
            self._locks[name].acquire()
        try:
            yield [self.members[name] for name in ordered]
        finally:
            for name in reversed(ordered):
                self._locks[name].release()

    def supervise(self) -> None:
        """Start again whatever ends by itself, and write it down, until `stop_supervising()`."""
        due: dict[str, float] = {}
        while not self._stopping.wait(_WATCH_SECONDS):
            for name, process in self.members.items():
                if not self._locks[name].acquire(blocking=False):
                    continue
                try:
                    if process.pid() is not None:
                        due.pop(name, None)
                    elif name not in due:
                        self._note_exit(process)
                        due[name] = time.monotonic() + _RESTART_SECONDS
                    elif time.monotonic() >= due[name]:
                        process.start()
                finally:
                    self._locks[name].release()

    def stop_supervising(self) -> None:
        """From now on what ends stays ended."""
        self._stopping.set()

    def terminate(self, process: Process) -> None:
        """SIGTERM, and its exit code written down."""
        self.terminations.append((process.name, process.end(signal.SIGTERM)))

    def _note_exit(self, process: Process) -> None:
        self.exits.append(
            Exit(
                at_seconds=round(time.monotonic() - self.started, 2),
                name=process.name,
                code=process.exit_code(),
                last_words=_last_line(self.log_of(process.name)),
            )
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1][:500] if lines else ""
