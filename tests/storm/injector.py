"""The injector: carries a schedule out, each fault in a thread of its own, and writes down when it began and ended.

Owns time. It refuses to know what a fault is (`faults.py`) and what follows from it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from tests.storm.schedule import Fault, Place

Act = Callable[[Fault], AbstractContextManager[None]]


class NotPossible(Exception):
    """This machine does not let us bring that fault about. The message says why."""


@dataclass(slots=True)
class Injected:
    """One fault as it was carried out. Times in seconds since the storm's beginning."""

    fault: Fault
    began_seconds: float | None = None
    ended_seconds: float | None = None
    """When its healing was complete: what was killed serves again."""
    failed: str = ""
    """Why it could not be brought about, or healed; empty when it could."""
    not_run: str = ""
    """Why this machine does not permit it; it then never began."""


@dataclass(slots=True)
class Injector:
    """A context manager: the storm blows inside; on leaving, the rest of the schedule is dropped and all is healed."""

    schedule: Sequence[Fault]
    act: Act
    started: float
    """The storm's beginning on the monotonic clock."""
    on_change: Callable[[], None] = lambda: None
    injected: list[Injected] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    # A fault that took long to heal delays the next one of its place: they never meet.
    _places: dict[Place, threading.Lock] = field(
        default_factory=lambda: {place: threading.Lock() for place in Place}
    )

    def __enter__(self) -> Injector:
        for fault in self.schedule:
            entry = Injected(fault)
            self.injected.append(entry)
            self._threads.append(threading.Thread(target=self._carry_out, args=(entry,), name=str(fault)))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        """Return when every fault is over and healed."""
        for thread in self._threads:
            thread.join()

    def in_force(self) -> list[Injected]:
        """The faults that have begun and are not healed."""
        return [
            each for each in self.injected if each.began_seconds is not None and each.ended_seconds is None
        ]

    def _now(self) -> float:
        return round(time.monotonic() - self.started, 2)

    def _carry_out(self, entry: Injected) -> None:
        fault = entry.fault
        if self._over.wait(max(0.0, self.started + fault.at_seconds - time.monotonic())):
            return
        with self._places[fault.place]:
            if self._over.is_set():
                return
            try:
                entry.began_seconds = self._now()
                self.on_change()
                with self.act(fault):
                    self._over.wait(fault.lasts_seconds)
            except NotPossible as error:
                entry.not_run = str(error)
            except Exception as error:
                entry.failed = f"{type(error).__name__}: {error}"[:500]
            finally:
                if entry.not_run:
                    entry.began_seconds = None
                else:
                    entry.ended_seconds = self._now()
                self.on_change()
