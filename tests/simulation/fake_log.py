"""The log of a run: partitions of `gateway.events`, what was written to them, and who of the group reads which.

Owns records, offsets, retention and the consumer group. It refuses to know who asks: each process has its own handle
(`LogHandle`), through which its troubles come. The group is eager, as with Faust: every rebalance revokes everything,
waits for those that answer, and gives everything out anew; who does not answer within the session is out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from services.meter.intake import LogRecord
from services.meter.log import LogBounds, LogUnavailable
from tests.simulation.model import Written
from tests.simulation.scheduler import Life, Loop, State
from tests.simulation.trouble import Troubles
from tollgate.metering.outcome import DeadEvents


class Partition:
    """Records `[start, end)`; `written` has all there ever were."""

    def __init__(self) -> None:
        self.start = 0
        self.records: list[LogRecord] = []
        self.written: list[Written] = []

    @property
    def end(self) -> int:
        return len(self.records)


class Member(Protocol):
    """A consumer in the group."""

    life: Life

    async def give_up(self, generation: int) -> None:
        """Hand everything over, and return when ready for another assignment."""
        ...

    def take_over(self, partitions: Collection[int], generation: int) -> None:
        """Begin to read `partitions`."""
        ...


class FakeLog:
    """The broker. `reachable` is False during an outage."""

    def __init__(self, partitions: int, loop: Loop, rng: random.Random, session_seconds: float) -> None:
        self.partitions = {number: Partition() for number in range(partitions)}
        self.reachable = True
        self.letters: list[DeadEvents] = []
        self.group_offsets: dict[int, int] = {}
        self.members: list[Member] = []
        self.generation = 0
        self.rebalances = 0
        self._loop = loop
        self._rng = rng
        self._session_seconds = session_seconds
        self._rebalance_wanted = asyncio.Event()
        self._broken: dict[int, Partition] = {}
        self._waiting: list[asyncio.Future[None]] = []

    # --------------------------------------------------------------------------------------------- records

    def append(
        self, partition: int, value: bytes, headers: Sequence[tuple[str, bytes]], written: Written
    ) -> None:
        """Write at the end."""
        held = self._broken.get(partition) or self.partitions[partition]
        held.records.append(LogRecord(partition, held.end, value, tuple(headers)))
        held.written.append(written)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def wait_for_more(self, seconds: float) -> None:
        """Return when something is written, or after a while."""
        more: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(more)
        await asyncio.wait({more}, timeout=seconds)

    def truncate(self, partition: int, before: int) -> None:
        """Retention deletes what lies before an offset."""
        self.partitions[partition].start = max(self.partitions[partition].start, before)

    def recreate(self, partition: int, records: int) -> None:
        """The topic is deleted and made again, with so many records of somebody else's in it.

        What is written from now on goes to the one that was deleted: it is what `mend` puts back.
        """
        self._broken.setdefault(partition, self.partitions[partition])
        made = self.partitions[partition] = Partition()
        made.records = [LogRecord(partition, offset, b"not ours", ()) for offset in range(records)]

    def mend(self) -> list[int]:
        """An operator puts back what was deleted; the partitions that were touched."""
        mended = [number for number, held in self.partitions.items() if held.start] + list(self._broken)
        self.partitions.update(self._broken)
        self._broken.clear()
        for held in self.partitions.values():
            held.start = 0
        return mended

    @property
    def ends(self) -> dict[int, int]:
        return {number: held.end for number, held in self.partitions.items()}

    # ----------------------------------------------------------------------------------------------- group

    def join(self, member: Member) -> None:
        self.members.append(member)
        self.rebalance()

    def leave(self, member: Member) -> None:
        if member in self.members:
            self.members.remove(member)
            self.rebalance()

    def rebalance(self) -> None:
        """Somebody came, went, or fell silent."""
        self._rebalance_wanted.set()

    async def coordinate(self) -> None:
        """The group's coordinator, for ever."""
        while True:
            await self._wait_for_cause()
            self._rebalance_wanted.clear()
            await self._rebalance()

    async def _wait_for_cause(self) -> None:
        """A wish, or a member silent for a whole session."""
        silent: dict[int, float] = {}
        while not self._rebalance_wanted.is_set():
            for member in self.members:
                if member.life.state is State.ALIVE:
                    silent.pop(id(member), None)
                elif (
                    self._loop.time() - silent.setdefault(id(member), self._loop.time())
                    >= self._session_seconds
                ):
                    self.members.remove(member)
                    return
            try:
                async with asyncio.timeout(self._session_seconds / 4):
                    await self._rebalance_wanted.wait()
            except TimeoutError:
                continue

    async def _rebalance(self) -> None:
        self.rebalances += 1
        asked = list(self.members)
        leaving = {
            id(member): self._loop.start_in(member.life, _giving_up(member, self.generation))
            for member in asked
        }
        if leaving:
            await asyncio.wait(list(leaving.values()), timeout=self._session_seconds)
        self.generation += 1
        for member in asked:
            if member in self.members and not leaving[id(member)].done():
                # Silent for a session: out, until it notices.
                self.members.remove(member)
        ready = [member for member in asked if member in self.members]
        shares: dict[int, list[int]] = {id(member): [] for member in ready}
        order = sorted(self.partitions)
        if ready:
            shift = self._rng.randrange(len(ready))
            for place, partition in enumerate(order):
                shares[id(ready[(place + shift) % len(ready)])].append(partition)
        for member in ready:
            member.take_over(shares[id(member)], self.generation)

    def is_member(self, member: Member) -> bool:
        return member in self.members


def _giving_up(member: Member, generation: int) -> Callable[[], Coroutine[Any, Any, None]]:
    async def give_up() -> None:
        await member.give_up(generation)

    return give_up


class LogHandle:
    """One meter's view: implements `services.meter.log.Log` and `services.meter.dead.DeadLetters`."""

    def __init__(self, log: FakeLog, troubles: Troubles, rng: random.Random) -> None:
        self._log = log
        self._troubles = troubles
        self._rng = rng

    async def bounds(self, partitions: Collection[int]) -> Mapping[int, LogBounds]:
        await self._ask()
        return {
            number: LogBounds(self._log.partitions[number].start, self._log.partitions[number].end)
            for number in partitions
        }

    async def read(self, partition: int, offset: int) -> bytes | None:
        await self._ask()
        held = self._log.partitions[partition]
        return held.records[offset].value if held.start <= offset < held.end else None

    async def bury(self, dead: Sequence[DeadEvents]) -> None:
        kind = self._troubles.strikes("meter.bury")
        await asyncio.sleep(self._rng.choice((0.001, 0.003, 0.02)))
        if kind == "unavailable" or not self._log.reachable:
            raise LogUnavailable("dead letters were not acknowledged")
        self._log.letters.extend(dead)
        if kind == "lost_ack":
            raise LogUnavailable("the acknowledgement was lost")

    async def _ask(self) -> None:
        kind = self._troubles.strikes("meter.ask")
        await asyncio.sleep(self._rng.choice((0.0, 0.001, 0.004)))
        if kind is not None or not self._log.reachable:
            raise LogUnavailable("no broker answers")
