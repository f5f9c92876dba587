"""Calls: what happened at an imagined gateway, drawn from a seed.

Owns the mix of routes, statuses, identities and of the troubles real senders make (duplicates, late and future events,
malformed entries). It refuses to know any wire format and any meter.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

DUPLICATE_REACH = 2_000
"""A duplicate repeats one of this many calls before it: senders resend what they sent a moment ago."""


class Kind(StrEnum):
    """What is the matter with a call."""

    NORMAL = "normal"
    DUPLICATE = "duplicate"
    """The same call once more, byte for byte, as after a lost answer."""
    LATE = "late"
    """Five days old: past the age at which events are accepted."""
    FUTURE = "future"
    """An hour ahead: a sender whose clock is wrong."""
    MALFORMED = "malformed"
    """An entry no decoder can take."""


@dataclass(frozen=True, slots=True)
class Identity:
    """How a gateway names who called, and the Stripe customer that is."""

    customer: str
    user: str | None = None
    company: str | None = None

    @property
    def account(self) -> str:
        """The account an event of this identity belongs to."""
        return f"company:{self.company}" if self.company else f"user:{self.user}"


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the gateway saw it."""

    kind: Kind
    id: str
    time_ms: int
    identity: Identity
    route: str
    method: str
    path: str
    status: int
    latency_ms: int
    request_bytes: int
    response_bytes: int
    client_ip: str
    user_agent: str
    answered_by_gateway: bool
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """Which share of the calls is in trouble, each between 0 and 1."""

    duplicate: float = 0.01
    late: float = 0.001
    future: float = 0.0005
    malformed: float = 0.001


@dataclass(frozen=True, slots=True)
class _Route:
    name: str
    method: str
    path: str
    weight: int


_ROUTES = (
    _Route("chat", "POST", "/v1/chat", 30),
    _Route("search", "GET", "/v1/search?q=tollgate&page=2", 40),
    _Route("documents", "PUT", "/v1/documents/4711", 20),
    _Route("health", "GET", "/health", 10),
)
_STATUSES = (200, 200, 200, 200, 200, 200, 201, 304, 404, 429, 500, 502)
_MODELS = ("small", "large", "vision")
_AGENTS = ("curl/8.5.0", "python-requests/2.32.3", "okhttp/4.12.0", "Mozilla/5.0 (X11; Linux x86_64)")


def generate_calls(
    count: int,
    *,
    seed: int,
    identities: Sequence[Identity],
    now_ms: int,
    spread_ms: int = 3 * HOUR_MS,
    mix: Mix | None = None,
) -> Iterator[Call]:
    """`count` calls of these identities in the `spread_ms` before `now_ms`; the same arguments give the same calls."""
    rng = random.Random(seed)
    mix = mix or Mix()
    recent: deque[Call] = deque(maxlen=DUPLICATE_REACH)
    for _ in range(count):
        kind = _draw_kind(rng, mix)
        if kind is Kind.DUPLICATE and recent:
            yield replace(rng.choice(recent), kind=Kind.DUPLICATE)
            continue
        call = _draw_call(
            rng, kind if kind is not Kind.DUPLICATE else Kind.NORMAL, identities, now_ms, spread_ms
        )
        if call.kind is Kind.NORMAL:
            recent.append(call)
        yield call


def _draw_kind(rng: random.Random, mix: Mix) -> Kind:
    draw = rng.random()
    for kind, share in (
        (Kind.DUPLICATE, mix.duplicate),
        (Kind.LATE, mix.late),
        (Kind.FUTURE, mix.future),
        (Kind.MALFORMED, mix.malformed),
    ):
        if draw < share:
            return kind
        draw -= share
    return Kind.NORMAL


def _draw_call(
    rng: random.Random, kind: Kind, identities: Sequence[Identity], now_ms: int, spread_ms: int
) -> Call:
    route = rng.choices(_ROUTES, weights=[r.weight for r in _ROUTES])[0]
    time_ms = now_ms - int(rng.random() * spread_ms) - 1
    if kind is Kind.LATE:
        time_ms -= 5 * DAY_MS
    elif kind is Kind.FUTURE:
        time_ms = now_ms + HOUR_MS
    status = rng.choice(_STATUSES)
    chat = route.name == "chat" and status < 400
    return Call(
        kind=kind,
        id=f"{rng.getrandbits(128):032x}",
        time_ms=time_ms,
        identity=rng.choice(identities),
        route=route.name,
        method=route.method,
        path=route.path,
        status=status,
        latency_ms=1 + int(rng.expovariate(1 / 40)),
        request_bytes=rng.randrange(200, 4_000),
        response_bytes=rng.randrange(100, 50_000),
        client_ip=f"203.0.113.{rng.randrange(1, 255)}",
        user_agent=rng.choice(_AGENTS),
        answered_by_gateway=status == 429,
        tokens_in=rng.randrange(1, 4_000) if chat else None,
        tokens_out=rng.randrange(1, 1_000) if chat else None,
        model=rng.choice(_MODELS) if chat else None,
    )
