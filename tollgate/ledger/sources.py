"""Sources: who may send events, each with its tokens.

Owns making, listing and revoking tokens. It refuses to know HTTP and the tokens themselves: only a hash is kept, so
what leaks from the ledger opens nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select, update

from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.tables import sources

SCOPES = frozenset({"write", "replay"})
"""write: send events. replay: send them with the mark that counts late ones."""

TOKEN_ID_BYTES = 8
SECRET_BYTES = 24
"""192 random bits: nobody guesses it, so a plain SHA-256 is enough and a check costs microseconds."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class SourceToken:
    """One token of a source, without the token."""

    name: str
    token_id: str
    """The public part, by which a token is looked up."""
    token_sha256: str
    """Hex SHA-256 of the whole token."""
    scopes: frozenset[str]
    created_ms: int
    revoked_ms: int | None


def create_source(engine: Engine, name: str, scopes: Iterable[str], now_ms: int) -> str:
    """A new token for the source `name`, shown here once: `tg_<token_id>_<secret>`, 68 characters.

    A source may have several tokens, so that one is replaced without a gap. Raises ValueError for a name that is not
    1-64 letters, digits, `.`, `_`, `-`, and for an unknown scope or none.
    """
    wanted = frozenset(scopes)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a source name: 1 to 64 letters, digits, '.', '_' or '-'")
    if not wanted or not wanted <= SCOPES:
        raise ValueError(f"scopes are {', '.join(sorted(SCOPES))}; not {', '.join(sorted(wanted)) or 'none'}")
    token_id = secrets.token_hex(TOKEN_ID_BYTES)
    token = f"tg_{token_id}_{secrets.token_hex(SECRET_BYTES)}"
    with ledger_transaction(engine) as connection:
        connection.execute(
            insert(sources).values(
                name=name,
                token_id=token_id,
                token_sha256=hash_token(token),
                scopes=" ".join(sorted(wanted)),
                created_ms=now_ms,
                revoked_ms=None,
            )
        )
    return token


def hash_token(token: str) -> str:
    """What the ledger keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def revoke_source(engine: Engine, name: str, now_ms: int, token_id: str | None = None) -> int:
    """Revoke the tokens of a source, or one of them; how many were live until now."""
    statement = (
        update(sources)
        .where(sources.c.name == name, sources.c.revoked_ms.is_(None))
        .values(revoked_ms=now_ms)
    )
    if token_id is not None:
        statement = statement.where(sources.c.token_id == token_id)
    with ledger_transaction(engine) as connection:
        return connection.execute(statement).rowcount


def list_sources(engine: Engine) -> list[SourceToken]:
    """Every token there ever was, by name, oldest first."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(
            select(sources).order_by(sources.c.name, sources.c.created_ms, sources.c.token_id)
        )
        return [
            SourceToken(
                name=row.name,
                token_id=row.token_id,
                token_sha256=row.token_sha256,
                scopes=frozenset(row.scopes.split()),
                created_ms=row.created_ms,
                revoked_ms=row.revoked_ms,
            )
            for row in rows
        ]


def load_sources(engine: Engine) -> list[SourceToken]:
    """The tokens in force."""
    return [token for token in list_sources(engine) if token.revoked_ms is None]
