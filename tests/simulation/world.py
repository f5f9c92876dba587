"""The world of one run: the plan's processes on a log, a ledger and a Stripe, from the first step to the verdict.

Owns putting it together, and the order: begin, let everything go wrong, heal, drain, judge. It refuses to know how a
step is carried out (`director.py`) and what must hold (`oracle.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.director import Director
from tests.simulation.fake_log import FakeLog
from tests.simulation.fake_stripe import FakeStripe, WebhookEvent
from tests.simulation.fake_topic import FakeJournal, FakeTopic
from tests.simulation.gateways import Wire
from tests.simulation.metered import PROFILES
from tests.simulation.model import MeterRule
from tests.simulation.oracle import judge
from tests.simulation.plan import Plan
from tests.simulation.processes import MeterProcess, Process, Surroundings, SyncProcess, WebhooksProcess
from tests.simulation.scheduler import Loop, Stuck, current_life
from tests.simulation.sometimes import Sightings, recognise
from tests.simulation.traffic import Traffic
from tests.simulation.trouble import Troubles
from tests.simulation.warm import PARTITIONS, SESSION_SECONDS, Warm
from tests.simulation.watching import Watch
from tollgate.ledger.catalogue import load_meter_set

START_SECONDS = 1000.0


@dataclass(slots=True)
class Outcome:
    """What became of a run."""

    plan: Plan
    failures: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    flushes: int = 0
    events: int = 0
    postings: int = 0
    turns: int = 0
    virtual_seconds: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)


class World:
    """Everything there is in a run."""

    def __init__(self, plan: Plan, warm: Warm) -> None:
        self.plan = plan
        self.warm = warm
        self.ledger = warm.ledger
        self.rng = random.Random(f"latency {plan.seed}")
        self.loop = Loop(self.rng, START_SECONDS)  # type: ignore[abstract]
        self.epoch_ms = plan.begins_ms - int(START_SECONDS * 1000)
        self.sightings = Sightings()
        self.bugs: list[str] = []
        self.suspended_seconds = 0.0
        self.began_seconds: float | None = None
        self.troubles = Troubles(plan.troubles, self.elapsed_ms)
        self.watch = Watch(self.sightings.see)
        self.rules: list[MeterRule] = []
        self.processes: dict[str, Process] = {}
        self.ledger_down = False

    # ------------------------------------------------------------------------------------------------- time

    def now_ms(self) -> int:
        """The true time."""
        return self.epoch_ms + int(self.loop.time() * 1000)

    def elapsed_ms(self) -> int:
        """Milliseconds since the first step, without those the machine was suspended; below zero before it."""
        if self.began_seconds is None:
            return -1
        return int((self.loop.time() - self.began_seconds - self.suspended_seconds) * 1000)

    # -------------------------------------------------------------------------------------------------- run

    def run(self) -> Outcome:
        """The run, and the verdict."""
        outcome = Outcome(self.plan)
        self.ledger.make_anew(self.plan.profile)
        self.ledger.strike, self.ledger.die = self._strike_ledger, self._die
        try:
            self.loop.run(self._live())
            outcome.failures += judge(self)
        except Stuck as stuck:
            outcome.failures.append(f"stuck: {stuck}")
        outcome.failures += self.bugs
        outcome.failures += self.loop.surprises
        outcome.seen = Counter(self.sightings) + recognise(self.troubles.struck, self.ledger.query)
        outcome.flushes = self.watch.flushes
        outcome.events = self.traffic.events
        outcome.turns = self.loop.turns
        outcome.virtual_seconds = self.loop.time() - START_SECONDS
        outcome.struck, outcome.passed = self.troubles.struck, self.troubles.passed
        outcome.postings = len(self.stripe.events)
        return outcome

    async def _live(self) -> None:
        self._make()
        coordinator = asyncio.create_task(self.log.coordinate())
        for process in self.processes.values():
            process.start()
        self.director = Director(self)
        await self.director.begin()
        self.began_seconds = self.loop.time()
        await self.director.carry_out()
        await self.director.heal()
        await self.director.drain()
        for process in self.processes.values():
            process.wanted = False
            if process.life is not None:
                process.life.die()
        coordinator.cancel()

    def _make(self) -> None:
        plan = self.plan
        self.log = FakeLog(PARTITIONS, self.loop, self.rng, SESSION_SECONDS)
        self.topic, self.journal = FakeTopic(), FakeJournal()
        self.traffic = Traffic(self.log, self.now_ms, plan.skew_ms, self.sightings.see)
        hourly = frozenset(
            str(m.stripe.event_name)
            for m in PROFILES[plan.profile]
            if m.stripe is not None and m.stripe.mode == "window_total"
        )
        self.stripe = FakeStripe(self.now_ms, 1500, hourly, self.sightings.see, self._deliver)
        self.wire = Wire(
            self.loop, self.stripe, self.troubles, self.rng, self.sightings.see, self._lease_version
        )
        around = Surroundings(
            warm=self.warm,
            loop=self.loop,
            rng=self.rng,
            troubles=self.troubles,
            log=self.log,
            topic=self.topic,
            journal=self.journal,
            wire=self.wire,
            watch=self.watch,
            epoch_ms=self.epoch_ms,
            seen=self.sightings.see,
            bug=self.bugs.append,
        )
        made: list[Process] = [MeterProcess(f"meter-{n}", around) for n in range(plan.meters)]
        made += [SyncProcess(f"sync-{n}", around) for n in range(plan.syncs)]
        if plan.syncs:
            made += [WebhooksProcess(f"webhooks-{n}", around) for n in range(plan.projectors)]
        self.processes = {process.name: process for process in made}
        self.learn_meters()

    def learn_meters(self) -> None:
        """Write down, for the model, which meters there are and which times they count."""
        found = load_meter_set(self.warm.engine)
        self.rules = [
            MeterRule(each.meter_id, each.meter.name, each.meter.where, each.from_ms, each.to_ms)
            for each in found.meters
        ]

    # --------------------------------------------------------------------------------------------- plumbing

    def _strike_ledger(self, what: str) -> str | None:
        life = current_life()
        if life is None:
            return None
        if self.ledger_down and what != "commit":
            return "unavailable"
        service = life.name.partition("-")[0]
        return self.troubles.strikes(f"{service}.{what}")

    def _lease_version(self) -> int:
        rows = self.ledger.query("SELECT version FROM leases")
        return int(rows[0][0]) if rows else 0

    def _die(self) -> None:
        life = current_life()
        if life is not None:
            life.die_here()

    def _deliver(self, event: WebhookEvent) -> None:
        """Stripe sends a webhook: now, late, twice."""
        delays = [self.rng.choice((0.01, 0.05))]
        if self.rng.random() < self.plan.webhook_disorder:
            delays = [self.rng.choice((0.05, 0.4, 1.5))]
            if self.rng.random() < 0.3:
                delays.append(delays[0] + self.rng.choice((0.1, 1.0)))
                self.sightings.see("a webhook delivered twice")
        for delay in delays:
            self.loop.outside(delay, lambda: self.topic.append(event.key, event.body))


def run_plan(plan: Plan, warm: Warm) -> Outcome:
    """Run a plan, leaving nothing behind for the next."""
    world = World(plan, warm)
    outcome = world.run()
    loop = world.loop
    del world
    loop.close()
    warm.tidy()
    return outcome
