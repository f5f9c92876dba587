"""The traffic of a run: calls as gateways log them, retries included, written to the log by two ingest instances.

Owns what is written and remembers it for the model. It refuses to know what is counted. Each write draws from a source
of its own, so that leaving one out of a plan changes no other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pyarrow as pa

from tests.simulation.fake_log import FakeLog
from tests.simulation.metered import HOUR_MS, Event
from tests.simulation.model import Written
from tests.simulation.warm import ACCEPT_AGE_HOURS, FUTURE_SECONDS, PARTITIONS
from tollgate.contracts.events import (
    SCHEMA,
    EventHeaders,
    assign_partition,
    encode_batch,
    hash_id,
    headers_to_kafka,
)
from tollgate.contracts.ticks import Tick, encode_tick, tick_headers

CUSTOMERS = ("cus_a", "cus_b", "cus_d")
MAILBOXES = ("ada@example.com",)
ACCOUNTS = tuple(f"user:{name}" for name in (*CUSTOMERS, *MAILBOXES))
INSTANCES = ("ingest-1", "ingest-2")
SEED = 7

_BY_PARTITION: dict[int, tuple[str, ...]] = {
    partition: tuple(a for a in ACCOUNTS if assign_partition(a, PARTITIONS) == partition)
    for partition in range(PARTITIONS)
}
_REMEMBERED = 40
_TYPES = {name: SCHEMA.field(name).type for name in SCHEMA.names}


class Traffic:
    """Writes to `log`. `now_ms` is the true time; `skew_ms` how far each ingest instance's clock is ahead of it."""

    def __init__(
        self, log: FakeLog, now_ms: Callable[[], int], skew_ms: tuple[int, int], seen: Callable[[str], None]
    ) -> None:
        self._log = log
        self._now_ms = now_ms
        self._skew_ms = skew_ms
        self._seen = seen
        self._recent: dict[int, list[Event]] = {partition: [] for partition in range(PARTITIONS)}
        self._acknowledged: dict[tuple[str, int], int] = {}
        self.events = 0

    def write(self, number: int, rng: random.Random) -> None:
        """Write a record or a few."""
        for part in range(rng.choice((1, 1, 2))):
            partition = rng.choice([p for p, accounts in _BY_PARTITION.items() if accounts])
            place = rng.randrange(2)
            if rng.random() < 0.04:
                self._write_broken(partition, place, rng)
                continue
            events = tuple(
                self._event(partition, f"{number}-{part}-{row}", rng, place)
                for row in range(rng.choice((1, 2, 3, 5)))
            )
            self._write(partition, place, events, accept_late=rng.random() < 0.02)
            if rng.random() < 0.05:
                # The producer did not hear the acknowledgement and wrote it all again.
                self._write(partition, place, events)
        if rng.random() < 0.1:
            self.tick()

    def tick(self) -> None:
        """Each instance says how much it had acknowledged."""
        for place, instance in enumerate(INSTANCES):
            for partition in range(PARTITIONS):
                wall_ms = self._now_ms() + self._skew_ms[place]
                rows = self._acknowledged.get((instance, partition), 0)
                self._log.append(
                    partition,
                    encode_tick(Tick(instance, wall_ms, rows)),
                    tick_headers(instance),
                    Written(instance, wall_ms, acknowledged=rows),
                )

    def _event(self, partition: int, name: str, rng: random.Random, place: int) -> Event:
        recent = self._recent[partition]
        if recent and rng.random() < 0.25:
            return rng.choice(recent)
        event = Event(
            id=f"call-{name}",
            account=rng.choice(_BY_PARTITION[partition]),
            time_ms=self._time_ms(rng, self._now_ms() + self._skew_ms[place]),
            status=rng.choice((200, 200, 200, 404, 429, 500, 503)),
            weight=rng.choice((1, 1, 2, 5)),
            user=rng.choice(("ada", "bob", "eve", "kim", "lee")),
            weak=rng.random() < 0.1,
        )
        recent.append(event)
        del recent[:-_REMEMBERED]
        return event

    def _time_ms(self, rng: random.Random, ingest_ms: int) -> int:
        drawn = rng.random()
        if drawn < 0.75:
            return ingest_ms - rng.randrange(2_000)
        if drawn < 0.90:
            return ingest_ms - HOUR_MS - rng.randrange(600_000)
        edge_ms = ACCEPT_AGE_HOURS * HOUR_MS
        if drawn < 0.94:
            self._seen("an event at the very edge of lateness")
            return ingest_ms - edge_ms + rng.choice((-1, 0, 1, 5_000, -5_000))
        if drawn < 0.95:
            return ingest_ms - edge_ms - rng.randrange(20 * HOUR_MS)
        if drawn < 0.98:
            return ingest_ms + FUTURE_SECONDS * 1000 - rng.choice((0, 1, 60_000))
        return ingest_ms + FUTURE_SECONDS * 1000 + rng.choice((1, 60_000, 20 * HOUR_MS))

    def _write(
        self, partition: int, place: int, events: tuple[Event, ...], *, accept_late: bool = False
    ) -> None:
        instance = INSTANCES[place]
        ingest_ms = self._now_ms() + self._skew_ms[place]
        headers = EventHeaders("kong", instance, len(events), ingest_ms, "", accept_late)
        self._log.append(
            partition,
            _encode(events),
            headers_to_kafka(headers),
            Written(instance, ingest_ms, events, accept_late=accept_late),
        )
        self._acknowledge(instance, partition, len(events))
        self.events += len(events)

    def _write_broken(self, partition: int, place: int, rng: random.Random) -> None:
        """A record nobody can decode: garbage under good headers, or a contract nobody knows."""
        instance, rows = INSTANCES[place], rng.randint(1, 4)
        ingest_ms = self._now_ms() + self._skew_ms[place]
        self._seen("a record that cannot be decoded")
        if rng.random() < 0.5:
            headers = headers_to_kafka(EventHeaders("kong", instance, rows, ingest_ms, ""))
            self._acknowledge(instance, partition, rows)
        else:
            headers = [("contract", b"events/99"), ("rows", str(rows).encode())]
        self._log.append(partition, b"garbage", headers, Written(instance, ingest_ms, broken_rows=rows))

    def _acknowledge(self, instance: str, partition: int, rows: int) -> None:
        self._acknowledged[instance, partition] = self._acknowledged.get((instance, partition), 0) + rows


def _encode(events: tuple[Event, ...]) -> bytes:
    columns: dict[str, list[object]] = {
        "id_hash": [hash_id(event.id, SEED) for event in events],
        "id_weak": [event.weak for event in events],
        "id": [event.id for event in events],
        "time_ms": [event.time_ms for event in events],
        "account": [event.account for event in events],
        "user": [event.user for event in events],
        "gateway": ["kong"] * len(events),
        "status": [event.status for event in events],
        "weight": [event.weight for event in events],
    }
    arrays = [
        pa.array(columns[name], kind) if name in columns else _nulls(len(events), kind)
        for name, kind in _TYPES.items()
    ]
    return encode_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))


@cache
def _nulls(rows: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(rows, kind)
