"""Idempotency keys: the first answer, replayed.

Owns: what is kept under a key, for how long, and what the same key with another request means.
Refuses to know: what the requests do. Keys in flight live in the process (http): they die with it, as do the calls.
"""

import hashlib
import json
from dataclasses import dataclass

from sandbox.stripe.errors import key_reused
from sandbox.stripe.state import State

KEPT_MS = (
    24 * 3600 * 1000
)  # Stripe keeps keys "at least 24 hours"; the shortest promise is the one to test against
KEY_LENGTH_MAX = 255


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer: status, headers beyond the usual ones, and the encoded body."""

    status: int
    headers: dict[str, str]
    body: str


def fingerprint(method: str, path: str, values: dict[str, object]) -> str:
    """What must be equal for two requests to be the same: endpoint and parameters, whatever their order."""
    text = json.dumps([method, path, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def kept(state: State, key: str, request: str, now_ms: int) -> Answer | None:
    """The answer kept under a key, or None. Raises ``Refusal`` (400) if the key belongs to another request."""
    row = state.connection.execute(
        "SELECT request, status, headers, body FROM idempotency WHERE key = ? AND created_ms > ?",
        (key, now_ms - KEPT_MS),
    ).fetchone()
    if row is None:
        return None
    if row["request"] != request:
        raise key_reused(key)
    return Answer(row["status"], json.loads(row["headers"]), row["body"])


def keep(state: State, key: str, request: str, now_ms: int, answer: Answer) -> None:
    """Keep an answer under a key. Call inside the transaction that has the request's effects."""
    state.connection.execute(
        "INSERT OR REPLACE INTO idempotency (key, request, status, headers, body, created_ms) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (key, request, answer.status, json.dumps(answer.headers), answer.body, now_ms),
    )
