"""Shutdown: one wish, one deadline, and an exit code that tells the truth."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from tollgate.runtime.shutdown import EXIT_FAILED, EXIT_OVERDUE, Deadline, Shutdown, run_service

LONG_SECONDS = 3_600.0


class Exits:
    """Stands where `os._exit` would, and remembers."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.called = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.called.set()


def test_deadline_ends_the_process_once() -> None:
    """An armed deadline that passes exits with its code, once, however often it was armed."""
    exits = Exits()
    deadline = Deadline(0, exit_code=9, exit=exits)
    deadline.arm()
    deadline.arm()
    assert exits.called.wait(10)
    deadline.cancel()
    assert exits.codes == [9]


def test_deadline_not_armed_or_cancelled_ends_nothing() -> None:
    """A deadline that is cancelled in time, or was never armed, does not exit."""
    exits = Exits()
    for arm in (True, False):
        deadline = Deadline(LONG_SECONDS, exit=exits)
        if arm:
            deadline.arm()
        assert deadline.armed is arm
        deadline.cancel()
    assert exits.codes == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_sets_the_event_and_starts_the_deadline(number: signal.Signals) -> None:
    """The first signal asks for the end and arms the deadline; a second one changes nothing."""
    shutdown = Shutdown(LONG_SECONDS, exit=Exits())
    shutdown.install(asyncio.get_running_loop())
    try:
        assert not shutdown.requested
        os.kill(os.getpid(), number)
        await shutdown.event.wait()
        assert shutdown.reason == number.name
        shutdown.request("again")
        assert (shutdown.requested, shutdown.reason, shutdown.deadline.armed) == (True, number.name, True)
    finally:
        shutdown.uninstall()
        shutdown.deadline.cancel()


def run(main: object, exits: Exits, seconds: float = LONG_SECONDS) -> int:
    """`run_service`, with its deadline cancelled once the loop has ended."""
    kept: list[Shutdown] = []

    async def wrapped(shutdown: Shutdown) -> None:
        kept.append(shutdown)
        await main(shutdown)  # type: ignore[operator]

    try:
        return run_service(wrapped, seconds, exit=exits)
    finally:
        kept[0].deadline.cancel()


def test_service_that_drains_exits_0() -> None:
    """A service that ends in good order after SIGTERM exits 0."""
    drained = []

    async def main(shutdown: Shutdown) -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await shutdown.event.wait()
        drained.append(shutdown.reason)

    exits = Exits()
    assert run(main, exits) == 0
    assert drained == ["SIGTERM"]
    assert exits.codes == []


def test_service_that_fails_exits_1() -> None:
    """An exception out of a service is exit code 1, not a traceback out of the runner."""

    async def main(shutdown: Shutdown) -> None:
        raise RuntimeError("broken")

    assert run(main, Exits()) == EXIT_FAILED


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (None, 0), ("words", EXIT_FAILED)])
def test_service_that_says_its_code_gets_it(code: int | str | None, expected: int) -> None:
    """SystemExit out of a service becomes the exit code it carries."""

    async def main(shutdown: Shutdown) -> None:
        raise SystemExit(code)

    assert run(main, Exits()) == expected


def test_service_that_hangs_is_ended_by_force() -> None:
    """A service still draining at the deadline is ended by force, with a code that is not 0."""
    exits = Exits()

    async def main(shutdown: Shutdown) -> None:
        shutdown.request("test")
        await asyncio.to_thread(exits.called.wait, 10)

    assert run(main, exits, seconds=0.0) == 0
    assert exits.codes == [EXIT_OVERDUE]


def test_service_that_ends_by_itself_may_not_linger() -> None:
    """The deadline also runs when a service ends without being asked: leftover threads cannot keep it alive."""
    kept: list[Shutdown] = []

    async def main(shutdown: Shutdown) -> None:
        kept.append(shutdown)

    assert run(main, Exits()) == 0
    assert kept[0].deadline.armed
