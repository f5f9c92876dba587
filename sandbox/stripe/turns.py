"""One unit of work: the open transaction, the instant it happens at, and what caused it.

Owns: the two values every noun is handed. Refuses to know: HTTP and nouns.
"""

from dataclasses import dataclass

from sandbox.stripe.errors import JsonObject
from sandbox.stripe.params import Params
from sandbox.stripe.state import State


@dataclass(frozen=True, slots=True)
class Turn:
    """State inside a transaction, at one virtual instant.

    ``request_id`` and ``idempotency_key`` name the request that caused the work; both are None when time did.
    """

    state: State
    now_ms: int
    request_id: str | None = None
    idempotency_key: str | None = None

    @property
    def now(self) -> int:
        """Virtual epoch seconds."""
        return self.now_ms // 1000


@dataclass(frozen=True, slots=True)
class Call:
    """One API call after decoding: the ids in its path, its parameters, and the API version it asked for."""

    path: str
    ids: tuple[str, ...]
    params: Params
    version: str


def page(call: Call, data: list[JsonObject], has_more: bool) -> JsonObject:
    """Stripe's v1 list object."""
    return {"object": "list", "data": data, "has_more": has_more, "url": call.path}
