"""Tokens: which source a request comes from.

Owns the look-up of a token, its constant-time comparison, and the snapshot on disk that lets this service go on while
the ledger is down. It refuses to know how tokens are made, and never holds one in clear.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from tollgate.runtime.clock import Clock

_TOKEN_PREFIX = "tg"  # noqa: S105
_UNKNOWN_SHA256 = hashlib.sha256(b"").hexdigest()
_HEADERS = (b"authorization", b"x-moesif-application-id", b"x-tollgate-token")
_CALLERS_REMEMBERED = 4096
_log = structlog.get_logger(__name__)


class Source(msgspec.Struct, frozen=True):
    """A token's public part, the hash of the whole, and what it may do."""

    name: str
    token_id: str
    token_sha256: str
    """Hex."""
    scopes: frozenset[str]


class _Snapshot(msgspec.Struct, frozen=True):
    read_ms: int
    sources: list[Source]


@dataclass(frozen=True, slots=True)
class Caller:
    """A source that has shown its token."""

    source: str
    scopes: frozenset[str]


class TokenBook:
    """The tokens in force: read from the ledger now and then, from the snapshot when the ledger is not there."""

    def __init__(self, snapshot: Path, clock: Clock) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._by_id: Mapping[str, Source] | None = None
        self._read_ms = 0
        # Keyed, so that nobody can aim at a slot of the cache.
        self._keyed = hashlib.blake2b(key=os.urandom(32), digest_size=16)
        self._callers: dict[bytes, Caller] = {}
        """Who showed what, since the tokens last changed: looking a token up takes as long as reading an event."""

    @property
    def known(self) -> bool:
        """Whether tokens have been read at all; before that nobody can be told right from wrong."""
        return self._by_id is not None

    @property
    def age_seconds(self) -> float:
        """Since the tokens were read from the ledger."""
        return max(0, self._clock.now_ms() - self._read_ms) / 1000

    def load_snapshot(self) -> bool:
        """Take the tokens of the last run, if there are any. False when there is no readable snapshot."""
        try:
            snapshot = msgspec.json.decode(self._snapshot.read_bytes(), type=_Snapshot)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            _log.warning("tokens.snapshot_unreadable", error=str(error))
            return False
        self._by_id = {source.token_id: source for source in snapshot.sources}
        self._callers.clear()
        self._read_ms = snapshot.read_ms
        return True

    def replace(self, sources: Sequence[Source]) -> None:
        """Put these tokens in force; those missing are refused from now on. Writes the snapshot when they changed."""
        by_id = {source.token_id: source for source in sources}
        changed = by_id != self._by_id
        self._by_id = by_id
        if changed:
            self._callers.clear()
        self._read_ms = self._clock.now_ms()
        if changed:
            self._write(_Snapshot(self._read_ms, list(sources)))

    def identify(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """The source whose token is among those of a request; None when none is in force. Names in lower case."""
        keyed = self._keyed.copy()
        # No header holds a NUL, so nothing else joins to the same.
        keyed.update(b"\0".join([headers.get(name, b"") for name in _HEADERS]))
        # A digest, so that no token is held in clear.
        digest = keyed.digest()
        caller = self._callers.get(digest)
        if caller is None:
            caller = self._look_up(read_tokens(headers))
            if caller is not None and len(self._callers) < _CALLERS_REMEMBERED:
                self._callers[digest] = caller
        return caller

    def _look_up(self, tokens: Iterable[str]) -> Caller | None:
        by_id = self._by_id or {}
        for token in tokens:
            prefix, _, rest = token.partition("_")
            source = by_id.get(rest.partition("_")[0]) if prefix == _TOKEN_PREFIX else None
            expected = source.token_sha256 if source else _UNKNOWN_SHA256
            # Compared even when the id is unknown: the time an answer takes says nothing about ids.
            shown = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
            if hmac.compare_digest(shown, expected) and source is not None:
                return Caller(source.name, source.scopes)
        return None

    def _write(self, snapshot: _Snapshot) -> None:
        """Whole or not at all, readable by this user alone. A failure is logged: the tokens in memory still hold."""
        beside = self._snapshot.with_name(self._snapshot.name + ".new")
        try:
            self._snapshot.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(snapshot))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._snapshot)
        except OSError as error:
            _log.warning("tokens.snapshot_not_written", error=str(error))


def read_tokens(headers: Mapping[bytes, bytes]) -> list[str]:
    """The tokens a request shows, in the headers senders can be told to use. Names in lower case."""
    authorization, *others = map(headers.get, _HEADERS)
    found: list[str] = []
    if authorization and authorization[:7].lower() == b"bearer ":
        found.append(authorization[7:].strip().decode("latin-1"))
    return found + [other.decode("latin-1") for other in others if other]


TokenReader = Callable[[], Sequence[Source]]
"""Reads the tokens in force from the ledger; blocking, and raises when the ledger is not there."""
