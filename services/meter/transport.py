"""Faust's transport, changed in the three places where it would lose or stall.

Owns a consumer that starts where the ledger says, never stops fetching because a small buffer is full, and leaves
dropping replays to the intake. It refuses to know partitions' state: `positions` and `stopped` are asked for.

The changes sit in `LedgerConsumer`, a mixin, so that the tests' transport without a broker runs the very same code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from faust.transport.drivers import aiokafka as driver
from faust.types import TP


class Positions(Protocol):
    """Where the partitions of the one topic are to be read from."""

    def positions(self) -> Mapping[int, int]:
        """The next offset of each partition that is to be read."""
        ...

    def stopped_partitions(self) -> Collection[int]:
        """Assigned partitions that must not be read."""
        ...


class ForgetfulOffsets(dict[TP, int | None]):
    """Faust's memory of read offsets, without the memory.

    Faust drops every record below the highest it has read, also after a seek back when a record fetched before the
    seek came through behind it: the partition would stand still for ever. The intake knows what is a replay.
    """

    def __getitem__(self, key: TP) -> int | None:
        return None

    def __setitem__(self, key: TP, value: int | None) -> None:
        return None

    def update(self, *args: Any, **kwargs: Any) -> None:
        return None


if TYPE_CHECKING:
    _Base = driver.Consumer
else:
    _Base = object


class LedgerConsumer(_Base):
    """What we change in a Faust consumer. Its transport has an attribute `source` (`Positions`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = ForgetfulOffsets()

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing: fetching simply waits on the full queue, and goes on at once.

        Faust's own answer is to stop fetching the partition and look again a second later.
        """

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to where the ledger stands, not to the group's offset. Called often twice for one assignment."""
        source: Positions = self.transport.source  # type: ignore[attr-defined]
        assigned = {tp.partition: tp for tp in self.assignment()}
        stopped = {assigned[p] for p in source.stopped_partitions() if p in assigned}
        if stopped:
            self.pause_partitions(stopped)
        offsets = {assigned[p]: offset for p, offset in source.positions().items() if p in assigned}
        # A partition that is neither counted nor stopped is being loaded again, and will be sought then.
        if offsets:
            await self.seek_wait(offsets)
        return offsets


class Consumer(LedgerConsumer, driver.Consumer):
    """The consumer on aiokafka."""


class Transport(driver.Transport):
    """The transport on aiokafka. `source` is set before the app starts."""

    Consumer = Consumer
    source: Positions
