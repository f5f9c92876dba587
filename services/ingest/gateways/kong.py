"""Kong's http-log entry, one object or an array of them.

Owns where a Kong entry keeps what an event needs. It refuses to know HTTP, Kafka, and every part of an entry it does
not count: only the fields named below are ever decoded.

Who made the call is Kong's own `consumer`, never a header a caller could send; which call it was is Kong's own
`request.id`. Kong redacts `authorization` and nothing else: API keys arrive in clear and leave as keyed hashes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from services.ingest.capture import Capture, Location, Place, header_text
from services.ingest.decoded import (
    NAME_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    Columns,
    DecodedBatch,
    Fault,
    drop_faults,
    find_nul,
)
from services.ingest.entries import EntryReader, read_entries, split_entries
from services.ingest.identity import KeyHasher, name_account, weak_id
from services.ingest.redaction import drop_bodies
from tollgate.contracts.events import PROPERTY_PREFIX, hash_id
from tollgate.metering.errors import DeadReason, InvalidEvent

FORMAT = "kong"
_BLOCKED = "kong"
_ID_HEADER = "x-kong-request-id"
_AGENT_HEADER = "user-agent"

Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
Size = Annotated[int, Meta(ge=0, le=2**53)]
Instant = Annotated[int, Meta(ge=0, le=2**47)] | Annotated[float, Meta(ge=0, le=2**47)]
"""Epoch milliseconds up to the year 6429. Kong writes an integer; what a Lua plugin set may be a float."""
Duration = Annotated[int, Meta(ge=-(2**53), le=2**53)] | Annotated[float, Meta(ge=-(2**53), le=2**53)]
Status = Annotated[int, Meta(ge=0, le=32_767)]
HeaderValue = Text | list[Any] | bool | int | float | None


class _Latencies(msgspec.Struct, gc=False, frozen=True):
    request: Duration | None = None


class _Consumer(msgspec.Struct, gc=False, frozen=True):
    custom_id: Name | None = None
    username: Name | None = None
    id: Name | None = None


class _Route(msgspec.Struct, gc=False, frozen=True):
    name: Text | None = None
    id: Text | None = None


class _Service(msgspec.Struct, gc=False, frozen=True):
    name: Text | None = None
    host: Text | None = None
    id: Text | None = None


_NO_LATENCIES = _Latencies()
_NO_CONSUMER = _Consumer()
_NO_ROUTE = _Route()
_NO_SERVICE = _Service()


class KongDecoder:
    """Decodes http-log bodies. The headers and query parameters looked at are fixed when it is made."""

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
        self._capture = capture
        self._key_headers = tuple(name.lower() for name in api_key_headers)
        self._key_queries = api_key_queries
        request_headers = (_AGENT_HEADER, *self._key_headers, *_first(capture.paths(Place.HEADER)))
        response_headers = (_ID_HEADER, *_first(capture.paths(Place.RESPONSE_HEADER)))
        queries = (*api_key_queries, *_first(capture.paths(Place.QUERY)))
        self._header_fields = _fields(request_headers)
        self._response_header_fields = _fields(response_headers)
        self._query_fields = _fields(queries)
        headers = _named_values("_RequestHeaders", self._header_fields)
        response: type[Any] = msgspec.defstruct(
            "_Response",
            [
                ("status", Status | None, None),
                ("size", Size | None, None),
                ("headers", _named_values("_ResponseHeaders", self._response_header_fields) | None, None),
            ],
            gc=False,
            frozen=True,
        )
        request: type[Any] = msgspec.defstruct(
            "_Request",
            [
                ("id", Text | None, None),
                ("uri", Text | None, None),
                ("url", Text | None, None),
                ("method", Text | None, None),
                ("size", Size | None, None),
                ("headers", headers | None, None),
                *(
                    [("querystring", _named_values("_Query", self._query_fields) | None, None)]
                    if queries
                    else []
                ),
            ],
            gc=False,
            frozen=True,
        )
        entry: type[Any] = msgspec.defstruct(
            "_Entry",
            [
                ("request", request | None, None),
                ("response", response | None, None),
                ("latencies", _Latencies | None, None),
                ("consumer", _Consumer | None, None),
                ("route", _Route | None, None),
                ("service", _Service | None, None),
                ("client_ip", Text | None, None),
                ("started_at", Instant | None, None),
                ("source", Text | None, None),
            ],
            gc=False,
            frozen=True,
        )
        self._no_headers: Any = headers()
        self._reader: EntryReader[Any] = EntryReader(
            many=msgspec.json.Decoder(list[entry]),  # type: ignore[valid-type]
            one=msgspec.json.Decoder(entry),
            prune=drop_bodies,
        )
        self._no_request: Any = request()
        self._no_response: Any = response()
        self._readers = [
            (captured.name, [self._locate(at) for at in captured.locations])
            for captured in capture.properties
        ]

    def decode(self, body: bytes, *, ingest_ms: int, trust_ids: bool, replayed: bool) -> DecodedBatch:
        """See `Decoder.decode`. Kong's ids are the gateway's own whatever `trust_ids` says."""
        entries = read_entries(body, self._reader)
        rows = len(entries.read)
        columns, faults = self._columns(entries.read, replayed)
        if entries.suspicious:
            faults += find_nul(columns, rows)
        if not faults:
            return DecodedBatch(rows, columns, entries.rejected)
        payloads = entries.payloads or split_entries(body)
        rows, columns, rejected = drop_faults(columns, rows, faults, payloads.__getitem__)
        return DecodedBatch(rows, columns, [*entries.rejected, *rejected])

    def _columns(self, read: list[Any], replayed: bool) -> tuple[Columns, list[Fault]]:
        """1. Parts. 2. Identity and time, where rows may fail. 3. The columns. 4. Captured properties."""
        rows = len(read)
        requests = [entry.request or self._no_request for entry in read]
        responses = [entry.response or self._no_response for entry in read]
        headers = [request.headers or self._no_headers for request in requests]
        agent = self._header_fields[_AGENT_HEADER]

        consumers = [entry.consumer or _NO_CONSUMER for entry in read]
        users = [consumer.custom_id or consumer.username or consumer.id or None for consumer in consumers]
        api_keys = self._api_keys(requests, headers, replayed)
        accounts = [
            "user:" + user if user else name_account(None, None, key)
            for user, key in zip(users, api_keys, strict=True)
        ]
        times = [entry.started_at for entry in read]
        ids = [request.id or None for request in requests]
        weak = [False] * rows
        faults: list[Fault] = []
        if None in ids:
            self._complete_ids(read, requests, responses, api_keys, ids, weak)
        if None in accounts or None in times or self._no_request in requests:
            faults = _find_faults(read, accounts, times)
        latencies = [(entry.latencies or _NO_LATENCIES).request for entry in read]
        routes = [entry.route or _NO_ROUTE for entry in read]
        services = [entry.service or _NO_SERVICE for entry in read]

        columns: Columns = {
            "id_hash": [hash_id(event_id, self._id_seed) for event_id in ids],  # type: ignore[arg-type]
            "id_weak": weak,
            "id": ids,
            "time_ms": [None if time is None else int(time) for time in times],
            "account": accounts,
            "user": users,
            "company": [None] * rows,
            "subscription": [None] * rows,
            "api_key": api_keys,
            "gateway": [FORMAT] * rows,
            "service": [service.name or service.host or service.id for service in services],
            "route": [route.name or route.id for route in routes],
            "method": [request.method for request in requests],
            "host": [_host(request.url, request.uri) for request in requests],
            "path": [_path(request.uri) for request in requests],
            "status": [response.status for response in responses],
            # Kong says -1 for what it did not measure, and less after a step of its clock.
            "latency_ms": [int(spent) if spent is not None and spent >= 0 else None for spent in latencies],
            "request_bytes": [request.size for request in requests],
            "response_bytes": [response.size for response in responses],
            "client_ip": [entry.client_ip for entry in read],
            "user_agent": [header_text(getattr(values, agent)) for values in headers],
            "weight": [1] * rows,
            # 401, 429, 502 and the like: Kong answered, nobody was served.
            "blocked_by": [_BLOCKED if entry.source == "kong" else None for entry in read],
        }
        for name, readers in self._readers:
            column: list[str | None] = []
            for row, entry in enumerate(read):
                try:
                    column.append(_first_value(entry, readers))
                except InvalidEvent as error:
                    column.append(None)
                    faults.append(Fault(row, error.reason, f"{name}: {error.detail}"))
            columns[PROPERTY_PREFIX + name] = column
        return columns, faults

    def _api_keys(self, requests: list[Any], headers: list[Any], replayed: bool) -> list[str | None]:
        if not self._key_headers and not self._key_queries:
            return [None] * len(requests)
        header_fields = [self._header_fields[name] for name in self._key_headers]
        query_fields = [self._query_fields[name] for name in self._key_queries]
        read_key = self._keys.read_key
        keys: list[str | None] = []
        for request, values in zip(requests, headers, strict=True):
            key: str | None = None
            for name in header_fields:
                key = key or _single(getattr(values, name))
            if key is None and query_fields and request.querystring is not None:
                for name in query_fields:
                    key = key or _single(getattr(request.querystring, name))
            keys.append(read_key(key, replayed) if key else None)
        return keys

    def _complete_ids(
        self,
        read: list[Any],
        requests: list[Any],
        responses: list[Any],
        api_keys: list[str | None],
        ids: list[str | None],
        weak: list[bool],
    ) -> None:
        """Ids of entries without `request.id` (Kong before 3.5): the response's header, else a weak one."""
        id_field = self._response_header_fields[_ID_HEADER]
        for row, entry in enumerate(read):
            if ids[row] is not None:
                continue
            request, response = requests[row], responses[row]
            given = getattr(response.headers, id_field) if response.headers else None
            if given and isinstance(given, str):
                ids[row] = given
                continue
            weak[row] = True
            consumer = entry.consumer or _NO_CONSUMER
            ids[row] = weak_id(
                FORMAT,
                entry.started_at,
                entry.client_ip,
                consumer.id or consumer.custom_id or consumer.username or api_keys[row],
                (entry.route or _NO_ROUTE).id,
                request.method,
                request.uri,
                request.size,
                response.status,
                response.size,
                (entry.latencies or _NO_LATENCIES).request,
            )

    def _locate(self, at: Location) -> Callable[[Any], str | None]:
        """The function that reads one location of an entry. Kong's log has no bodies, metadata or data."""
        if at.place is Place.HEADER:
            return _header_reader("request", self._header_fields[at.path[0]])
        if at.place is Place.RESPONSE_HEADER:
            return _header_reader("response", self._response_header_fields[at.path[0]])
        if at.place is Place.QUERY:
            field = self._query_fields[at.path[0]]
            return lambda entry: (
                header_text(getattr(entry.request.querystring, field, None)) if entry.request else None
            )
        return lambda _entry: None


