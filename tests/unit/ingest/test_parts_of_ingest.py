"""Tokens' snapshot, capture settings, instants and ingest time."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from services.ingest.capture import parse_capture
from services.ingest.gateways.iso_time import parse_instant
from services.ingest.ingest_time import IngestTime
from services.ingest.tokens import Source, TokenBook
from tollgate.runtime.clock import ManualClock

TOKEN = "tg_ab_secret"


def bearer(token: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + token.encode()}


def test_the_snapshot_holds_no_token_and_serves_the_next_start(tmp_path: Path) -> None:
    """Readable by this user alone; a revoked token is gone from it."""
    path = tmp_path / "made" / "sources.json"
    source = Source("gw", "ab", hashlib.sha256(TOKEN.encode()).hexdigest(), frozenset({"write"}))
    book = TokenBook(path, ManualClock(5))
    book.replace([source])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TOKEN not in path.read_text()
    again = TokenBook(path, ManualClock(6))
    assert again.load_snapshot()
    caller = again.identify(bearer(TOKEN))
    assert caller is not None
    assert (caller.source, again.identify(bearer(TOKEN + "x"))) == ("gw", None)
    assert again.identify(bearer(TOKEN)) == caller
    assert again.identify({b"x-tollgate-token": TOKEN.encode()}) == caller
    again.replace([])
    assert again.identify(bearer(TOKEN)) is None
    last = TokenBook(path, ManualClock(7))
    assert last.load_snapshot()
    assert last.identify(bearer(TOKEN)) is None


def test_an_unreadable_snapshot_is_none(tmp_path: Path) -> None:
    """Half a file, or another's, does not stop the start."""
    path = tmp_path / "sources.json"
    path.write_bytes(b'{"read_ms":')
    assert TokenBook(path, ManualClock()).load_snapshot() is False


def test_capture_settings_name_their_mistakes_all_at_once() -> None:
    """And names come from the location unless given."""
    capture = parse_capture(["header:X-Tokens-In", "data:usage.model=kind", "query:kind"])
    assert capture.names == ("kind", "tokens_in")
    assert [at.place.value for at in capture.properties[0].locations] == ["data", "query"]
    with pytest.raises(ValueError, match=r"'nowhere:x'.*'header:'.*'a b'"):
        parse_capture(["nowhere:x", "header:", "query:x=a b"])


@pytest.mark.parametrize(
    ("text", "instant_ms"),
    [
        ("1970-01-01T00:00:01", 1000),
        ("1970-01-01T00:00:01.5", 1005),
        ("1970-01-01T00:00:01.5Z", 1500),
        ("1970-01-01T00:00:01.50+00:00", 1500),
        ("1970-01-01T00:00:01.123456", 1123),
        ("1970-01-01T01:00:01+01:00", 1000),
        ("1970-01-01t00:00:60z", 60_000),
        ("1969-12-31T23:59:59Z", None),
        ("1970-01-01T24:00:00Z", None),
        ("1970-02-29T00:00:00Z", None),
        ("1970-01-01", None),
        ("", None),
    ],
)
def test_instants(text: str, instant_ms: int | None) -> None:
    """Short fractions without a zone are milliseconds, as Kong's Moesif plugin writes them."""
    assert parse_instant(text, unpadded_ms=True) == instant_ms


def test_ingest_time_waits_out_small_steps_back_and_follows_large_ones() -> None:
    """A tick's promise survives time synchronisation; a clock that was wrong by minutes is not kept."""
    clock = ManualClock(1_000_000)
    time = IngestTime(clock)
    assert time.now_ms() == 1_000_000
    clock.set_now_ms(999_000)
    assert time.now_ms() == 1_000_000
    clock.set_now_ms(900_000)
    assert time.now_ms() == 900_000
