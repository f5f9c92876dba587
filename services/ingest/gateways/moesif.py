"""Moesif's event, one or an array of them, as its gateway plugins and server SDKs send it.

Owns where a Moesif event keeps what an event of ours needs, and which of its ids is believed. It refuses to know
HTTP, Kafka, and bodies (but for captured paths).

The order of trust for ids: the request id Kong set on the *response*, which no caller can write; the
`transaction_id` a server SDK made for the event; else a weak hash of what the gateway set. Never the transaction
header alone: it is copied from the caller's own request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta

from services.ingest.capture import Capture, Location, Place, header_text, read_path
from services.ingest.decoded import (
    NAME_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    Columns,
    Fault,
)
from services.ingest.decoder import Decoder
from services.ingest.entries import Entries, EntryReader, read_entries
from services.ingest.gateways.iso_time import parse_instant
from services.ingest.identity import KeyHasher, name_account, weak_id
from services.ingest.redaction import drop_bodies
from tollgate.contracts.events import PROPERTY_PREFIX, SCHEMA, hash_id
from tollgate.metering.errors import DeadReason, InvalidEvent

FORMAT = "moesif"

Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""Frameworks hand over ids of their own database as numbers."""
Status = Annotated[int, Meta(ge=0, le=32_767)]
Weight = Annotated[int, Meta(ge=1, le=1_000_000)]
_NOTHING = msgspec.Raw(b"null")


class _Request(msgspec.Struct, gc=False, frozen=True):
    time: Text | None = None
    uri: Text | None = None
    verb: Text | None = None
    headers: dict[str, Any] | list[Any] | None = None
    ip_address: Text | None = None
    body: msgspec.Raw = _NOTHING


class _Response(msgspec.Struct, gc=False, frozen=True):
    time: Text | None = None
    status: Status | None = None
    headers: dict[str, Any] | list[Any] | None = None
    body: msgspec.Raw = _NOTHING


class _Event(msgspec.Struct, gc=False, frozen=True):
    request: _Request | None = None
    response: _Response | None = None
    user_id: Name | None = None
    company_id: Name | None = None
    subscription_id: Name | None = None
    session_token: Text | None = None
    transaction_id: Text | None = None
    weight: Weight | None = None
    blocked_by: Text | None = None
    metadata: msgspec.Raw = _NOTHING


_NO_RESPONSE = _Response()
_READER = EntryReader(
    many=msgspec.json.Decoder(list[_Event]), one=msgspec.json.Decoder(_Event), prune=drop_bodies
)
_SERVICE_PATH = ("kong", "service_name")


class MoesifDecoder(Decoder):
    """Decodes bodies of `/v1/events` and `/v1/events/batch`."""

    format = FORMAT

    def __init__(
        self,
        *,
        id_seed: int,
        keys: KeyHasher,
        capture: Capture,
        api_key_headers: tuple[str, ...] = (),
        api_key_queries: tuple[str, ...] = (),
    ) -> None:
        self._id_seed = id_seed
        self._keys = keys
        self._key_headers = tuple(name.lower() for name in api_key_headers)
        self._key_queries = api_key_queries
        self._readers = [
            (captured.name, [_reader(at) for at in captured.locations]) for captured in capture.properties
        ]
        self._names = [*SCHEMA.names, *(PROPERTY_PREFIX + name for name in capture.names)]

    def read(self, body: bytes) -> Entries[Any]:
        """See `Decoder.read`."""
        return read_entries(body, _READER)

    def to_columns(
        self, entries: list[Any], *, ingest_ms: int, trust_ids: bool, replayed: bool
    ) -> tuple[Columns, list[Fault]]:
        """See `Decoder.to_columns`."""
        faults: list[Fault] = []
        rows: list[tuple[Any, ...]] = []
        for row, event in enumerate(entries):
            try:
                rows.append(self._row(event, trust_ids, replayed))
            except InvalidEvent as error:
                faults.append(Fault(row, error.reason, error.detail))
                rows.append((None,) * len(self._names))
        columns: Columns = {
            name: list(values)
            for name, values in zip(
                self._names, zip(*rows, strict=True) if rows else [()] * len(self._names), strict=True
            )
        }
        return columns, faults

    def _row(self, event: _Event, trust_ids: bool, replayed: bool) -> tuple[Any, ...]:
        """The values of one event in the order of the schema, then its properties. Raises InvalidEvent."""
        request, response = event.request, event.response or _NO_RESPONSE
        if request is None:
            raise InvalidEvent(DeadReason.UNSUPPORTED, "no request: not an event of an HTTP call")
        if request.time is None:
            raise InvalidEvent(DeadReason.NO_TIME, "no request.time")
        time_ms = parse_instant(request.time, unpadded_ms=True)
        if time_ms is None:
            raise InvalidEvent(DeadReason.BAD_TIME, f"request.time is {request.time[:40]!r}")
        end_ms = parse_instant(response.time, unpadded_ms=True) if response.time else None
        headers = _Headers(request.headers)
        response_headers = _Headers(response.headers)
        host, path, query = _split_uri(request.uri)
        user = None if event.user_id is None else str(event.user_id) or None
        company = None if event.company_id is None else str(event.company_id) or None
        api_key = self._keys.read_key(event.session_token or self._api_key(headers, query) or None, replayed)
        account = name_account(company, user, api_key)
        if account is None:
            raise InvalidEvent(DeadReason.NO_IDENTITY, "no company_id, user_id or session_token")
        event_id = response_headers.single("x-kong-request-id") or (
            event.transaction_id if trust_ids else None
        )
        weak = not event_id
        if not event_id:
            event_id = weak_id(
                FORMAT,
                headers.single("x-moesif-transaction-id"),
                time_ms,
                end_ms,
                request.verb,
                host,
                path,
                sorted(query),
                response.status,
                request.ip_address,
                account,
                api_key,
            )
        message = _Message(event, headers, response_headers, query)
        return (
            hash_id(event_id, self._id_seed),
            weak,
            event_id,
            time_ms,
            account,
            user,
            company,
            None if event.subscription_id is None else str(event.subscription_id) or None,
            api_key,
            FORMAT,
            read_path(bytes(event.metadata), _SERVICE_PATH) if b'"kong"' in bytes(event.metadata) else None,
            None,
            request.verb,
            host,
            path,
            response.status,
            end_ms - time_ms if end_ms is not None and end_ms >= time_ms else None,
            headers.size(),
            response_headers.size(),
            request.ip_address,
            headers.text("user-agent"),
            1 if event.weight is None else event.weight,
            event.blocked_by or None,
            *[_first_value(message, readers) for _, readers in self._readers],
        )

    def _api_key(self, headers: _Headers, query: list[tuple[str, str]]) -> str | None:
        for name in self._key_headers:
            if key := headers.first(name):
                return key
        for name in self._key_queries:
            for given, value in query:
                if given == name and value:
                    return value
        return None


