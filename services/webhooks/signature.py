"""Stripe's webhook signature: whether these bytes were sent by who knows the secret, and lately.

Owns the header `Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=<hex>]` and its check over the raw body. It refuses
to know what the body means; nothing is parsed before it has passed here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

DEFAULT_TOLERANCE_SECONDS = 300
"""Stripe's own choice: wide enough for skewed clocks, and an old body cannot be replayed after it."""

K = TypeVar("K")

_SCHEME = "v1"
_TIMESTAMP_DIGITS_MAX = 12
"""Up to the year 33658; more digits are an attack on int()."""


class Refusal(StrEnum):
    """Why a signature was not accepted. A label, so a closed list."""

    MISSING = "missing_signature"
    MALFORMED = "malformed_signature"
    TOO_OLD = "too_old"
    IN_THE_FUTURE = "in_the_future"
    NO_MATCH = "no_match"


class BadSignature(Exception):
    """The body is not to be believed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class SignatureHeader:
    """The header taken apart: when it was signed, and every v1 signature in it."""

    timestamp_seconds: int
    signatures: tuple[bytes, ...]


def parse_header(header: str | None) -> SignatureHeader:
    """Take the header apart. Other schemes than v1 are ignored. Raises BadSignature(MISSING or MALFORMED)."""
    if not header:
        raise BadSignature(Refusal.MISSING)
    timestamp: int | None = None
    signatures: list[bytes] = []
    for part in header.split(","):
        name, separator, value = part.strip().partition("=")
        if not separator:
            raise BadSignature(Refusal.MALFORMED)
        if name == "t":
            if not (value.isascii() and value.isdigit() and len(value) <= _TIMESTAMP_DIGITS_MAX):
                raise BadSignature(Refusal.MALFORMED)
            timestamp = int(value)
        elif name == _SCHEME:
            signatures.append(value.encode())
    if timestamp is None or not signatures:
        raise BadSignature(Refusal.MALFORMED)
    return SignatureHeader(timestamp, tuple(signatures))


def sign(body: bytes, secret: str, timestamp_seconds: int) -> str:
    """The v1 signature of `body`, in hex."""
    signed = b"%d." % timestamp_seconds + body
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def verify(
    body: bytes,
    header: str | None,
    secrets: Mapping[K, Sequence[str]],
    now_ms: int,
    tolerance_seconds: int = DEFAULT_TOLERANCE_SECONDS,
) -> frozenset[K]:
    """Which of the named `secrets` signed `body`: the names with at least one secret that matches.

    Several secrets under one name are those of a rotation. A signature further than `tolerance_seconds` away from
    `now_ms` is refused in both directions: one from the future would be replayable until then. Every secret is
    compared with every signature in constant time. Raises BadSignature.
    """
    parsed = parse_header(header)
    age_ms = now_ms - parsed.timestamp_seconds * 1000
    if age_ms > tolerance_seconds * 1000:
        raise BadSignature(Refusal.TOO_OLD)
    if -age_ms > tolerance_seconds * 1000:
        raise BadSignature(Refusal.IN_THE_FUTURE)
    matched = set()
    for name, rotation in secrets.items():
        for secret in rotation:
            expected = sign(body, secret, parsed.timestamp_seconds).encode()
            # Counted, not stopped at the first: every comparison is made, whichever matches.
            if sum(hmac.compare_digest(expected, given) for given in parsed.signatures):
                matched.add(name)
    if not matched:
        raise BadSignature(Refusal.NO_MATCH)
    return frozenset(matched)
