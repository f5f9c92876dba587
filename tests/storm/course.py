"""The course of a storm: put up, send through faults, heal, drain, compare, put away.

Owns the order and what is off in the end. Each step is a noun's of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.machine import describe_machine
from sandbox.stack import CommandFailed
from sandbox.traffic.history import read_history
from sandbox.traffic.truth import Truth, tell_truth
from tests.agreement import Agreement, compare, expected_at_stripe, load_outcomes, stripe_totals
from tests.storm.faults import fault_in_force
from tests.storm.freshness import Freshness, Limits, recovery_seconds
from tests.storm.ground import OPERATORS, Ground, prepared_ground
from tests.storm.injector import Injected, Injector
from tests.storm.load import Customers, Load, sign_up_customers
from tests.storm.processes import Exit
from tests.storm.report import ExitReport, FaultReport, StormReport
from tests.storm.schedule import Cast, Fault, Place, to_json
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.errors import LedgerError
from tollgate.ledger.postings import posting_summary
from tollgate.ledger.verify import verify_ledger
from tollgate.runtime.settings import KafkaSettings

READY_SECONDS = 90.0
DRAIN_SECONDS = 120.0
AFTERMATH_SECONDS = 30.0
"""So long after a fault its consequences may still end a process that says it gives up then."""
GIVING_UP = (1, 70)
"""Exit codes that services document for giving up, to be started again: 70 is the meter's watchdog."""

_LAW_SECONDS = 10.0
_MARK = "STORM_RUN"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run."""

    seed: int
    minutes: float
    events_per_second: float
    schedule: tuple[Fault, ...]
    cast: Cast
    directory: Path
    """Everything of the run; reachable by any account, since PostgreSQL runs as another one."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told how far it is."""

    on_step: Callable[[str], None]
    on_progress: Callable[[float, int, list[Injected]], None]
    """Seconds since the beginning, events accepted, faults in force."""


def run_storm(plan: Plan, watcher: Watcher) -> StormReport:
    """Run it once; the report says what is off. Raises PartUnavailable, PartFailed when it cannot begin."""
    mark = uuid.uuid4().hex
    # Children inherit it: what is left behind can be told from what was there before.
    os.environ[_MARK] = mark
    report = StormReport(
        plan.seed,
        plan.minutes,
        plan.events_per_second,
        machine=describe_machine(),
        processes={service: len(names) for service, names in plan.cast.services.items()}
        | {"brokers": len(plan.cast.brokers), "postgresql": 1, "stripe": 1},
        schedule=to_json(plan.schedule),
    )
    clock = _Clock(report.seconds)
    watcher.on_step("starting three brokers, PostgreSQL, Stripe's stand-in and every service")
    with ExitStack() as stack:
        ground = stack.enter_context(prepared_ground(plan.directory, plan.cast, plan.seed))
        report.disk_full_by = ", ".join(sorted({disk.how for disk in ground.disks.values()}))
        customers = sign_up_customers(ground.shop, ground.control)
        unready = ground.wait_ready(READY_SECONDS)
        report.complaints += [f"{name} was never ready" for name in unready]
        clock.lap("start")
        engine = stack.enter_context(_ledger(ground.ledger_url))
        load = Load(
            ground.ingest_urls,
            ground.token,
            plan.seed,
            plan.events_per_second,
            plan.directory / "history.jsonl",
        )
        if not unready:
            _blow(plan, ground, customers, load, engine, report, watcher)
            clock.lap("storm")
            watcher.on_step("draining")
            truth = tell_truth(read_history(load.history))
            agreement = _drain(ground, engine, truth, load.repeated)
            _note_agreement(report, agreement, truth, engine)
            clock.lap("drain")
            watcher.on_step("verifying")
            _verify(ground, report)
            clock.lap("verify")
        watcher.on_step("putting away")
        _stop_services(ground, report)
    clock.lap("stop")
    _note_left_behind(mark, report)
    return report


class _Clock:
    """Laps, into a dictionary."""

    def __init__(self, laps: dict[str, float]) -> None:
        self._laps = laps
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[name] = round(now - self._since, 1)
        self._since = now


