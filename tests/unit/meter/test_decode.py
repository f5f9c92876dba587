"""From records to what the fold takes: nothing raises."""

from __future__ import annotations

import pytest

from services.meter.decode import ROWS_MAX, decode_records
from services.meter.intake import LogRecord
from tests.fakes.events import TIME_MS, Call, batch_of
from tollgate.contracts.ticks import Tick, encode_tick, tick_headers
from tollgate.metering.records import AmendmentRecord, EventsRecord, TickRecord, UnknownRecord


def _decode(
    value: bytes, headers: list[tuple[str, bytes]]
) -> AmendmentRecord | EventsRecord | TickRecord | UnknownRecord:
    return decode_records([LogRecord(3, 8, value, tuple(headers))])[0]


def test_an_events_record_keeps_its_bytes() -> None:
    """Headers are read, the value is left to the fold."""
    value, headers = batch_of([Call("a"), Call("b")])
    found = _decode(value, headers)
    assert found == EventsRecord(3, 8, 2, "ingest-1", "test", TIME_MS, False, value)


def test_a_tick_is_read() -> None:
    """A tick is told apart by its contract."""
    tick = Tick("ingest-1", TIME_MS, 12)
    assert _decode(encode_tick(tick), list(tick_headers("ingest-1"))) == TickRecord(
        3, 8, "ingest-1", TIME_MS, 12
    )


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        ({"contract": b"events/9"}, 2),
        ({"contract": b"\xff"}, 2),
        ({"rows": b"-1"}, 1),
        ({"rows": b"many"}, 1),
        ({"rows": b"9" * 5000}, 1),
        ({"rows": str(ROWS_MAX + 1).encode()}, 1),
        ({"ingest_ms": b"-1"}, 2),
        ({"ingest_ms": b"999999999999999999999"}, 2),
        ({"source": b"\xff"}, 2),
    ],
)
def test_headers_that_lie_make_an_unknown_record(changed: dict[str, bytes], rows: int) -> None:
    """It is accounted with the rows it claims, or with one where the claim cannot be believed."""
    value, headers = batch_of([Call("a"), Call("b")])
    found = _decode(value, [(name, changed.get(name, kept)) for name, kept in headers])
    assert isinstance(found, UnknownRecord)
    assert (found.rows, found.value, found.offset) == (rows, value, 8)
    assert found.detail


@pytest.mark.parametrize(
    "value", [b"", b"{}", b'{"instance":"i","wall_ms":-5,"rows_acknowledged":1}', b"\xff"]
)
def test_a_broken_tick_is_an_unknown_record(value: bytes) -> None:
    """Whatever somebody writes into the topic stops nothing."""
    assert isinstance(_decode(value, list(tick_headers("i"))), UnknownRecord)


def test_no_headers_at_all() -> None:
    """A record of somebody else's program."""
    assert isinstance(_decode(b"hello", []), UnknownRecord)
