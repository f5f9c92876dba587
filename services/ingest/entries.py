"""Entries: telling the entries of a JSON body apart, also when some of them are broken.

Owns the fast path (one typed decode of everything) and the way back from its failure, entry by entry, so that a bad
entry never takes its neighbours along. It refuses to know what an entry means.

Callers of a gateway choose some of these bytes (paths, headers, bodies) and gateways pass on what is not UTF-8 and
what is nested a thousand deep. Where dropping a part nobody counts makes an entry readable, the entry is read:
otherwise a caller could make its own calls free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from services.ingest.decoded import BrokenBody, Rejected
from tollgate.metering.errors import DeadReason

T = TypeVar("T")

_WHITESPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_raw_array = msgspec.json.Decoder(list[msgspec.Raw])
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[\[\]{},]', re.DOTALL)
_SCALAR_END = re.compile(rb"[\s,\]}]|\Z")
_SURROGATES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_BYTE = re.compile(r"\(byte (\d+)\)")
_CLOSER = {b"[": b"]", b"{": b"}"}


@dataclass(frozen=True, slots=True)
class EntryReader(Generic[T]):
    """How one format's entries are read: all at once, one alone, and one without what nobody counts."""

    many: msgspec.json.Decoder[list[T]]
    one: msgspec.json.Decoder[T]
    prune: Callable[[bytes], bytes] = bytes


@dataclass(slots=True)
class Entries(Generic[T]):
    """The readable entries of a body, and the others."""

    body: bytes
    read: list[T]
    rejected: list[Rejected]
    _payloads: list[bytes] | None = None

    def payload(self, row: int) -> bytes:
        """The bytes of `read[row]`. Entries are told apart again the first time: it is asked for the broken ones alone."""
        if self._payloads is None:
            self._payloads = split_entries(self.body)
        return self._payloads[row]


def read_entries(body: bytes, reader: EntryReader[T]) -> Entries[T]:
    """The entries of an array, or the one entry a body consists of. Raises BrokenBody."""
    array = _starts_array(body)
    try:
        if array:
            return Entries(body, reader.many.decode(body), [])
        return Entries(body, [reader.one.decode(body)], [])
    except _UNREADABLE:
        return _recover(body, array, reader)


def split_entries(body: bytes) -> list[bytes]:
    """The bytes of each entry, in order; of the whole body when it is not an array. Raises BrokenBody."""
    if not _starts_array(body):
        return [body]
    try:
        return [bytes(raw) for raw in _raw_array.decode(body)]
    except _UNREADABLE:
        return _scan_array(body)


def value_end(data: bytes, start: int) -> int:
    """Where the JSON value that begins at `start` ends; the end of `data` when it never does. No recursion."""
    first = data[start : start + 1]
    if first not in (b"[", b"{", b'"'):
        end = _SCALAR_END.search(data, start)
        return end.start() if end else len(data)
    depth = 0
    for token in _TOKEN.finditer(data, start):
        mark = data[token.start() : token.start() + 1]
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
        if depth <= 0:
            return token.end()
    return len(data)


def _starts_array(body: bytes) -> bool:
    first = body[:1]
    if first == b"{":
        return False
    return first == b"[" or body[:1024].removeprefix(_BOM).lstrip(_WHITESPACE)[:1] == b"["


def _recover(body: bytes, array: bool, reader: EntryReader[T]) -> Entries[T]:
    """1. Mend the text. 2. Tell entries apart. 3. Read each alone."""
    body = mend_text(body)
    payloads: list[bytes] = []
    entries: Entries[T] = Entries(body, [], [], payloads)
    for payload in split_entries(body):
        try:
            entry = _read_one(payload, reader)
        except _UNREADABLE as error:
            reason, detail = _explain(payload, error)
            if not array and reason is DeadReason.BAD_JSON:
                raise BrokenBody(_position(error, len(payload)), _message(error)) from None
            entries.rejected.append(Rejected(reason, detail, payload))
        else:
            entries.read.append(entry)
            payloads.append(payload)
    return entries


def mend_text(body: bytes) -> bytes:
    """Replace what is not UTF-8, and escaped halves of characters, by U+FFFD; leave the rest as it is."""
    body = body.removeprefix(_BOM)
    try:
        body.decode()
    except UnicodeDecodeError:
        body = body.decode("utf-8", "replace").encode()
    if b"\\ud" in body or b"\\uD" in body:
        body = _SURROGATES.sub(lambda found: rb"\ufffd" if found[1] else found[0], body)
    return body


def _read_one(payload: bytes, reader: EntryReader[T]) -> T:
    try:
        return reader.one.decode(payload)
    except _UNREADABLE as error:
        pruned = reader.prune(payload)
        if pruned == payload:
            raise
        try:
            return reader.one.decode(pruned)
        except _UNREADABLE:
            raise error from None


def _scan_array(body: bytes) -> list[bytes]:
    """The entries of an array by its brackets and strings alone. Raises BrokenBody where these do not match."""
    entries: list[bytes] = []
    open_brackets: list[bytes] = []
    start = 0
    for token in _TOKEN.finditer(body):
        mark = body[token.start() : token.start() + 1]
        if mark == b'"':
            if not token[1]:
                raise BrokenBody(token.start(), "a string that does not end")
        elif mark in _CLOSER:
            open_brackets.append(_CLOSER[mark])
            if len(open_brackets) == 1:
                start = token.end()
        elif mark == b",":
            if len(open_brackets) == 1:
                entries.append(_entry(body, start, token.start()))
                start = token.end()
        else:
            if not open_brackets or open_brackets.pop() != mark:
                raise BrokenBody(token.start(), f"a stray {mark.decode()}")
            if not open_brackets:
                if entries or body[start : token.start()].strip(_WHITESPACE):
                    entries.append(_entry(body, start, token.start()))
                if body[token.end() :].strip(_WHITESPACE):
                    raise BrokenBody(token.end(), "something after the array")
                return entries
    raise BrokenBody(len(body), "an array that does not end")


def _entry(body: bytes, start: int, end: int) -> bytes:
    entry = body[start:end].strip(_WHITESPACE)
    if not entry:
        raise BrokenBody(end, "an empty entry")
    return entry


def _explain(payload: bytes, error: Exception) -> tuple[DeadReason, str]:
    """The named reason why an entry cannot be read."""
    message = _message(error)
    if isinstance(error, RecursionError):
        return DeadReason.TOO_DEEP, "nested too deep"
    if isinstance(error, msgspec.ValidationError):
        if " of length <= " in message:
            return DeadReason.TOO_LARGE, message
        if "out of range" in message or "` >= " in message or "` <= " in message:
            return DeadReason.OUT_OF_RANGE, message
        if message.startswith("Expected `object`") and " - at " not in message:
            return DeadReason.NOT_AN_OBJECT, message
        return DeadReason.BAD_TYPE, message
    if _holds_number_that_is_none(payload):
        return DeadReason.OUT_OF_RANGE, "NaN or Infinity"
    return DeadReason.BAD_JSON, message


def _holds_number_that_is_none(payload: bytes) -> bool:
    """Whether NaN or Infinity, which several encoders write, is all that keeps this from being JSON."""
    seen: list[str] = []
    try:
        json.loads(payload, parse_constant=seen.append)
    except (ValueError, RecursionError):
        return False
    return bool(seen)


def _message(error: Exception) -> str:
    return str(error).removeprefix("JSON is malformed: ")[:200]


def _position(error: Exception, length: int) -> int:
    found = _BYTE.search(str(error))
    return int(found[1]) if found else length