class _Headers:
    """Headers by lower-case name, whatever case and shape the sender used."""

    __slots__ = ("_values",)

    def __init__(self, headers: dict[str, Any] | list[Any] | None) -> None:
        # An empty Lua table may be encoded as an array.
        self._values = (
            {name.lower(): value for name, value in headers.items()} if isinstance(headers, dict) else {}
        )

    def single(self, name: str) -> str | None:
        """The value of a header that came exactly once: what a gateway sets, it sets once."""
        value = self._values.get(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return value if isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS_MAX else None

    def first(self, name: str) -> str | None:
        """The first value of a header that may have been repeated."""
        value = self._values.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        return value if isinstance(value, str) else None

    def text(self, name: str) -> str | None:
        """All values of a header as one text. Raises InvalidEvent for one too long to keep."""
        value = header_text(self._values.get(name))
        if value is not None and len(value) > TEXT_CHARACTERS_MAX:
            raise InvalidEvent(DeadReason.TOO_LARGE, f"{name} of {len(value)} characters")
        return value

    def size(self) -> int | None:
        """The content length, in bytes, as the message's own header states it."""
        text = self.single("content-length")
        if text is None:
            return None
        text = text.strip()
        if text.startswith("-") and text[1:].isdecimal():
            raise InvalidEvent(DeadReason.OUT_OF_RANGE, f"content-length is {text[:20]}")
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else None


class _Message:
    """One event with its headers and query already read, for captured properties."""

    __slots__ = ("event", "headers", "query", "response_headers")

    def __init__(
        self, event: _Event, headers: _Headers, response_headers: _Headers, query: list[tuple[str, str]]
    ) -> None:
        self.event = event
        self.headers = headers
        self.response_headers = response_headers
        self.query = query


def _reader(at: Location) -> Callable[[_Message], str | None]:
    """The function that reads one location of an event."""
    path, name = at.path, at.path[0]
    match at.place:
        case Place.HEADER:
            return lambda message: message.headers.text(name)
        case Place.RESPONSE_HEADER:
            return lambda message: message.response_headers.text(name)
        case Place.QUERY:
            return lambda message: header_text([v for k, v in message.query if k == name] or None)
        case Place.BODY:
            return lambda message: read_path(bytes((message.event.response or _NO_RESPONSE).body), path)
        case Place.REQUEST_BODY:
            return lambda message: (
                read_path(bytes(message.event.request.body), path) if message.event.request else None
            )
        case Place.METADATA:
            return lambda message: read_path(bytes(message.event.metadata), path)
        case Place.DATA:
            return lambda _message: None


def _first_value(message: _Message, readers: list[Callable[[_Message], str | None]]) -> str | None:
    for read in readers:
        value = read(message)
        if value is not None:
            return value
    return None


def _split_uri(uri: str | None) -> tuple[str | None, str | None, list[tuple[str, str]]]:
    """Host without port, path without query, and the query's parameters."""
    if not uri:
        return None, None, []
    before, _, query = uri.partition("?")
    try:
        parts = urlsplit(before.partition("#")[0])
        host = parts.hostname
    except ValueError:
        # A caller's Host header may be anything; the path is still after the third slash.
        return None, "/" + "/".join(before.split("/")[3:]), _parameters(query)
    return host, parts.path or "/", _parameters(query)


def _parameters(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True) if query else []
