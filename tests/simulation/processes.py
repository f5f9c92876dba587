"""The processes of a run: how each service is made of its real parts, lives, dies and comes back.

Owns starting them on what the run has instead of Kafka, PostgreSQL and Stripe. It refuses to know when one is killed or
frozen (`director.py`). A process that ends is started again, as by a supervisor.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast

from services.meter.assembly import Meter
from services.meter.assignment import NothingLeft
from services.meter.booking import Fenced
from services.meter.worker import Worker
from services.stripe_sync.book import Threads
from services.stripe_sync.candidate import Candidate
from services.webhooks.consumer import Consumer
from services.webhooks.projector import Projector
from tests.simulation.clock import VirtualClock
from tests.simulation.fake_faust import FaustApp, Place
from tests.simulation.fake_log import FakeLog, LogHandle
from tests.simulation.fake_topic import FakeJournal, FakeTopic, JournalHandle, TopicHandle
from tests.simulation.gateways import SyncGateway, WebhookGateway, Wire
from tests.simulation.scheduler import Life, Loop, OneThread, State
from tests.simulation.trouble import FaultPoints, Troubles
from tests.simulation.warm import LEDGER_ID, Warm
from tests.simulation.watching import Watch, WatchedBook
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.directory import MappingRule
from tollgate.ledger.errors import LedgerUnavailable
from tollgate.ledger.init import read_rules
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.health import Health

RULES = (MappingRule.USER_IS_CUSTOMER_ID, MappingRule.USER_IS_CUSTOMER_EMAIL)

RESTART_SECONDS = 0.3
"""How long a supervisor takes to start a process again."""


class Surroundings:
    """What every process of a run is given."""

    def __init__(
        self,
        *,
        warm: Warm,
        loop: Loop,
        rng: random.Random,
        troubles: Troubles,
        log: FakeLog,
        topic: FakeTopic,
        journal: FakeJournal,
        wire: Wire,
        watch: Watch,
        epoch_ms: int,
        seen: Callable[[str], None],
        bug: Callable[[str], None],
    ) -> None:
        """`seen` counts a situation, `bug` is told of an end no process may have."""
        self.warm = warm
        self.loop = loop
        self.rng = rng
        self.troubles = troubles
        self.log = log
        self.topic = topic
        self.journal = journal
        self.wire = wire
        self.watch = watch
        self.epoch_ms = epoch_ms
        self.seen = seen
        self.bug = bug

    def backoff(self) -> Backoff:
        return Backoff(0.05, 0.5, rng=random.Random(self.rng.random()))


class Process:
    """One place where a service runs, again and again."""

    service = ""

    def __init__(self, name: str, around: Surroundings) -> None:
        self.name = name
        self.around = around
        self.clock = VirtualClock(around.loop, around.epoch_ms)
        self.life: Life | None = None
        self.stop = asyncio.Event()
        self.wanted = True
        """Whether it is started again when it ends."""
        self._lives = 0

    @property
    def running(self) -> bool:
        return self.life is not None and self.life.alive

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.running or not self.wanted:
            return
        self._lives += 1
        self.life = Life(f"{self.name}#{self._lives}")
        self.stop = asyncio.Event()
        life = self.life

        async def live() -> None:
            try:
                await self.main()
            except Exception as error:
                self.ended(error)
            if life.alive:
                life.state = State.DEAD
                self.around.loop.outside(RESTART_SECONDS, self.start)

        self.around.loop.start_in(life, live)

    def kill(self, back_seconds: float) -> None:
        """As by SIGKILL; back after a while."""
        if self.life is not None:
            self.life.die()
        self.around.loop.outside(back_seconds, self.start)

    def revive(self) -> None:
        """Start it if a trouble has killed it."""
        if self.life is not None and not self.life.alive:
            self.start()

    def freeze(self) -> None:
        if self.life is not None:
            self.life.freeze()

    def thaw(self) -> None:
        if self.life is not None:
            self.around.loop.thaw(self.life)

    async def main(self) -> None:
        """The service, from its start to its end."""
        raise NotImplementedError

    def ended(self, error: Exception) -> None:
        """It ended by itself."""
        self.around.bug(f"{self.name} ended by {type(error).__name__}: {error}")


class MeterProcess(Process):
    """services/meter."""

    service = "meter"
    meter: Meter | None = None

    def look_at_stopped(self) -> None:
        """Notice which partitions it has stopped."""
        for stopped in () if self.meter is None else self.meter.assignment.stopped.values():
            self.around.seen(f"a partition stopped: {stopped.reason}")

    async def main(self) -> None:
        around, life = self.around, self.life
        assert life is not None
        backoff = around.backoff()
        attempt = 0
        while True:
            try:
                rules = await asyncio.to_thread(read_rules, around.warm.engine)
                break
            except LedgerUnavailable:
                await self.clock.sleep_seconds(backoff.delay_seconds(attempt))
                attempt = min(attempt + 1, 10)
        place = Place(
            around.loop,
            around.log,
            around.troubles,
            around.rng,
            life,
            lambda: around.seen("reading went back to the ledger's offset"),
        )
        handle = LogHandle(around.log, around.troubles, around.rng)
        app = FaustApp(place)
        meter = self.meter = Meter(
            around.warm.meter_settings,
            book=WatchedBook(around.warm.engine, around.watch, life, lambda: around.log.is_member(app)),
            log=handle,
            dead=handle,
            rules=rules,
            clock=self.clock,
            backoff=backoff,
            health=Health(self.clock),
            metrics=around.warm.meter_metrics,
            faults=cast("Any", FaultPoints(around.troubles, "meter")),
            folding=cast("Any", OneThread()),
            booking=cast("Any", OneThread()),
            worker=lambda *args, **named: Worker(
                *args, **named, app=lambda **_: app, transport=lambda _, app, __: app.transport
            ),
            compile_meters=around.warm.compiled,
        )
        await meter.run(self.stop)

    def ended(self, error: Exception) -> None:
        self.look_at_stopped()
        if isinstance(error, Fenced):
            self.around.seen("a meter gave up after repeated misses")
        elif isinstance(error, NothingLeft):
            self.around.seen("a meter ended with every partition stopped")
        else:
            super().ended(error)


class SyncProcess(Process):
    """services/stripe_sync."""

    service = "sync"

    async def main(self) -> None:
        around = self.around
        assert self.life is not None
        candidate = Candidate(
            around.warm.sync_settings,
            engine=around.warm.engine,
            threads=Threads(4),
            gateway=SyncGateway(around.wire),
            journal=JournalHandle(around.journal, around.troubles, around.rng),
            ledger_id=LEDGER_ID,
            holder=self.life.name,
            clock=self.clock,
            backoff=around.backoff(),
            health=Health(self.clock),
            metrics=around.warm.sync_metrics,
            faults=cast("Any", FaultPoints(around.troubles, "sync")),
        )
        while not self.stop.is_set():
            await candidate.lead_one_term(self.stop)


class WebhooksProcess(Process):
    """services/webhooks, from the topic on."""

    service = "webhooks"

    async def main(self) -> None:
        around = self.around
        faults = cast("Any", FaultPoints(around.troubles, "webhooks"))
        projector = Projector(
            WebhookGateway(around.wire),
            CustomerBook(around.warm.engine, RULES),
            self.clock,
            around.warm.webhook_metrics,
            faults,
        )
        await Consumer(
            TopicHandle(around.topic, around.troubles, around.rng),
            projector,
            self.clock,
            around.warm.webhook_metrics,
            Health(self.clock),
            faults,
            backoff=around.backoff(),
            permanent_tries_max=6,
            batch_records_max=20,
        ).run(self.stop)
