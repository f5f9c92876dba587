"""CloudEvents 1.0 in JSON, single and batch, as metering clients send them.

Owns how a CloudEvent becomes an event: `(source, id)` is its identity, `subject` is the user, `time` (when absent:
of ingest) is when it happened, captured members of `data` are its properties. Members of `data` that are named and
typed as an event's column (`status`, `path`, `response_bytes` …) fill it; without them `type` stands in the column
`route` and `source` in `service`, so that meters can tell kinds of events apart. It refuses to know HTTP and Kafka.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from services.ingest.capture import Capture, Place, read_path
from services.ingest.decoded import (
    NAME_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    Columns,
    Fault,
)
from services.ingest.decoder import Decoder
from services.ingest.entries import Entries, EntryReader, read_entries
from services.ingest.gateways.iso_time import parse_instant
from tollgate.contracts.events import PROPERTY_PREFIX, SCHEMA, hash_id
from tollgate.metering.errors import DeadReason, InvalidEvent

FORMAT = "cloudevents"
SPEC_VERSION = "1.0"

Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
_NOTHING = msgspec.Raw(b"null")


class _CloudEvent(msgspec.Struct, gc=False, frozen=True):
    specversion: Text | None = None
    id: Text | None = None
    source: Text | None = None
    type: Text | None = None
    subject: Name | None = None
    time: Text | None = None
    data: msgspec.Raw = _NOTHING


_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(Text)
_amount = msgspec.json.Decoder(Annotated[int, Meta(ge=0, le=2**63 - 1)])
_status = msgspec.json.Decoder(Annotated[int, Meta(ge=0, le=2**15 - 1)])
_weight = msgspec.json.Decoder(Annotated[int, Meta(ge=1, le=2**63 - 1)])

_DATA_COLUMNS: dict[str, msgspec.json.Decoder[Any]] = {
    "service": _text,
    "route": _text,
    "method": _text,
    "host": _text,
    "path": _text,
    "status": _status,
    "latency_ms": _amount,
    "request_bytes": _amount,
    "response_bytes": _amount,
    "client_ip": _text,
    "user_agent": _text,
    "weight": _weight,
    "blocked_by": _text,
}
"""Members of `data` that fill a column. `data` is the sender's own: a member of another type is not an error."""


def _read_columns(data: bytes) -> dict[str, Any]:
    """The event columns that `data` names."""
    if not data.startswith(b"{"):
        return {}
    try:
        members = _object.decode(data)
    except msgspec.DecodeError:
        return {}
    found: dict[str, Any] = {}
    for name in members.keys() & _DATA_COLUMNS.keys():
        with contextlib.suppress(msgspec.DecodeError):
            found[name] = _DATA_COLUMNS[name].decode(members[name])
    if "path" in found:
        found["path"] = found["path"].partition("?")[0]
    return found


_READER = EntryReader(many=msgspec.json.Decoder(list[_CloudEvent]), one=msgspec.json.Decoder(_CloudEvent))


class CloudEventsDecoder(Decoder):
    """Decodes structured-mode JSON bodies, one event or a batch."""

    format = FORMAT

    def __init__(self, *, id_seed: int, capture: Capture) -> None:
        self._id_seed = id_seed
        self._paths = [
            [at.path for at in captured.locations if at.place is Place.DATA]
            for captured in capture.properties
        ]
        self._names = [*SCHEMA.names, *(PROPERTY_PREFIX + name for name in capture.names)]

    def read(self, body: bytes) -> Entries[Any]:
        """See `Decoder.read`."""
        return read_entries(body, _READER)

    def to_columns(
        self, entries: list[Any], *, ingest_ms: int, trust_ids: bool, replayed: bool
    ) -> tuple[Columns, list[Fault]]:
        """See `Decoder.to_columns`. A CloudEvent's id is its sender's own whatever `trust_ids` says."""
        faults: list[Fault] = []
        rows: list[dict[str, Any]] = []
        for row, event in enumerate(entries):
            try:
                rows.append(self._row(event, ingest_ms))
            except InvalidEvent as error:
                faults.append(Fault(row, error.reason, error.detail))
                rows.append({})
        columns: Columns = {name: [row.get(name) for row in rows] for name in self._names}
        return columns, faults

    def _row(self, event: _CloudEvent, ingest_ms: int) -> dict[str, Any]:
        """The columns of one event that are not null. Raises InvalidEvent."""
        if event.specversion != SPEC_VERSION:
            raise InvalidEvent(
                DeadReason.UNSUPPORTED, f"specversion {event.specversion!r} is not {SPEC_VERSION}"
            )
        if not event.id or not event.source:
            raise InvalidEvent(DeadReason.NO_ID, "no id" if not event.id else "no source")
        if not event.subject:
            raise InvalidEvent(DeadReason.NO_IDENTITY, "no subject")
        time_ms = ingest_ms if event.time is None else parse_instant(event.time)
        if time_ms is None:
            raise InvalidEvent(DeadReason.BAD_TIME, f"time is {str(event.time)[:40]!r}")
        # With the length of one part said, no two pairs of source and id read the same.
        event_id = f"{len(event.source)}:{event.source}:{event.id}"
        row: dict[str, Any] = {
            "id_hash": hash_id(event_id, self._id_seed),
            "id_weak": False,
            "id": event_id,
            "time_ms": time_ms,
            "account": "user:" + event.subject,
            "user": event.subject,
            "gateway": FORMAT,
            "service": event.source,
            "route": event.type,
            "weight": 1,
        }
        data = bytes(event.data)
        row |= _read_columns(data)
        for name, paths in zip(self._names[len(SCHEMA.names) :], self._paths, strict=True):
            for path in paths:
                value = read_path(data, path)
                if value is not None:
                    row[name] = value
                    break
        return row
