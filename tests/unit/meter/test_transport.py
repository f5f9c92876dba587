"""What is changed in Faust's consumer: bundles, and the bound on a broker's answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP

from services.meter.settings import MeterSettings
from services.meter.transport import Bundle, Consumer, LedgerConsumer, Transport, bundle
from services.meter.worker import _App, _app_settings

TOPIC = "events"


def fetched(offset: int, size: int = 1, value: bytes | None = b"") -> Any:
    """A record as the driver gives it."""
    value = value if value is None else b"x" * size
    return SimpleNamespace(offset=offset, value=value, headers=(("rows", b"1"),))


class Fetching(LedgerConsumer):
    """A consumer whose driver has fetched `records`."""

    def __init__(self, records: Any, active: set[TP]) -> None:
        self.records = records
        self.active = active
        self.app: Any = SimpleNamespace(consumer_generation_id=1)
        self.flow_active = True
        self.sought = 0
        self.seek_error: Exception | None = None

    @property
    def should_stop(self) -> bool:
        return False

    async def _wait_next_records(self, timeout: float) -> Any:
        return self.records, self.active

    async def perform_seek(self) -> None:
        self.sought += 1
        if self.seek_error is not None:
            raise self.seek_error


def tp(partition: int) -> TP:
    return TP(TOPIC, partition)


async def handed_on(consumer: Fetching) -> list[tuple[int, list[int]]]:
    """(partition, offsets) of each bundle."""
    return [
        (at.partition, [record.offset for record in message.records])
        async for at, message in consumer.getmany(timeout=1.0)
    ]


def test_a_bundle_is_cut_by_bytes() -> None:
    """It ends with the record that reaches the bound; order and every record are kept."""
    cut = list(bundle(3, [fetched(at, size) for at, size in enumerate((1, 4, 2, 9, 1))], 5))
    assert [[record.offset for record in part] for part in cut] == [[0, 1], [2, 3], [4]]
    assert {(record.partition, record.headers) for part in cut for record in part} == {(3, (("rows", b"1"),))}
    assert list(bundle(3, [], 5)) == []


def test_a_record_without_a_value_is_an_empty_one() -> None:
    """The fold says what is wrong with it; nothing here trips over it."""
    ((record,),) = bundle(0, [fetched(7, value=None)], 5)
    assert (record.offset, record.value) == (7, b"")


def test_a_bundle_is_a_message_of_its_first_record() -> None:
    """Faust drops messages of another generation by what they say."""
    made = Bundle(tp(2), next(iter(bundle(2, [fetched(5), fetched(6)], 10))), 9)
    assert (made.topic, made.partition, made.offset, made.tp, made.generation_id) == (TOPIC, 2, 5, tp(2), 9)
    assert (made.key, made.value, len(made.records)) == (None, b"", 2)


async def test_everything_fetched_is_handed_on_in_order() -> None:
    """Each partition's records, one bundle after the other."""
    consumer = Fetching({tp(0): [fetched(4), fetched(5)], tp(1): [fetched(9)]}, {tp(0), tp(1)})
    assert await handed_on(consumer) == [(0, [4, 5]), (1, [9])]


async def test_a_partition_that_was_paused_meanwhile_is_left_out() -> None:
    """The set of active partitions is Faust's own, as it is now."""
    consumer = Fetching({tp(0): [fetched(4)], tp(1): [fetched(9)]}, {tp(0), tp(1)})
    consumer.active.discard(tp(0))
    assert await handed_on(consumer) == [(1, [9])]


@pytest.mark.parametrize("change", ["flow", "generation"])
async def test_a_rebalance_between_two_bundles_ends_it(change: str) -> None:
    """What is left was fetched for the assignment before."""
    consumer = Fetching({tp(0): [fetched(4)], tp(1): [fetched(9)]}, {tp(0), tp(1)})
    handed = []
    async for at, _ in consumer.getmany(timeout=1.0):
        handed.append(at.partition)
        if change == "flow":
            consumer.flow_active = False
        else:
            consumer.app.consumer_generation_id = 2
    assert handed == [0]


@pytest.mark.parametrize("error", [None, RuntimeError("no such partition")])
async def test_what_comes_while_the_flow_is_stopped_is_read_again(error: Exception | None) -> None:
    """It is dropped and sought back to; a seek that fails is followed by the rebalance's own."""
    consumer = Fetching({tp(0): [fetched(4)]}, {tp(0)})
    consumer.flow_active = False
    consumer.seek_error = error
    assert await handed_on(consumer) == []
    assert consumer.sought == 1


async def test_a_brokers_answer_is_bounded() -> None:
    """The pinned client has the attribute, takes the bound from it, and goes on checking checksums."""
    loop = asyncio.get_running_loop()
    settings = MeterSettings()
    app: faust.App = _App(**_app_settings(settings), loop=loop)
    app.finalize()
    transport = Transport(app.conf.broker_consumer, app, loop)
    transport.fetch_bytes_max = 12_345
    app.transport = transport
    consumer = app.consumer
    assert isinstance(consumer, Consumer)
    thread: Any = consumer._thread
    try:
        made = thread._create_worker_consumer(transport)
        assert made._fetch_max_bytes == 12_345
        assert made._max_partition_fetch_bytes == settings.fetch.partition_bytes_max
        assert made._check_crcs is True
        await made.stop()
    finally:
        thread.thread_loop.close()
