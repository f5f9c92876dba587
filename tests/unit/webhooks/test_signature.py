"""The signature: believed for the secret and the time, and for nothing else."""

from __future__ import annotations

import hashlib
import hmac

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from services.webhooks.signature import BadSignature, Refusal, parse_header, sign, verify

NOW_S = 1_800_000_000
NOW_MS = NOW_S * 1000
BODY = b'{"id":"evt_1"}'
SECRET = "whsec_current"


def header(body: bytes = BODY, *secrets: str, at_s: int = NOW_S) -> str:
    """A header made with the standard library alone."""
    marks = [
        hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
        for secret in secrets or (SECRET,)
    ]
    return ",".join([f"t={at_s}", *(f"v1={mark}" for mark in marks)])


def refusal(given_header: str | None, body: bytes = BODY, now_ms: int = NOW_MS) -> Refusal:
    with pytest.raises(BadSignature) as raised:
        verify(body, given_header, {"classic": [SECRET]}, now_ms, 300)
    return raised.value.refusal


def test_a_good_signature_names_whose_secret_it_was() -> None:
    """Of two kinds of secrets, the one that signed."""
    secrets = {"classic": [SECRET], "thin": ["whsec_thin"]}
    assert verify(BODY, header(), secrets, NOW_MS) == {"classic"}
    assert verify(BODY, header(BODY, "whsec_thin"), secrets, NOW_MS) == {"thin"}


def test_both_secrets_of_a_rotation_are_accepted() -> None:
    """Ours may be ahead of Stripe's or behind, and Stripe may sign with both."""
    rotation = {"classic": ["whsec_new", "whsec_old"]}
    for signed_with in (["whsec_new"], ["whsec_old"], ["whsec_old", "whsec_new"], ["whsec_x", "whsec_new"]):
        assert verify(BODY, header(BODY, *signed_with), rotation, NOW_MS) == {"classic"}


def test_stripes_own_library_agrees() -> None:
    """What Stripe's SDK signs is accepted here, and the reverse."""
    body = '{"id":"evt_1","object":"event"}'
    theirs = stripe.WebhookSignature.generate_signature_header(body, SECRET, timestamp=NOW_S)
    assert verify(body.encode(), theirs, {"classic": [SECRET]}, NOW_MS) == {"classic"}
    ours = f"t={NOW_S},v1={sign(body.encode(), SECRET, NOW_S)}"
    assert stripe.WebhookSignature.verify_header(body, ours, SECRET, tolerance=None)


@pytest.mark.parametrize(
    ("at_s", "now_ms", "expected"),
    [
        (NOW_S, NOW_MS + 300_000, None),
        (NOW_S, NOW_MS + 300_001, Refusal.TOO_OLD),
        (NOW_S, NOW_MS - 300_000, None),
        (NOW_S, NOW_MS - 300_001, Refusal.IN_THE_FUTURE),
    ],
)
def test_the_tolerance_reaches_both_ways(at_s: int, now_ms: int, expected: Refusal | None) -> None:
    """A signature from the future could be replayed until then."""
    if expected is None:
        assert verify(BODY, header(at_s=at_s), {"classic": [SECRET]}, now_ms, 300) == {"classic"}
    else:
        assert refusal(header(at_s=at_s), now_ms=now_ms) is expected


@pytest.mark.parametrize(
    ("given_header", "expected"),
    [
        (None, Refusal.MISSING),
        ("", Refusal.MISSING),
        ("t=1", Refusal.MALFORMED),
        ("v1=ab", Refusal.MALFORMED),
        ("t=x,v1=ab", Refusal.MALFORMED),
        ("t=-1,v1=ab", Refusal.MALFORMED),
        ("t=١٢,v1=ab", Refusal.MALFORMED),
        (f"t={'9' * 5000},v1=ab", Refusal.MALFORMED),
        ("nonsense", Refusal.MALFORMED),
        (f"t={NOW_S},v0=ab", Refusal.MALFORMED),
        (f"t={NOW_S},v1=", Refusal.NO_MATCH),
        (f"t={NOW_S},v1=é", Refusal.NO_MATCH),
        (header(BODY, "whsec_other"), Refusal.NO_MATCH),
    ],
)
def test_bad_headers_are_refused_with_a_reason(given_header: str | None, expected: Refusal) -> None:
    """Each way of being wrong has its name."""
    assert refusal(given_header) is expected


def test_the_timestamp_is_signed_too() -> None:
    """Another time over the same signature does not pass."""
    mark = header().partition(",")[2]
    assert refusal(f"t={NOW_S + 1},{mark}") is Refusal.NO_MATCH


def test_no_secret_matches_nothing() -> None:
    """An empty list accepts nobody."""
    with pytest.raises(BadSignature, match="no_match"):
        verify(BODY, header(BODY, ""), {"classic": []}, NOW_MS)


@given(body=st.binary(max_size=200), index=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(body: bytes, index: int, bit: int) -> None:
    """No body but the one signed passes."""
    signed = header(body)
    assert verify(body, signed, {"classic": [SECRET]}, NOW_MS) == {"classic"}
    if body:
        position = index % len(body)
        changed = bytearray(body)
        changed[position] ^= 1 << bit
        assert refusal(signed, bytes(changed)) is Refusal.NO_MATCH


def test_the_header_is_taken_apart() -> None:
    """Spaces and other schemes do no harm."""
    parsed = parse_header("t=5, v1=aa,v0=bb,v1=cc")
    assert (parsed.timestamp_seconds, parsed.signatures) == (5, (b"aa", b"cc"))
