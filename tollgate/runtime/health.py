"""Health: whether this process has started, is alive, and can do its job now.

Owns the three answers a supervisor asks for. It refuses to know HTTP, and liveness refuses to know any
dependency: restarting a process does not repair somebody else's broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tollgate.runtime.clock import Clock

OK = 200
UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether one named part can do its job, and in words why (not)."""

    ok: bool
    detail: str


class Health:
    """What the probes are told. Written by the service, read by `operations_app`; one event loop, no locks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = False
        self._draining = False
        self._ready: dict[str, Readiness] = {}
        self._beats: dict[str, float] = {}
        self._max_age_seconds: dict[str, float] = {}

    @property
    def readiness(self) -> Mapping[str, Readiness]:
        """Each named part as last reported."""
        return dict(self._ready)

    def mark_started(self) -> None:
        """Start-up work (migrations checked, connections made, state loaded) is done."""
        self._started = True

    def mark_draining(self) -> None:
        """No new work please: not ready from now on, still alive. There is no way back."""
        self._draining = True

    def set_ready(self, name: str, ok: bool, detail: str = "") -> None:
        """Report whether the part called `name` can do its job. One that cannot makes the process not ready."""
        self._ready[name] = Readiness(ok, detail)

    def watch(self, name: str, max_age_seconds: float) -> None:
        """From now on `heartbeat(name)` must come at least every `max_age_seconds`, or the process is not alive."""
        self._max_age_seconds[name] = max_age_seconds
        self._beats[name] = self._clock.monotonic_seconds()

    def unwatch(self, name: str) -> None:
        """Stop expecting `heartbeat(name)`: its work has ended in good order."""
        self._max_age_seconds.pop(name, None)
        self._beats.pop(name, None)

    def heartbeat(self, name: str) -> None:
        """`name` made progress, or found that there is none to make."""
        self._beats[name] = self._clock.monotonic_seconds()

    def startupz(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body: has start-up work finished?"""
        return (OK if self._started else UNAVAILABLE), {"started": self._started}

    def livez(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body: does every watched part still make progress? 503 asks for a restart."""
        now = self._clock.monotonic_seconds()
        ages = {name: now - self._beats[name] for name in self._max_age_seconds}
        stuck = sorted(name for name, age in ages.items() if age > self._max_age_seconds[name])
        return (UNAVAILABLE if stuck else OK), {
            "alive": not stuck,
            "stuck": stuck,
            "heartbeat_age_seconds": {name: round(age, 3) for name, age in sorted(ages.items())},
        }

    def readyz(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body: can this process do its job now? 503 asks for no traffic, not for a restart."""
        ready = self._started and not self._draining and all(part.ok for part in self._ready.values())
        return (OK if ready else UNAVAILABLE), {
            "ready": ready,
            "started": self._started,
            "draining": self._draining,
            "parts": {
                name: {"ok": part.ok, "detail": part.detail} for name, part in sorted(self._ready.items())
            },
        }
