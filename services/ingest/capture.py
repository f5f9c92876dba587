"""Capture: which properties of a call are kept, and where each gateway's entry has them.

Owns the locations an operator may name and their reading. Nothing is captured unless named. It refuses to know what
a property is counted for; its text is kept exactly as sent, numbers included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
import xxhash

from services.ingest.decoded import TEXT_CHARACTERS_MAX
from tollgate.metering.errors import DeadReason, InvalidEvent

PROPERTIES_MAX = 32
"""Each may be as long as a text may be: more of them and one event might not fit a record."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)


class Place(StrEnum):
    """Where in an entry a property is looked for."""

    HEADER = "header"
    RESPONSE_HEADER = "response_header"
    QUERY = "query"
    BODY = "body"
    """The response's body (Moesif's format alone carries bodies)."""
    REQUEST_BODY = "request_body"
    METADATA = "metadata"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Location:
    """A place and the way inside it: one name for headers and queries, keys from the outside in for JSON."""

    place: Place
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Property:
    """A captured property: the first of its locations that has a value gives it."""

    name: str
    locations: tuple[Location, ...]


@dataclass(frozen=True, slots=True)
class Capture:
    """All captured properties, by name."""

    properties: tuple[Property, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(captured.name for captured in self.properties)

    @property
    def digest(self) -> str:
        """Equal for equal settings: travels with every record."""
        document = [
            [captured.name, [[at.place, *at.path] for at in captured.locations]]
            for captured in self.properties
        ]
        return xxhash.xxh3_64_hexdigest(json.dumps(document).encode())

    def paths(self, place: Place) -> tuple[tuple[str, ...], ...]:
        """Every way inside `place` that some property needs."""
        return tuple(
            dict.fromkeys(
                at.path for captured in self.properties for at in captured.locations if at.place is place
            )
        )


def parse_capture(wanted: Sequence[str]) -> Capture:
    """Settings -> what to capture: locations, each followed by `=name` unless its own last word is to be the name.

    `header:x-model` and `data:usage.model` are both called `model`; locations of one name are tried in order. Raises
    ValueError naming everything that cannot be.
    """
    problems: list[str] = []
    found: dict[str, list[Location]] = {}
    for text in wanted:
        place, _, name = text.strip().partition("=")
        try:
            at = parse_location(place)
        except ValueError as error:
            problems.append(str(error))
            continue
        name = name.strip() or at.path[-1].lower().removeprefix("x-").replace("-", "_")
        if not _NAME.fullmatch(name):
            problems.append(
                f"{name!r}: a property's name is letters, digits and _, not starting with a digit"
            )
        found.setdefault(name, []).append(at)
    if len(found) > PROPERTIES_MAX:
        problems.append(f"{len(found)} properties, at most {PROPERTIES_MAX} can be captured")
    if problems:
        raise ValueError("; ".join(problems))
    return Capture(tuple(Property(name, tuple(found[name])) for name in sorted(found)))


def parse_location(text: str) -> Location:
    """`header:x-model`, `query:tenant`, `body:$.usage.total_tokens`, `metadata:plan`, `data:tokens`. ValueError."""
    kind, separator, path = text.partition(":")
    places = [place.value for place in Place]
    if not separator or kind not in places:
        raise ValueError(f"{text!r} does not begin with one of {', '.join(place + ':' for place in places)}")
    place = Place(kind)
    if place in (Place.HEADER, Place.RESPONSE_HEADER):
        keys: tuple[str, ...] = (path.strip().lower(),)
    elif place is Place.QUERY:
        keys = (path.strip(),)
    else:
        keys = tuple(path.strip().removeprefix("$.").split("."))
    if not all(keys):
        raise ValueError(f"{text!r} names nothing after {kind}:")
    return Location(place, keys)


def read_path(document: bytes, path: Iterable[str]) -> str | None:
    """The scalar at `path` inside a JSON object, as text; None when it is absent, null or no scalar.

    Raises InvalidEvent for a text too long to keep.
    """
    value: bytes = document
    for key in path:
        try:
            inside = _object.decode(value).get(key)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if inside is None:
            return None
        value = bytes(inside)
    return scalar_text(value)


def scalar_text(value: bytes) -> str | None:
    """A JSON scalar as text: a string's content, a number or a boolean as written; None for anything else."""
    first = value[:1]
    if first == b'"':
        try:
            return bounded(_text.decode(value))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
    if first in (b"{", b"[", b"n", b""):
        return None
    return bounded(value.decode("ascii", "replace"))


def header_text(value: Any) -> str | None:
    """A header or query value as text: repeated ones joined as HTTP joins them, one without a value empty."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return bounded(", ".join(part for part in map(header_text, value) if part is not None))
    if value is True:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    return None


def bounded(text: str) -> str:
    """`text`, or InvalidEvent(TOO_LARGE)."""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise InvalidEvent(DeadReason.TOO_LARGE, f"a captured text of {len(text)} characters")
    return text
