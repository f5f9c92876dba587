"""Faust without Faust: the parts of `faust.App` that the meter's worker touches, in the order Faust 0.15.3 has them.

Owns fetching, the agent's queue, and the steps of a rebalance. It refuses to know what a record holds and what the meter
does in its hooks. What the meter changes in a Faust consumer is the real `LedgerConsumer`, over a driver of its own.

Kept of Faust, because the meter depends on it: the flow stops and the queue is emptied before the revoke hook; an event
in hand is neither cancelled nor waited for; `on_rebalance_complete` comes before the seek; positions are whatever the
group's offset says until then; and a member that was away finds out by its heartbeat, after its work went on.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from faust.types import TP

from services.meter.intake import LogRecord
from services.meter.transport import Bundle, LedgerConsumer
from tests.simulation.fake_log import FakeLog
from tests.simulation.scheduler import Life, Loop
from tests.simulation.trouble import Troubles

POLL_RECORDS = 4
QUEUE_BUNDLES = 8
IDLE_SECONDS = 0.2
HEARTBEAT_SECONDS = 0.15


@dataclass(slots=True)
class Place:
    """Where a worker runs: what it can reach."""

    loop: Loop
    log: FakeLog
    troubles: Troubles
    rng: random.Random
    life: Life
    on_sought_back: Callable[[], None] = lambda: None


class _Signal:
    """A signal of Faust's."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Awaitable[None]]] = []

    def connect(self, receiver: Callable[..., Awaitable[None]]) -> None:
        self._receivers.append(receiver)

    async def send(self, *arguments: Any) -> None:
        for receiver in self._receivers:
            await receiver(*arguments)


class _Driver:
    """The broker's side of a consumer: what `LedgerConsumer` asks of Faust's own."""

    def __init__(self, app: FaustApp, transport: FakeTransport, place: Place, topic: str) -> None:
        self.app = app
        self.transport = transport
        self.place = place
        self.topic = topic
        self.flow_active = False
        self.should_stop = False
        self.at: dict[TP, int] = {}
        self.paused: set[TP] = set()

    async def _wait_next_records(
        self, timeout: float
    ) -> tuple[Mapping[TP, list[LogRecord]] | None, set[TP] | None]:
        place = self.place
        await asyncio.sleep(place.rng.choice((0.001, 0.003, 0.01)))
        active = set(self.at) - self.paused
        if not self.flow_active or not place.log.reachable:
            await asyncio.sleep(0.03)
            return {}, active
        self._play_tricks(sorted(active))
        found: dict[TP, list[LogRecord]] = {}
        for tp in sorted(active):
            held = place.log.partitions[tp.partition]
            at = self.at[tp]
            if not held.start <= at <= held.end:
                at = held.start  # out of range: reset to the earliest
            records = held.records[at : at + POLL_RECORDS]
            self.at[tp] = at + len(records)
            if records:
                found[tp] = records
        if not found:
            await place.log.wait_for_more(timeout)
        return found, active

    def _play_tricks(self, active: list[TP]) -> None:
        if not active:
            return
        kind = self.place.troubles.strikes("meter.fetch")
        if kind is None:
            return
        tp = self.place.rng.choice(active)
        if kind == "skip":
            self.at[tp] = min(
                self.at[tp] + self.place.rng.randint(1, 3), self.place.log.partitions[tp.partition].end
            )
        elif kind == "rewind":
            self.at[tp] = max(0, self.at[tp] - self.place.rng.randint(1, 8))
        elif kind == "reset":
            self.at[tp] = self.place.log.partitions[tp.partition].start

    async def perform_seek(self) -> None:
        await self.seek_to_committed()  # type: ignore[attr-defined]

    def assignment(self) -> set[TP]:
        return set(self.at)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        kind = self.place.troubles.strikes("meter.seek")
        await asyncio.sleep(self.place.rng.choice((0.0, 0.001, 0.01)))
        if kind is not None:
            raise TimeoutError("the seek was not answered")
        for tp, offset in partitions.items():
            if tp in self.at:
                if offset < self.at[tp]:
                    self.place.on_sought_back()
                self.at[tp] = offset

    def pause_partitions(self, partitions: Iterable[TP]) -> None:
        self.paused.update(partitions)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if not offsets:
            raise ValueError(offsets)
        kind = self.place.troubles.strikes("meter.group_commit")
        await asyncio.sleep(self.place.rng.choice((0.001, 0.005)))
        if kind == "refused" or not self.place.log.is_member(self.app):
            return False
        if kind == "raises":
            raise TimeoutError("no coordinator")
        if kind == "lost":
            return True
        if kind == "rolled_back":
            offsets = {tp: max(0, offset - 3) for tp, offset in offsets.items()}
        self.place.log.group_offsets.update({tp.partition: offset for tp, offset in offsets.items()})
        return True


