"""The shape of a Kong http-log entry: the fields that are decoded, and nothing else of it.

Owns the typed structs, some of which depend on the headers and query parameters an installation looks at. It refuses
to know what the fields mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from services.ingest.decoded import NAME_CHARACTERS_MAX, TEXT_CHARACTERS_MAX
from services.ingest.entries import EntryReader
from services.ingest.redaction import drop_bodies

Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
Size = Annotated[int, Meta(ge=0, le=2**53)]
Instant = Annotated[int, Meta(ge=0, le=2**47)] | Annotated[float, Meta(ge=0, le=2**47)]
"""Epoch milliseconds up to the year 6429. Kong writes an integer; what a Lua plugin set may be a float."""
Duration = Annotated[int, Meta(ge=-(2**53), le=2**53)] | Annotated[float, Meta(ge=-(2**53), le=2**53)]
Status = Annotated[int, Meta(ge=0, le=32_767)]
HeaderValue = Text | list[Any] | bool | int | float | None


class Latencies(msgspec.Struct, gc=False, frozen=True):
    request: Duration | None = None


class Consumer(msgspec.Struct, gc=False, frozen=True):
    custom_id: Name | None = None
    username: Name | None = None
    id: Name | None = None


class Route(msgspec.Struct, gc=False, frozen=True):
    name: Text | None = None
    id: Text | None = None


class Service(msgspec.Struct, gc=False, frozen=True):
    name: Text | None = None
    host: Text | None = None
    id: Text | None = None


NO_LATENCIES = Latencies()
NO_CONSUMER = Consumer()
NO_ROUTE = Route()
NO_SERVICE = Service()


class EntryShape:
    """The structs for one choice of headers and query parameters, and the attributes they are read by."""

    def __init__(
        self, request_headers: Iterable[str], response_headers: Iterable[str], queries: Iterable[str]
    ) -> None:
        self.header_fields = _fields(request_headers)
        """Header name -> attribute of `request.headers`."""
        self.response_header_fields = _fields(response_headers)
        self.query_fields = _fields(queries)
        headers = _named_values("_RequestHeaders", self.header_fields)
        response_values = _named_values("_ResponseHeaders", self.response_header_fields)
        query = _named_values("_Query", self.query_fields)
        response: type[Any] = msgspec.defstruct(
            "_Response",
            [
                ("status", Status | None, None),
                ("size", Size | None, None),
                ("headers", response_values | None, None),
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
                *([("querystring", query | None, None)] if self.query_fields else []),
            ],
            gc=False,
            frozen=True,
        )
        entry: type[Any] = msgspec.defstruct(
            "_Entry",
            [
                ("request", request | None, None),
                ("response", response | None, None),
                ("latencies", Latencies | None, None),
                ("consumer", Consumer | None, None),
                ("route", Route | None, None),
                ("service", Service | None, None),
                ("client_ip", Text | None, None),
                ("started_at", Instant | None, None),
                ("source", Text | None, None),
            ],
            gc=False,
            frozen=True,
        )
        self.no_headers: Any = headers()
        self.no_response_headers: Any = response_values()
        self.no_query: Any = query()
        self.no_request: Any = request()
        self.no_response: Any = response()
        self.reader: EntryReader[Any] = EntryReader(
            many=msgspec.json.Decoder(list[entry]),  # type: ignore[valid-type]
            one=msgspec.json.Decoder(entry),
            prune=drop_bodies,
        )


def _fields(names: Iterable[str]) -> dict[str, str]:
    """A Python attribute for each name that may be none."""
    return {name: f"value_{index}" for index, name in enumerate(dict.fromkeys(names))}


def _named_values(struct: str, fields: Mapping[str, str]) -> type[Any]:
    """A struct that decodes only the named members of an object."""
    return msgspec.defstruct(
        struct,
        [(attribute, HeaderValue, None) for attribute in fields.values()],
        rename={attribute: name for name, attribute in fields.items()},
        gc=False,
        frozen=True,
    )
