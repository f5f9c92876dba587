"""How each fault is brought about and healed: one context manager a kind, the trouble lasting inside.

Owns the acts. It refuses to know when they come (`schedule.py`, `injector.py`) and what follows from them.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from signal import SIGKILL, SIGTERM

import psycopg

from tests.storm.ground import Ground
from tests.storm.injector import NotPossible
from tests.storm.processes import Process
from tests.storm.schedule import Fault, Kind
from tests.storm.weather import CALM, Weather

SERVING_SECONDS = 60.0
"""How long a part may take to serve again after its fault, on a machine that does much else."""
_FLAP_SECONDS = 2.0
_STARVED_SECONDS, _FED_SECONDS = 0.18, 0.02
_FILES = 8
"""Fewer than are open already: every further one is refused."""
_METER_EVENTS = r"^/v1/billing/meter_events$"

_WEATHERS: dict[Kind, Weather] = {
    Kind.CUT: Weather(cut=True),
    Kind.FREEZE: Weather(frozen=True),
    Kind.SLOW: Weather(latency_ms=500, jitter_ms=1_000),
    Kind.NARROW: Weather(bytes_per_second=8_000),
    Kind.LOSE_REPLIES: Weather(lost_replies_percent=20),
    Kind.CUT_COMMIT: Weather(cut_after=b"COMMIT"),
}
# What the stand-in is told; `saved` failures are those kept under the idempotency key.
_STRIPE_RULES: dict[Kind, dict[str, object]] = {
    Kind.ANSWER_500: {"kind": "error_500_before", "probability": 0.3},
    Kind.ANSWER_SAVED_500: {"kind": "error_500_after", "probability": 0.3},
    Kind.ANSWER_429: {"kind": "rate_limit_429", "probability": 0.5, "reason": "global-rate"},
    Kind.DROP_BEFORE: {"kind": "drop_before", "probability": 0.3},
    Kind.DROP_AFTER: {"kind": "drop_after", "probability": 0.3},
    Kind.ANSWER_401: {"kind": "unauthorized_401"},
}


class NotServing(RuntimeError):
    """A part does not serve again though its fault is over."""


def fault_in_force(ground: Ground, fault: Fault) -> AbstractContextManager[None]:
    """The fault, in force inside and healed outside. Raises NotServing when healing does not help."""
    if fault.kind in _WEATHERS and (fault.kind is not Kind.FREEZE or ":" in fault.target):
        return _bad_weather(ground, fault.target, _WEATHERS[fault.kind])
    if fault.kind in _STRIPE_RULES:
        return _failing_stripe(ground, _STRIPE_RULES[fault.kind])
    return _ACTS[fault.kind](ground, fault.target)


@contextmanager
def _bad_weather(ground: Ground, pattern: str, weather: Weather) -> Iterator[None]:
    ground.proxy.set_weather(pattern, weather)
    try:
        yield
    finally:
        ground.proxy.set_weather(pattern, CALM)


@contextmanager
def _failing_stripe(ground: Ground, rule: dict[str, object]) -> Iterator[None]:
    details = dict(rule)
    match = {} if details["kind"] == "unauthorized_401" else {"method": "POST", "path": _METER_EVENTS}
    ground.control.add_fault(str(details.pop("kind")), match, **details)
    try:
        yield
    finally:
        ground.control.clear_faults()


@contextmanager
def _killed(ground: Ground, target: str) -> Iterator[None]:
    with ground.processes.held(target.split(",")) as processes:
        for process in processes:
            process.end(SIGKILL)
        try:
            yield
        finally:
            _start_again(processes)


@contextmanager
def _terminated(ground: Ground, target: str) -> Iterator[None]:
    with ground.processes.held(target.split(",")) as processes:
        for process in processes:
            # As a rolling restart does it: a process that is still starting has no hand on SIGTERM yet.
            _wait_ready(process)
            ground.processes.terminate(process)
        try:
            yield
        finally:
            _start_again(processes)


@contextmanager
def _paused(ground: Ground, target: str) -> Iterator[None]:
    with ground.processes.held([target]) as (process,):
        process.pause()
        try:
            yield
        finally:
            process.resume()


@contextmanager
def _flapping(ground: Ground, target: str) -> Iterator[None]:
    """Ended by SIGTERM and SIGKILL in turn, started again, all the time."""
    over = threading.Event()
    with ground.processes.held([target]) as (process,):

        def flap() -> None:
            number = SIGTERM
            while not over.wait(_FLAP_SECONDS):
                process.end(number)
                process.start()
                number = SIGKILL if number is SIGTERM else SIGTERM

        thread = threading.Thread(target=flap, name=f"flap-{target}")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def _starved(ground: Ground, target: str) -> Iterator[None]:
    """Nobody needs a control group for it, and it works as any user."""
    over = threading.Event()
    with ground.processes.held([target]) as (process,):

        def starve() -> None:
            while not over.is_set():
                process.pause()
                over.wait(_STARVED_SECONDS)
                process.resume()
                time.sleep(_FED_SECONDS)

        thread = threading.Thread(target=starve, name=f"starve-{target}")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def _out_of_files(ground: Ground, target: str) -> Iterator[None]:
    with ground.processes.held([target]) as (process,):
        pid = process.pid()
        if pid is None:
            raise NotServing(f"{target} does not run")
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE, (_FILES, hard))
        # Who is connected would not notice: everybody has to come again.
        ground.proxy.set_weather(f"clients:{target}", _WEATHERS[Kind.CUT])
        ground.proxy.set_weather(f"clients:{target}", CALM)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _backends_killed(ground: Ground, _: str) -> Iterator[None]:
    over = threading.Event()
    url = ground.postgres.url("postgres").replace("postgresql+psycopg", "postgresql", 1)

    def end_sessions() -> None:
        while True:
            with suppress(psycopg.Error), psycopg.connect(url, autocommit=True, connect_timeout=5) as session:
                session.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
            if over.wait(1.0):
                return

    thread = threading.Thread(target=end_sessions, name="kill-backends")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _disk_full(ground: Ground, target: str) -> Iterator[None]:
    """What dies of it is started again when there is room; that is part of healing."""
    with ground.processes.held([target]) as processes:
        disk = ground.disks[target]
        try:
            disk.fill()
        except PermissionError as error:
            raise NotPossible(
                f"neither may a tmpfs be mounted nor the files of {target} be limited: {error}"
            ) from None
        try:
            yield
        finally:
            disk.free()
            _start_again([process for process in processes if process.pid() is None])


_ACTS: dict[Kind, Callable[[Ground, str], AbstractContextManager[None]]] = {
    Kind.KILL: _killed,
    Kind.TERMINATE: _terminated,
    Kind.PAUSE: _paused,
    Kind.FLAP: _flapping,
    Kind.STARVE: _starved,
    Kind.NO_FILES: _out_of_files,
    Kind.KILL_BACKENDS: _backends_killed,
    Kind.FILL_DISK: _disk_full,
}


def _start_again(processes: list[Process]) -> None:
    """Start those that are down, and wait for the parts among them: services are waited for by nobody."""
    for process in processes:
        if process.pid() is None:
            process.start()
    for process in processes:
        if process.is_part:
            _wait_ready(process)


def _wait_ready(process: Process) -> None:
    deadline = time.monotonic() + SERVING_SECONDS
    while not process.ready():
        if time.monotonic() > deadline:
            raise NotServing(f"{process.name} was not ready for {SERVING_SECONDS:g} s")
        if process.pid() is None:
            process.start()
        time.sleep(0.1)
