"""Faust's transport, changed in the four places where it would lose, stall or cost too much.

Owns a consumer that starts where the ledger says, never stops fetching because a small buffer is full, leaves
dropping replays to the intake, and hands on bundles instead of records. It refuses to know partitions' state:
`positions` and `stopped` are asked for.

The changes sit in `LedgerConsumer`, a mixin, so that the tests' transport without a broker runs the very same code.
What needs the driver itself is in `Consumer`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from services.meter.intake import LogRecord

_log = structlog.stdlib.get_logger(__name__)

BUNDLE_BYTES_MAX = 1024 * 1024
"""Of values in one bundle, and one record more: the bound on what waits between fetching and the intake, together with
the number of bundles the stream holds."""


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


class Bundle(ConsumerMessage):
    """Records of one partition that were fetched together, as one message of Faust's.

    Faust spends some 60 microseconds on a message whatever it holds (four tasks, a queue, a stream), which is more
    than everything else that is done with a record of a few events. As a message a bundle is of its first record.
    """

    __slots__ = ("records",)

    def __init__(self, tp: TP, records: Sequence[LogRecord], generation_id: int) -> None:
        first = records[0]
        super().__init__(
            tp.topic,
            tp.partition,
            first.offset,
            0.0,
            0,
            None,
            None,
            # Not the values: Faust has nothing to decode.
            b"",
            None,
            tp=tp,
            generation_id=generation_id,
        )
        self.records = records
        """Offsets ascending, at least one."""


def bundle(partition: int, fetched: Sequence[Any], bytes_max: int) -> Iterator[list[LogRecord]]:
    """The records of one partition as the driver gives them, in ours, cut where `bytes_max` is reached."""
    records: list[LogRecord] = []
    held = 0
    for record in fetched:
        value = record.value or b""
        records.append(LogRecord(partition, record.offset, value, tuple(record.headers or ())))
        held += len(value)
        if held >= bytes_max:
            yield records
            records, held = [], 0
    if records:
        yield records


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

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Bundle]]:
        """What was fetched, in bundles: Faust's own `getmany` gives a message a record.

        Kept of it: nothing is handed on while the flow is stopped, from before a rebalance, or of a partition that
        was paused since it was asked for; a fetch that comes while the flow is stopped seeks back.
        """
        fetched, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if fetched is None or self.should_stop:
            return
        if not self.flow_active:
            # What was fetched is dropped, and the driver's position is behind it.
            try:
                await self.perform_seek()
            except Exception as error:
                # Whatever the driver raises in the middle of a rebalance, which ends in a seek of its own.
                _log.warning("seek.failed", detail=repr(error))
            return
        for tp, records in fetched.items():
            for part in bundle(tp.partition, records, BUNDLE_BYTES_MAX):
                if not self.flow_active or self.app.consumer_generation_id != generation:
                    return
                if active is None or tp in active:
                    yield tp, Bundle(tp, part, generation)

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


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """The driver's thread, with a bound on what one answer of a broker holds."""

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        made = super()._create_worker_consumer(transport)
        # Faust has no setting for it. Read once, when the consumer starts.
        assert hasattr(made, "_fetch_max_bytes"), "aiokafka is pinned: this is where it keeps it"
        made._fetch_max_bytes = transport.fetch_bytes_max  # type: ignore[attr-defined]
        return made


class Consumer(LedgerConsumer, driver.Consumer):
    """The consumer on aiokafka."""

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class Transport(driver.Transport):
    """The transport on aiokafka. `source` and `fetch_bytes_max` are set before the app starts."""

    Consumer = Consumer
    source: Positions
    fetch_bytes_max: int
    """Of one answer of a broker, over all partitions; an answer holds at least one record."""
