"""Kong's http-log entry, one object or an array of them.

Owns where a Kong entry keeps what an event needs. It refuses to know HTTP, Kafka, and every part of an entry it does
not count: only the fields `kong_entry` names are ever decoded.

Who made the call is Kong's own `consumer`, never a header a caller could send; which call it was is Kong's own
`request.id`. Kong redacts `authorization` and nothing else: API keys arrive in clear and leave as keyed hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

from services.ingest.capture import Capture, Location, Place, header_text
from services.ingest.decoded import Columns, Fault
from services.ingest.decoder import Decoder
from services.ingest.entries import Entries, read_entries
from services.ingest.gateways.kong_entry import (
    NO_CONSUMER,
    NO_LATENCIES,
    NO_ROUTE,
    NO_SERVICE,
    EntryShape,
)
from services.ingest.identity import KeyHasher, name_account, weak_id
from tollgate.contracts.events import PROPERTY_PREFIX, hash_id
from tollgate.metering.errors import DeadReason, InvalidEvent

FORMAT = "kong"
_BLOCKED = "kong"
_ID_HEADER = "x-kong-request-id"
_AGENT_HEADER = "user-agent"


@dataclass(frozen=True, slots=True)
class _Parts:
    """The objects inside the entries of a group, one a row; an absent one is there and empty."""

    entries: Sequence[Any]
    requests: Sequence[Any]
    responses: Sequence[Any]
    headers: Sequence[Any]
    response_headers: Sequence[Any]
    queries: Sequence[Any]


class KongDecoder(Decoder):
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
        key_headers = tuple(name.lower() for name in api_key_headers)
        self._shape = EntryShape(
            (_AGENT_HEADER, *key_headers, *_first(capture.paths(Place.HEADER))),
            (_ID_HEADER, *_first(capture.paths(Place.RESPONSE_HEADER))),
            (*api_key_queries, *_first(capture.paths(Place.QUERY))),
        )
        self._agent = attrgetter(self._shape.header_fields[_AGENT_HEADER])
        self._given_id = attrgetter(self._shape.response_header_fields[_ID_HEADER])
        self._key_places = [
            *(("headers", attrgetter(self._shape.header_fields[name])) for name in key_headers),
            *(("queries", attrgetter(self._shape.query_fields[name])) for name in api_key_queries),
        ]
        self._property_places = [
            (captured.name, [place for at in captured.locations if (place := self._locate(at))])
            for captured in capture.properties
        ]

    def read(self, body: bytes) -> Entries[Any]:
        """See `Decoder.read`."""
        return read_entries(body, self._shape.reader)

    def to_columns(
        self, entries: list[Any], *, ingest_ms: int, trust_ids: bool, replayed: bool
    ) -> tuple[Columns, list[Fault]]:
        """See `Decoder.to_columns`. Kong's ids are the gateway's own whatever `trust_ids` says.

        1. Parts. 2. Identity and time, where rows may fail. 3. The columns. 4. Captured properties.
        """
        rows = len(entries)
        parts = self._take_apart(entries)
        requests, responses = parts.requests, parts.responses

        consumers = [entry.consumer or NO_CONSUMER for entry in entries]
        users = [consumer.custom_id or consumer.username or consumer.id or None for consumer in consumers]
        api_keys = self._api_keys(parts, replayed)
        accounts = [
            "user:" + user if user else name_account(None, None, key)
            for user, key in zip(users, api_keys, strict=True)
        ]
        times = [entry.started_at for entry in entries]
        ids = [request.id or None for request in requests]
        weak = [False] * rows
        faults: list[Fault] = []
        if None in ids:
            self._complete_ids(parts, api_keys, ids, weak)
        if None in accounts or None in times or not all(entry.request for entry in entries):
            faults = _find_faults(entries, accounts, times)
        routes = [entry.route or NO_ROUTE for entry in entries]
        services = [entry.service or NO_SERVICE for entry in entries]
        latencies = [(entry.latencies or NO_LATENCIES).request for entry in entries]
        seed = self._id_seed

        columns: Columns = {
            "id_hash": [hash_id(event_id, seed) for event_id in ids],  # type: ignore[arg-type]
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
            "client_ip": [entry.client_ip for entry in entries],
            "user_agent": _texts(map(self._agent, parts.headers), "user-agent", faults),
            "weight": [1] * rows,
            # 401, 429, 502 and the like: Kong answered, nobody was served.
            "blocked_by": [_BLOCKED if entry.source == "kong" else None for entry in entries],
        }
        for name, places in self._property_places:
            columns[PROPERTY_PREFIX + name] = _first_texts(parts, places, rows, name, faults)
        return columns, faults

    def _take_apart(self, entries: list[Any]) -> _Parts:
        shape = self._shape
        requests = [entry.request or shape.no_request for entry in entries]
        responses = [entry.response or shape.no_response for entry in entries]
        return _Parts(
            entries,
            requests,
            responses,
            [request.headers or shape.no_headers for request in requests],
            [response.headers or shape.no_response_headers for response in responses],
            [request.querystring or shape.no_query for request in requests] if shape.query_fields else (),
        )

    def _api_keys(self, parts: _Parts, replayed: bool) -> list[str | None]:
        """Per row the keyed hash of the first key its headers, then its query, hold."""
        rows = len(parts.entries)
        keys: list[str | None] = [None] * rows
        for part, read in self._key_places:
            given = list(map(read, getattr(parts, part)))
            # Most callers show a consumer and most places no key: one count instead of a look at each row.
            if given.count(None) == rows:
                continue
            for row, value in enumerate(given):
                if keys[row] is None and (key := _single(value)):
                    keys[row] = self._keys.read_key(key, replayed)
        return keys

    def _complete_ids(
        self, parts: _Parts, api_keys: list[str | None], ids: list[str | None], weak: list[bool]
    ) -> None:
        """Ids of entries without `request.id` (Kong before 3.5): the response's header, else a weak one."""
        for row, entry in enumerate(parts.entries):
            if ids[row] is not None:
                continue
            request, response = parts.requests[row], parts.responses[row]
            given = self._given_id(parts.response_headers[row])
            if given and isinstance(given, str):
                ids[row] = given
                continue
            weak[row] = True
            consumer = entry.consumer or NO_CONSUMER
            ids[row] = weak_id(
                FORMAT,
                entry.started_at,
                entry.client_ip,
                consumer.id or consumer.custom_id or consumer.username or api_keys[row],
                (entry.route or NO_ROUTE).id,
                request.method,
                request.uri,
                request.size,
                response.status,
                response.size,
                (entry.latencies or NO_LATENCIES).request,
            )

    def _locate(self, at: Location) -> tuple[str, attrgetter[Any]] | None:
        """The part one location is in, and how it is read. Kong's log has no bodies, metadata or data."""
        if at.place is Place.HEADER:
            return "headers", attrgetter(self._shape.header_fields[at.path[0]])
        if at.place is Place.RESPONSE_HEADER:
            return "response_headers", attrgetter(self._shape.response_header_fields[at.path[0]])
        if at.place is Place.QUERY:
            return "queries", attrgetter(self._shape.query_fields[at.path[0]])
        return None


