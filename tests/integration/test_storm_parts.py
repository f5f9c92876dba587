"""The storm's own parts on real processes and clocks: schedules carried out, healing, and ends nobody asked for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.child import Child
from tests.storm.injector import Injector, NotPossible
from tests.storm.processes import Process, Processes
from tests.storm.schedule import Fault, Kind, Place


def fault(at: float, lasts: float, place: Place = Place.KAFKA) -> Fault:
    """A fault of no particular kind."""
    return Fault(at, lasts, place, Kind.CUT, "a")


def reach(reached: Callable[[], bool]) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Acts:
    """Remembers what began and ended, and how many of one place were in force at once."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Fault]] = []
        self.now: dict[Place, int] = dict.fromkeys(Place, 0)
        self.most = 0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, fault: Fault) -> Iterator[None]:
        with self._lock:
            self.seen.append(("begin", fault))
            self.now[fault.place] += 1
            self.most = max(self.most, *self.now.values())
        try:
            yield
        finally:
            with self._lock:
                self.seen.append(("end", fault))
                self.now[fault.place] -= 1


def test_a_schedule_is_carried_out_in_its_time() -> None:
    """Each fault begins when it is due and lasts as long as it says."""
    schedule = (fault(0.05, 0.1), fault(0.3, 0.1))
    acts = Acts()
    with Injector(schedule, acts, time.monotonic()) as injector:
        injector.wait()
    assert acts.seen == [
        ("begin", schedule[0]),
        ("end", schedule[0]),
        ("begin", schedule[1]),
        ("end", schedule[1]),
    ]
    for entry in injector.injected:
        assert entry.began_seconds is not None
        assert entry.ended_seconds is not None
        assert entry.began_seconds >= entry.fault.at_seconds - 0.01
        assert entry.ended_seconds - entry.began_seconds >= 0.09


def test_faults_of_one_place_wait_for_each_other() -> None:
    """One that takes long to heal delays the next of its place, and no other's."""
    acts = Acts()
    schedule = (fault(0.0, 0.3), fault(0.1, 0.05), fault(0.1, 0.05, Place.STRIPE))
    with Injector(schedule, acts, time.monotonic()) as injector:
        injector.wait()
    assert acts.most == 1
    assert [what for what, each in acts.seen if each.place is Place.KAFKA] == ["begin", "end", "begin", "end"]
    assert acts.seen.index(("end", schedule[2])) < acts.seen.index(("end", schedule[0]))


def test_leaving_heals_and_drops_the_rest() -> None:
    """What is in force ends at once; what was still to come never begins."""
    acts = Acts()
    with Injector((fault(0.0, 60.0), fault(50.0, 1.0)), acts, time.monotonic()) as injector:
        reach(lambda: len(injector.in_force()) == 1)
    assert [what for what, _ in acts.seen] == ["begin", "end"]
    assert injector.injected[1].began_seconds is None


def test_a_fault_that_fails_is_written_down() -> None:
    """Brought about or healed in vain: it is in the report, and the others go on."""

    @contextmanager
    def act(each: Fault) -> Iterator[None]:
        if each.at_seconds == 0.0:
            raise RuntimeError("nothing to cut")
        yield

    with Injector((fault(0.0, 0.01), fault(0.1, 0.01)), act, time.monotonic()) as injector:
        injector.wait()
    assert [entry.failed for entry in injector.injected] == ["RuntimeError: nothing to cut", ""]


def test_a_fault_the_machine_does_not_permit_is_said_to_be_not_run() -> None:
    """It never began, and it is no failure."""

    @contextmanager
    def act(each: Fault) -> Iterator[None]:
        if each.at_seconds == 0.0:
            raise NotPossible("no disks here")
        yield

    with Injector((fault(0.0, 0.01),), act, time.monotonic()) as injector:
        injector.wait()
    (entry,) = injector.injected
    assert (entry.not_run, entry.failed, entry.began_seconds, entry.ended_seconds) == (
        "no disks here",
        "",
        None,
        None,
    )


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """One real process that sleeps."""
    child = Child("sleeper", tmp_path / "sleeper.log")
    command = [sys.executable, "-c", "print('awake', flush=True); import time; time.sleep(60)"]

    def start() -> None:
        child.start(command, cwd=tmp_path)

    def end(number: signal.Signals) -> int:
        return child.stop(number, 5.0)

    process = Process(
        "sleeper",
        pid=lambda: child.pid if child.running else None,
        end=end,
        start=start,
        ready=lambda: child.running,
        exit_code=lambda: child.wait(1.0),
    )
    start()
    yield Processes({"sleeper": process}, lambda _: tmp_path / "sleeper.log")
    child.kill()


def test_who_ends_by_itself_is_written_down_and_started_again(processes: Processes) -> None:
    """With its exit code and last words; who is held by a fault is let alone."""
    sleeper = processes.members["sleeper"]
    log = processes.log_of("sleeper")
    reach(lambda: log.read_text() == "awake\n")
    thread = threading.Thread(target=processes.supervise)
    thread.start()
    try:
        with processes.held(["sleeper"]):
            sleeper.end(signal.SIGKILL)
            time.sleep(0.3)
            assert sleeper.pid() is None
            sleeper.start()
        reach(lambda: log.read_text() == "awake\nawake\n")
        assert processes.exits == []
        pid = sleeper.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        reach(lambda: sleeper.pid() not in (None, pid))
    finally:
        processes.stop_supervising()
        thread.join()
    (end,) = processes.exits
    assert (end.name, end.code, end.last_words) == ("sleeper", -signal.SIGKILL, "awake")


def test_a_pause_is_a_pause(processes: Processes) -> None:
    """Stopped, and continued; who has ended meanwhile is nobody's trouble."""
    sleeper = processes.members["sleeper"]
    pid = sleeper.pid()

    def state() -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    sleeper.pause()
    reach(lambda: state() == "T")
    sleeper.resume()
    reach(lambda: state() != "T")
    sleeper.end(signal.SIGKILL)
    sleeper.resume()