@contextmanager
def _ledger(url: str) -> Iterator[Engine]:
    engine = open_ledger(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _blow(
    plan: Plan,
    ground: Ground,
    customers: Customers,
    load: Load,
    engine: Engine,
    report: StormReport,
    watcher: Watcher,
) -> None:
    """Send while the schedule is carried out; leaves with everything healed and supervised no more."""
    seconds = plan.minutes * 60
    started = time.monotonic()
    ground.processes.started = started
    learnings = [seconds * 0.3, seconds * 0.6]
    kafka = KafkaSettings(bootstrap_servers=ground.cluster.bootstrap(OPERATORS))
    supervisor = threading.Thread(target=ground.processes.supervise, name="supervisor")
    supervisor.start()
    try:
        with (
            Freshness(
                kafka, ground.ledger_url, ground.stack.settings.partitions, load.waiting_seconds, started
            ) as freshness,
            _Law(engine) as law,
            Injector(plan.schedule, lambda fault: fault_in_force(ground, fault), started) as injector,
        ):

            def on_progress() -> None:
                now = time.monotonic() - started
                while learnings and now >= learnings[0]:
                    learnings.pop(0)
                    _learn(customers)
                watcher.on_progress(now, load.accepted, injector.in_force())

            try:
                load.run(customers.identities, seconds, on_progress)
            except Exception as error:
                report.complaints.append(f"sending ended with {type(error).__name__}: {error}")
            injector.wait()
            while customers.unknown_left:
                _learn(customers)
            # Long enough for the last fault's recovery to be seen.
            time.sleep(2.0)
        # Supervised still: what gives up in the aftermath is started again, as anywhere.
        unready = ground.wait_ready(READY_SECONDS)
    finally:
        ground.processes.stop_supervising()
        supervisor.join()
    report.complaints += [f"{name} was not ready again when all was healed" for name in unready]
    report.events, report.requests_repeated = load.accepted, load.retries
    report.connections_cut = ground.proxy.cuts
    report.law_checks = law.checks
    report.complaints += law.violations
    report.faults = _fault_reports(injector.injected, freshness)
    report.complaints += [
        f"{fault.kind} {fault.target}: {fault.failed}" for fault in report.faults if fault.failed
    ]
    _note_exits(ground, injector.injected, report)


def _learn(customers: Customers) -> None:
    """As whoever changes an address would: again, when Stripe does not answer just now."""
    waiting = list(customers.unknown_left)
    try:
        customers.learn_next()
    except Exception:
        # Stripe is down at this moment; the rest of the storm has room for it.
        customers.unknown_left[:] = waiting


class _Law:
    """A thread that looks whether the law holds, at whatever moment. A context manager."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.checks = 0
        self.violations: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="law")

    def __enter__(self) -> _Law:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_LAW_SECONDS):
            # A ledger that is away at this moment is asked again at the next.
            with contextlib.suppress(LedgerError):
                found = verify_ledger(self._engine)
                self.checks += 1
                self.violations += [f"while the storm blew: {violation}" for violation in found]


def _fault_reports(injected: list[Injected], freshness: Freshness) -> list[FaultReport]:
    limits = Limits()
    began = sorted(each.began_seconds for each in injected if each.began_seconds is not None)
    reports = []
    for each in injected:
        recovery = None
        if each.began_seconds is not None and each.ended_seconds is not None and not each.failed:
            ended = each.ended_seconds
            following = next((moment for moment in began if moment > ended), float("inf"))
            recovery = recovery_seconds(freshness.looks, ended, following, limits)
        reports.append(
            FaultReport(
                each.fault.place,
                each.fault.kind,
                each.fault.target,
                each.began_seconds,
                each.ended_seconds,
                recovery,
                each.failed,
                each.not_run,
            )
        )
    return reports


def _note_exits(ground: Ground, injected: list[Injected], report: StormReport) -> None:
    parts = {name for name, member in ground.processes.members.items() if member.is_part}
    for each in ground.processes.exits:
        excuse = "" if each.name in parts else _excuse(each, injected)
        report.exits.append(ExitReport(each.at_seconds, each.name, each.code, each.last_words, excuse))
        if not excuse:
            report.complaints.append(f"{each.name} ended by itself with code {each.code}: {each.last_words}")
    for name, code in ground.processes.terminations:
        if code and name not in parts:
            report.complaints.append(f"{name} ended with code {code} after SIGTERM")


def _excuse(each: Exit, injected: list[Injected]) -> str:
    """The fault that explains an end: one in force, else the last one before; empty for none."""
    if each.code not in GIVING_UP:
        return ""
    found = ""
    for fault in sorted(injected, key=lambda fault: fault.began_seconds or 0.0):
        began, ended = fault.began_seconds, fault.ended_seconds
        if began is None or fault.fault.place is Place.CLIENTS or began > each.at_seconds:
            continue
        if ended is None or each.at_seconds <= ended:
            return str(fault.fault)
        if each.at_seconds <= ended + AFTERMATH_SECONDS:
            found = str(fault.fault)
    return found


def _drain(ground: Ground, engine: Engine, truth: Truth, repeated: int) -> Agreement:
    """Wait until ledger and Stripe hold everything, or the time is up; then compare."""
    deadline = time.monotonic() + DRAIN_SECONDS
    expected = expected_at_stripe(truth)
    while time.monotonic() < deadline:
        outcomes = load_outcomes(engine)
        behind = any(outcomes[name] < truth.outcomes[name] for name in outcomes)
        if not behind and stripe_totals(ground.control) == expected:
            break
        time.sleep(0.5)
    return compare(engine, ground.control, truth, repeated)


def _note_agreement(report: StormReport, agreement: Agreement, truth: Truth, engine: Engine) -> None:
    report.outcomes = agreement.outcomes
    report.lost, report.doubled = agreement.lost_events, agreement.doubled_events
    stages = ("ledger", "stripe")
    report.lost_units = {stage: str(agreement.lost_units(stage)) for stage in stages}
    report.doubled_units = {stage: str(agreement.doubled_units(stage)) for stage in stages}
    report.keys_compared = {
        "ledger": sum(1 for value in truth.usage.values() if value),
        "stripe": len(expected_at_stripe(truth)),
    }
    report.postings = {entry.state.value: entry.postings for entry in posting_summary(engine)}
    report.complaints += agreement.words()


def _verify(ground: Ground, report: StormReport) -> None:
    for arguments in (("verify",), ("verify", "--refold")):
        name = " ".join(arguments)
        try:
            said = ground.stack.tollgate(*arguments, timeout_seconds=600)
            report.verified[name] = "NOT PROVEN" not in said
        except CommandFailed as failed:
            report.verified[name] = False
            report.complaints.append(
                f"tollgate {name} ended with {failed.code}: {failed.stderr.strip()[:2000]}"
            )


def _stop_services(ground: Ground, report: StormReport) -> None:
    ground.processes.stop_supervising()
    report.exit_codes = ground.stack.stop()
    report.complaints += [
        f"{name} ended with code {code} after the last SIGTERM"
        for name, code in report.exit_codes.items()
        if code
    ]


def _note_left_behind(mark: str, report: StormReport) -> None:
    """A process that inherited this run's mark and is still there."""
    wanted = f"{_MARK}={mark}".encode()
    for process in _PROC.iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                report.complaints.append(f"process {process.name} was left behind: {command[:200]}")
