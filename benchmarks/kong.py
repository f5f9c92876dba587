"""Kong http-log entries of the size Kong's own have, about 2 KB, as requests ready for a socket.

Owns the padding of the sandbox's entries to that size, and the rendering into HTTP. It refuses to know how they are
decoded.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.backlog import ACCOUNTS
from sandbox.traffic.calls import Call, Identity, Mix, generate_calls
from sandbox.traffic.formats import to_kong

PATH = "/v1/logs/kong"
ENTRY_BYTES = 2_035
_CLEAN = Mix(duplicate=0.0, late=0.0, future=0.0, malformed=0.0)
_encoder = msgspec.json.Encoder()


def make_calls(count: int, now_ms: int, seed: int = 20261122) -> list[Call]:
    """Well-formed calls of 1,000 accounts in the minute before `now_ms`."""
    identities = [
        Identity(customer=f"cus_{number:04d}", user=f"user-{number:04d}") for number in range(ACCOUNTS)
    ]
    return list(
        generate_calls(count, seed=seed, identities=identities, now_ms=now_ms, spread_ms=60_000, mix=_CLEAN)
    )


def render_entry(call: Call) -> bytes:
    """One entry, filled up to `ENTRY_BYTES` with what Kong logs and nobody counts."""
    entry: dict[str, Any] = to_kong(call)
    entry["request"]["headers"] |= {
        "x-forwarded-for": call.client_ip,
        "x-forwarded-proto": "https",
        "accept-encoding": "gzip, deflate, br",
        "accept-language": "en-GB,en;q=0.9",
        "connection": "keep-alive",
        "content-type": "application/json",
    }
    entry["response"]["headers"] |= {
        "date": "Sun, 22 Nov 2026 12:00:00 GMT",
        "via": "1.1 kong/3.9.0",
        "server": "uvicorn",
        "x-kong-upstream-latency": "38",
        "x-kong-proxy-latency": "2",
        "ratelimit-limit": "600",
        "ratelimit-remaining": "411",
    }
    entry["service"] |= {
        "connect_timeout": 60_000,
        "read_timeout": 60_000,
        "write_timeout": 60_000,
        "retries": 5,
        "created_at": 1_760_000_000,
        "updated_at": 1_760_000_000,
        "ws_id": "0dfd1a1c-7a3c-4f0e-9a55-000000000000",
    }
    entry["route"] |= {
        "protocols": ["http", "https"],
        "strip_path": True,
        "preserve_host": False,
        "regex_priority": 0,
        "https_redirect_status_code": 426,
        "service": {"id": "service-api"},
    }
    missing = ENTRY_BYTES - len(_encode(entry)) - len(',"cookie":""')
    if missing > 0:
        entry["request"]["headers"]["cookie"] = "s" * missing
    return _encode(entry)


def _encode(entry: dict[str, Any]) -> bytes:
    """JSON as Kong writes it: every slash escaped."""
    return _encoder.encode(entry).replace(b"/", b"\\/")


@dataclass(frozen=True, slots=True)
class Bodies:
    """Array bodies, and how often each account stands in each."""

    bodies: list[bytes]
    accounts: list[Counter[str]]

    def requests(self, token: str, count: int) -> Iterator[bytes]:
        """`count` requests, the bodies in turn."""
        rendered = [render_request(body, token) for body in self.bodies]
        return itertools.islice(itertools.cycle(rendered), count)

    def count_accounts(self, requests: int) -> Counter[str]:
        """What `requests` of them, in turn, amount to."""
        total: Counter[str] = Counter()
        for index, accounts in enumerate(self.accounts):
            times = requests // len(self.bodies) + (index < requests % len(self.bodies))
            for account, count in accounts.items():
                total[account] += count * times
        return total


def make_bodies(count: int, size: int, now_ms: int) -> Bodies:
    """`count` arrays of `size` entries."""
    calls = make_calls(count * size, now_ms)
    parts = [calls[at : at + size] for at in range(0, len(calls), size)]
    return Bodies(
        [b"[" + b",".join(render_entry(call) for call in part) + b"]" for part in parts],
        [Counter(call.identity.account for call in part) for part in parts],
    )


def render_request(body: bytes, token: str) -> bytes:
    """The HTTP/1.1 request that carries `body`."""
    return _head(len(body), token) + body


def _head(length: int, token: str) -> bytes:
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: tollgate\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


class Singles:
    """One entry a request, each with an id of its own: templates whose id is put in when a request is due."""

    def __init__(self, calls: Sequence[Call], token: str) -> None:
        self._calls = calls
        self._parts: list[tuple[bytes, ...]] = []
        for call in calls:
            entry = render_entry(call)
            parts = (_head(len(entry), token) + entry).split(call.id.encode())
            self._parts.append(tuple(parts))

    def requests(self, count: int, first: int = 0) -> Iterator[bytes]:
        """Requests number `first` to `first + count`."""
        parts = self._parts
        for number in range(first, first + count):
            # Never below 2^127, so always 32 digits, as the ids it replaces.
            yield (b"%032x" % (number + (1 << 127))).join(parts[number % len(parts)])

    def count_accounts(self, count: int) -> Counter[str]:
        """What the first `count` requests amount to."""
        return self._sum(count, [1] * len(self._calls))

    def count_bytes(self, count: int) -> Counter[str]:
        """Response bytes by account of the first `count` requests."""
        return self._sum(count, [call.response_bytes for call in self._calls])

    def _sum(self, count: int, amounts: Sequence[int]) -> Counter[str]:
        total: Counter[str] = Counter()
        for index, (call, amount) in enumerate(zip(self._calls, amounts, strict=True)):
            times = count // len(self._calls) + (index < count % len(self._calls))
            total[call.identity.account] += times * amount
        return total