def _header_reader(part: str, field: str) -> Callable[[Any], str | None]:
    def read(entry: Any) -> str | None:
        message = getattr(entry, part)
        return header_text(getattr(message.headers, field, None)) if message else None

    return read


def _first_value(entry: Any, readers: list[Callable[[Any], str | None]]) -> str | None:
    for read in readers:
        value = read(entry)
        if value is not None:
            return value
    return None


def _find_faults(read: list[Any], accounts: list[str | None], times: list[Any]) -> list[Fault]:
    faults = []
    for row, entry in enumerate(read):
        if entry.request is None:
            faults.append(Fault(row, DeadReason.UNSUPPORTED, "no request: not an entry of an HTTP call"))
        elif times[row] is None:
            faults.append(Fault(row, DeadReason.NO_TIME, "no started_at"))
        elif accounts[row] is None:
            faults.append(Fault(row, DeadReason.NO_IDENTITY, "no consumer and no API key"))
    return faults


def _single(value: Any) -> str | None:
    """An API key as sent: the first, when a header was repeated."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, str) and value else None


def _host(url: str | None, uri: str | None) -> str | None:
    """The host of `scheme://host:port/uri`, without the port. `uri` is the tail of `url` when Kong wrote both."""
    if url is None:
        return None
    return _host_of(url.removesuffix(uri) if uri else url)


def _path(uri: str | None) -> str | None:
    """The path of a request target, without the query."""
    if uri is None:
        return None
    path = uri.partition("?")[0]
    if path[:1] != "/" and "://" in path:
        # A caller may send the absolute form, credentials in front of the host and all.
        return "/" + path.partition("://")[2].partition("/")[2]
    return path


@lru_cache(maxsize=1024)
def _host_of(base: str) -> str | None:
    authority = base.partition("://")[2].partition("/")[0].rpartition("@")[2]
    if authority.startswith("["):
        return authority.partition("]")[0] + "]"
    return authority.partition(":")[0] or None


def _first(paths: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(path[0] for path in paths)


def _fields(names: tuple[str, ...]) -> dict[str, str]:
    """A Python attribute for each name that may be none."""
    return {name: f"value_{index}" for index, name in enumerate(dict.fromkeys(names))}


def _named_values(struct: str, fields: dict[str, str]) -> type[Any]:
    """A struct that decodes only the named members of an object."""
    return msgspec.defstruct(
        struct,
        [(attribute, HeaderValue, None) for attribute in fields.values()],
        rename={attribute: name for name, attribute in fields.items()},
        gc=False,
        frozen=True,
    )