def _first_texts(
    parts: _Parts, places: Sequence[tuple[str, attrgetter[Any]]], rows: int, name: str, faults: list[Fault]
) -> list[str | None]:
    """A captured property as a column: per row the first of `places` that has a value."""
    column: list[str | None] | None = None
    for part, read in places:
        values = map(read, getattr(parts, part))
        if column is None:
            column = _texts(values, name, faults)
        elif None in column:
            missing = [value if held is None else None for held, value in zip(column, values, strict=True)]
            found = _texts(missing, name, faults)
            column = [held if held is not None else text for held, text in zip(column, found, strict=True)]
    return [None] * rows if column is None else column


def _texts(values: Iterable[Any], name: str, faults: list[Fault]) -> list[str | None]:
    """Header values as text. Nearly all are strings or absent already; a row too long to keep is a fault."""
    column = list(values)
    if set(map(type, column)) <= _PLAIN:
        return column
    for row, value in enumerate(column):
        if value is not None and type(value) is not str:
            try:
                column[row] = header_text(value)
            except InvalidEvent as error:
                column[row] = None
                faults.append(Fault(row, error.reason, f"{name}: {error.detail}"))
    return column


_PLAIN = {str, type(None)}


def _find_faults(entries: Sequence[Any], accounts: list[str | None], times: list[Any]) -> list[Fault]:
    faults = []
    for row, entry in enumerate(entries):
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
