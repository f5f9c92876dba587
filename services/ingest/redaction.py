"""Redaction: taking out of a rejected entry what must never reach the log.

Owns which parts of an entry's bytes are kept in a dead letter. Works on bytes, so that an entry which is not even
JSON is cleaned too, and so that everything it keeps stays exactly as sent. It refuses to know why an entry was
rejected.

Kept of headers and queries: what a replay reads (captured properties, the request id, API keys as keyed hashes).
Kept of bodies: the captured paths. Credentials are taken out wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from services.ingest.capture import Capture, Place, header_text
from services.ingest.entries import mend_text, value_end
from services.ingest.identity import HASHED_MARK, KeyHasher

REDACTED = "redacted"
ID_HEADERS = ("x-kong-request-id", "x-moesif-transaction-id")
_HARMLESS_HEADERS = ("user-agent", "host", "content-length", *ID_HEADERS)
_SECRET_NAMES = (
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "apikey",
    "api_key",
    "api-key",
    "access_token",
    "password",
    "secret",
)
_HEADERS = frozenset({"headers"})
_QUERIES = frozenset({"querystring"})
_URIS = frozenset({"uri", "url", "upstream_uri"})
_BODIES = frozenset({"body", "data_base64"})
_KEYS = frozenset({"session_token"})
_any = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Kept:
    headers: frozenset[str]
    queries: frozenset[str]
    key_headers: frozenset[str]
    key_queries: frozenset[str]
    body_paths: tuple[tuple[str, ...], ...]


class Redactor:
    """Cleans the bytes of rejected entries. One for all formats of an installation."""

    def __init__(
        self,
        keys: KeyHasher,
        capture: Capture,
        api_key_headers: Iterable[str] = (),
        api_key_queries: Iterable[str] = (),
    ) -> None:
        self._keys = keys
        captured_headers = (*capture.paths(Place.HEADER), *capture.paths(Place.RESPONSE_HEADER))
        key_headers = frozenset(api_key_headers)
        key_queries = frozenset(api_key_queries)
        self._kept = _Kept(
            headers=frozenset((*_HARMLESS_HEADERS, *(path[0] for path in captured_headers))) | key_headers,
            queries=frozenset(path[0] for path in capture.paths(Place.QUERY)) | key_queries,
            key_headers=key_headers,
            key_queries=key_queries,
            body_paths=(*capture.paths(Place.BODY), *capture.paths(Place.REQUEST_BODY)),
        )
        self._secrets = frozenset((*_SECRET_NAMES, *key_headers, *key_queries))
        gateway_names = self._secrets | _HEADERS | _QUERIES | _URIS | _BODIES | _KEYS
        self._gateway_pattern = _names_pattern(gateway_names)
        self._event_pattern = _names_pattern(self._secrets)

    def redact(self, payload: bytes, gateway_entry: bool = True) -> bytes:
        """`payload` without secrets. `gateway_entry` is False for a sender's own event, whose data is not a call's."""
        pattern = self._gateway_pattern if gateway_entry else self._event_pattern
        payload = mend_text(payload)
        parts: list[bytes] = []
        position = 0
        for found in pattern.finditer(payload):
            if found.start() < position:
                continue  # inside a value already replaced
            end = value_end(payload, found.end())
            parts += [
                payload[position : found.end()],
                self._replace(found[1].decode().lower(), payload[found.end() : end]),
            ]
            position = end
        return b"".join((*parts, payload[position:]))

    def _replace(self, name: str, value: bytes) -> bytes:
        """What stands in the place of `value`: always JSON, whatever `value` is."""
        try:
            content = _any.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b"{}" if name in _HEADERS | _QUERIES else b"null"
        if name in _HEADERS:
            return _encode(self._keep(content, self._kept.headers, self._kept.key_headers, str.lower))
        if name in _QUERIES:
            return _encode(self._keep(content, self._kept.queries, self._kept.key_queries, str))
        if name in _URIS:
            return _encode(self._clean_uri(content) if isinstance(content, str) else None)
        if name in _BODIES:
            return _encode(self._reduce_body(content))
        if name in _KEYS:
            return _encode(self._hash(content))
        return _encode(None if content is None else REDACTED)

    def _keep(
        self, content: Any, kept: frozenset[str], keys: frozenset[str], fold: Callable[[str], str]
    ) -> dict[str, Any]:
        if not isinstance(content, dict):
            return {}
        return {
            name: self._hash(value) if fold(name) in keys else value
            for name, value in content.items()
            if fold(name) in kept and (fold(name) in keys or fold(name) not in self._secrets)
        }

    def _hash(self, value: Any) -> str | None:
        text = header_text(value[0] if isinstance(value, list) and value else value)
        if not text or text.startswith(HASHED_MARK):
            return text
        return HASHED_MARK + self._keys.hash_key(text)

    def _clean_uri(self, uri: str) -> str:
        path, question, query = uri.partition("?")
        scheme, separator, rest = path.partition("://")
        if separator:
            authority, slash, tail = rest.partition("/")
            path = scheme + separator + authority.rpartition("@")[2] + slash + tail
        if not question:
            return path
        kept = [
            (name, (self._hash(value) or "") if name in self._kept.key_queries else value)
            for name, value in parse_qsl(query, keep_blank_values=True)
            if name in self._kept.queries
        ]
        return f"{path}?{urlencode(kept)}" if kept else path

    def _reduce_body(self, body: Any) -> dict[str, Any] | None:
        """The captured paths of a body that is an object, and nothing else of it."""
        if not isinstance(body, dict) or not self._kept.body_paths:
            return None
        reduced: dict[str, Any] = {}
        for path in self._kept.body_paths:
            value: Any = body
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, (str, int, float, bool)):
                into = reduced
                for key in path[:-1]:
                    into = into.setdefault(key, {})
                into[path[-1]] = value
        return reduced


def drop_bodies(payload: bytes) -> bytes:
    """`payload` with every body replaced by null: what to read when a body alone makes an entry unreadable."""
    parts: list[bytes] = []
    position = 0
    for found in _BODY.finditer(payload):
        if found.start() < position:
            continue
        parts += [payload[position : found.end()], b"null"]
        position = value_end(payload, found.end())
    return b"".join((*parts, payload[position:]))


def _names_pattern(names: Iterable[str]) -> re.Pattern[bytes]:
    alternatives = b"|".join(re.escape(name.encode()) for name in sorted(names))
    return re.compile(rb'"(' + alternatives + rb')"\s*:\s*', re.IGNORECASE)


_BODY = _names_pattern(_BODIES)