class SimulatedConsumer(LedgerConsumer, _Driver):  # type: ignore[misc,override]
    """The meter's own consumer on the driver above."""


class FakeTransport:
    """What the worker sets its source on."""

    source: Any
    fetch_bytes_max: int


@dataclass(frozen=True, slots=True)
class _Event:
    message: Bundle


class _Stream:
    """The agent's stream: a bounded queue that a rebalance empties."""

    def __init__(self) -> None:
        self._held: deque[Bundle] = deque()
        self._changed = asyncio.Event()

    async def put(self, bundle: Bundle) -> None:
        while len(self._held) >= QUEUE_BUNDLES:
            self._changed.clear()
            await self._changed.wait()
        self._held.append(bundle)
        self._changed.set()

    def clear(self) -> None:
        self._held.clear()
        self._changed.set()

    async def events(self) -> AsyncIterator[_Event]:
        while True:
            while not self._held:
                self._changed.clear()
                await self._changed.wait()
            bundle = self._held.popleft()
            self._changed.set()
            yield _Event(bundle)


class _Conf:
    broker_consumer: tuple[()] = ()


class FaustApp:
    """Stands in for `faust.App`. Its settings are taken and not looked at."""

    def __init__(self, place: Place, **_: Any) -> None:
        self.conf = _Conf()
        self.transport = FakeTransport()
        self.on_partitions_revoked = _Signal()
        self.on_rebalance_complete = _Signal()
        self.rebalancing = False
        self.crashed = False
        self.crash_reason: BaseException | None = None
        self.consumer_generation_id = 0
        self.life = place.life
        self._place = place
        self._topic = ""
        self._count: Callable[[Any], Coroutine[Any, Any, None]] | None = None
        self._stream = _Stream()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = asyncio.Event()
        self._handing_over = asyncio.Lock()
        self._taking: set[asyncio.Task[None]] = set()
        self.consumer: Any = None

    # ----------------------------------------------------------------------------- what the worker asks for

    def finalize(self) -> None:
        """Nothing to be done."""

    def topic(self, name: str, **_: Any) -> str:
        self._topic = name
        return name

    def agent(self, *_: Any, **__: Any) -> Callable[[Any], None]:
        def take(count: Any) -> None:
            self._count = count

        return take

    async def start(self) -> None:
        self.consumer = SimulatedConsumer(self, self.transport, self._place, self._topic)
        self._tasks = [asyncio.create_task(each) for each in (self._fetch(), self._run_agent(), self._beat())]
        self._place.log.join(self)

    async def wait_until_stopped(self) -> None:
        await self._stopped.wait()

    async def stop(self) -> None:
        self._place.log.leave(self)
        if self.consumer is not None:
            self.consumer.should_stop = True
        for task in (*self._tasks, *self._taking):
            task.cancel()
        self._stopped.set()

    # -------------------------------------------------------------------------------------- what runs in it

    async def _fetch(self) -> None:
        while True:
            async for _, bundle in self.consumer.getmany(IDLE_SECONDS):
                await self._stream.put(bundle)

    async def _run_agent(self) -> None:
        assert self._count is not None
        try:
            await self._count(self._stream)
        except Exception as error:
            self._crash(error)

    async def _beat(self) -> None:
        """A member that is out finds out, hands over what it thinks it has, and comes back."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if not self._place.log.is_member(self):
                await self.give_up(self.consumer_generation_id)
                if not self._place.log.is_member(self):
                    self._place.log.join(self)

    async def give_up(self, generation: int) -> None:
        async with self._handing_over:
            self.rebalancing = True
            if self.consumer.at:
                self.consumer.flow_active = False
                self.consumer.pause_partitions(set(self.consumer.at))
                self._stream.clear()
            try:
                await self.on_partitions_revoked.send(set(self.consumer.at))
            except Exception as error:
                self._crash(error)

    def take_over(self, partitions: Collection[int], generation: int) -> None:
        async def take() -> None:
            try:
                await take_over()
            except Exception as error:
                self._crash(error)

        async def take_over() -> None:
            consumer = self.consumer
            self.consumer_generation_id = generation
            consumer.paused.clear()
            consumer.flow_active = False
            consumer.at = {
                TP(self._topic, p): self._place.log.group_offsets.get(p, 0) for p in sorted(partitions)
            }
            await self.on_rebalance_complete.send()
            if self.consumer_generation_id != generation:
                return
            for _ in range(self._place.rng.choice((1, 2))):
                try:
                    await consumer.perform_seek()
                except TimeoutError:
                    # Faust gives up here, too; its supervisor brings the worker back by a rebalance.
                    self._place.log.rebalance()
                    return
            if self.consumer_generation_id == generation:
                consumer.flow_active = True
                self.rebalancing = False

        task = self._place.loop.start_in(self.life, take)
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def _crash(self, error: BaseException) -> None:
        self.crashed, self.crash_reason = True, error
        self._stopped.set()
