"""From a record of the log to what the fold understands.

Owns reading headers and choosing the contract. It refuses to know columns and meters: an events record's value stays
bytes here. Nothing raises: what cannot be read becomes an `UnknownRecord`, so one bad record stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from typing import Protocol

from tollgate.contracts import amendments, events, ticks
from tollgate.metering.amending import QUANTITY_MAX
from tollgate.metering.records import AmendmentRecord, EventsRecord, Record, TickRecord, UnknownRecord

ROWS_MAX = 10_000_000
"""More events than any record can hold: a header that claims more is wrong, and must not falsify the counts."""
TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999: beyond it a time is noise, and would expire every id ever seen."""

_NANO = Decimal("1e-9")
_EXACT = Context(prec=60)


class LogRecord(Protocol):
    """One record of the log, not looked into."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def value(self) -> bytes: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


Layout = Callable[[int, int], int]
"""The partition count in force at (partition, offset); 0 where it is not known."""


def decode_records(records: Sequence[LogRecord], layout: Layout | int = 0) -> list[Record]:
    """Each record in the fold's terms, in the same order.

    `layout`: the partition count in force, for all of them or by place; events written for another are misplaced.
    """
    if isinstance(layout, int):
        return [_decode(record, layout) for record in records]
    return [_decode(record, layout(record.partition, record.offset)) for record in records]


def misplacement(instance: str, partitions: int) -> str:
    """Why events of `instance` may be in the wrong partition where `partitions` are in force; '' when they are not."""
    written_for = events.written_for(instance)
    if not written_for or not partitions or written_for == partitions:
        return ""
    return f"written for {written_for} partitions, the log has {partitions}"


def _decode(record: LogRecord, partitions: int) -> Record:
    contract = events.contract_of(record.headers)
    if contract == events.CONTRACT:
        return _decode_events(record, partitions)
    if contract == ticks.CONTRACT:
        return _decode_tick(record)
    if contract == amendments.CONTRACT:
        return _decode_amendment(record)
    return _unknown(record, f"contract {contract!r} is not known here")


def _decode_events(record: LogRecord, partitions: int) -> EventsRecord | UnknownRecord:
    try:
        headers = events.headers_from_kafka(record.headers)
    except events.UndecodableRecord as error:
        return _unknown(record, str(error))
    if not 0 <= headers.rows <= ROWS_MAX:
        return _unknown(record, f"rows header is {headers.rows}")
    if not 0 <= headers.ingest_ms <= TIME_MS_MAX:
        return _unknown(record, f"ingest_ms header is {headers.ingest_ms}")
    return EventsRecord(
        partition=record.partition,
        offset=record.offset,
        rows=headers.rows,
        instance=headers.instance,
        source=headers.source,
        ingest_ms=headers.ingest_ms,
        accept_late=headers.accept_late,
        value=record.value,
        misplaced=misplacement(headers.instance, partitions),
    )


def _decode_tick(record: LogRecord) -> TickRecord | UnknownRecord:
    try:
        tick = ticks.decode_tick(record.value)
    except ValueError as error:
        return _unknown(record, f"not a tick: {error}")
    if not (0 <= tick.wall_ms <= TIME_MS_MAX and 0 <= tick.rows_acknowledged < 2**63):
        return _unknown(record, "a tick out of range")
    return TickRecord(record.partition, record.offset, tick.instance, tick.wall_ms, tick.rows_acknowledged)


def _decode_amendment(record: LogRecord) -> AmendmentRecord | UnknownRecord:
    try:
        amendment = amendments.decode_amendment(record.value)
        quantity = Decimal(amendment.quantity)
        if not quantity.is_finite() or quantity == 0 or abs(quantity) > QUANTITY_MAX:
            raise ValueError(f"quantity {amendment.quantity}")
        if quantity != quantity.quantize(_NANO, context=_EXACT):
            raise ValueError(f"quantity {amendment.quantity} has more than nine places")
    except (ValueError, ArithmeticError) as error:
        return _unknown(record, f"not an amendment: {error}")
    account, dimensions = amendment.account.encode(), amendment.dimensions.encode()
    if not 0 < len(account) <= amendments.ACCOUNT_BYTES_MAX or b"\0" in account + dimensions:
        return _unknown(record, "an amendment of no account")
    if len(dimensions) > amendments.DIMENSIONS_BYTES_MAX:
        return _unknown(record, "an amendment of no dimensions")
    if not all(0 <= at_ms <= TIME_MS_MAX for at_ms in (amendment.time_ms, amendment.written_ms)):
        return _unknown(record, "an amendment out of range")
    return AmendmentRecord(
        partition=record.partition,
        offset=record.offset,
        id_hash=amendment.id_hash,
        meter_id=amendment.meter_id,
        account=amendment.account,
        window_start_ms=amendment.window_start_ms,
        time_ms=amendment.time_ms,
        quantity=quantity,
        dimensions=amendment.dimensions,
        written_ms=amendment.written_ms,
        value=record.value,
    )


def _unknown(record: LogRecord, detail: str) -> UnknownRecord:
    """Accounted with the rows its header claims, with one when it claims nothing believable."""
    return UnknownRecord(
        partition=record.partition,
        offset=record.offset,
        rows=_rows_claimed(record),
        value=record.value,
        detail=detail,
    )


def _rows_claimed(record: LogRecord) -> int:
    for name, value in record.headers:
        # A length bound first: turning a megabyte of digits into an int takes seconds.
        if name == "rows" and len(value) <= len(str(ROWS_MAX)) and value.isdigit() and int(value) <= ROWS_MAX:
            return max(1, int(value))
    return 1
