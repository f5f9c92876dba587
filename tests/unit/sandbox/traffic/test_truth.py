"""The truth: small histories counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sandbox.traffic.calls import HOUR_MS, Call, Identity, Kind
from sandbox.traffic.formats import Format
from sandbox.traffic.history import HistoryWriter, Sent, read_history
from sandbox.traffic.truth import tell_truth

T0 = 1_800_000_000_000 // HOUR_MS * HOUR_MS
CALL = Call(
    kind=Kind.NORMAL,
    id="a",
    time_ms=T0 + 1,
    identity=Identity("cus_1", user="u1"),
    route="chat",
    method="POST",
    path="/v1/chat",
    status=200,
    latency_ms=12,
    request_bytes=300,
    response_bytes=1_000,
    client_ip="203.0.113.1",
    user_agent="curl",
    answered_by_gateway=False,
    tokens_in=10,
    tokens_out=5,
    model="small",
)


def test_a_call_counts_on_every_meter_it_matches() -> None:
    """One successful chat call, worked by hand."""
    truth = tell_truth([Sent(CALL, Format.KONG)])
    assert dict(truth.usage) == {
        ("api_calls", "user:u1", T0): 1,
        ("chat_tokens", "user:u1", T0): 15,
        ("egress_bytes", "user:u1", T0): 1_000,
        ("daily_addresses", "user:u1", T0 // (24 * HOUR_MS) * 24 * HOUR_MS): 1,
        ("slowest_call", "user:u1", T0): 12,
    }
    assert truth.outcomes == {"received": 1, "counted": 1}


def test_troubles_end_where_they_belong() -> None:
    """Each kind has its own ending, and none of them adds usage."""
    truth = tell_truth(
        Sent(call, Format.KONG)
        for call in (
            CALL,
            replace(CALL, kind=Kind.DUPLICATE),
            replace(CALL, kind=Kind.LATE, id="b"),
            replace(CALL, kind=Kind.FUTURE, id="c"),
            replace(CALL, kind=Kind.MALFORMED, id="d"),
        )
    )
    assert truth.outcomes == {
        "received": 4,
        "counted": 1,
        "duplicate": 1,
        "late": 1,
        "dead": 1,
        "rejected": 1,
    }
    assert truth.usage["api_calls", "user:u1", T0] == 1


def test_what_failed_or_the_gateway_answered_is_not_an_api_call() -> None:
    """A 502 and the gateway's own 429 cost nothing but their bytes."""
    truth = tell_truth(
        Sent(call, Format.KONG)
        for call in (
            replace(CALL, id="e", status=502, tokens_in=None, tokens_out=None),
            replace(CALL, id="f", status=429, answered_by_gateway=True, tokens_in=None, tokens_out=None),
        )
    )
    assert ("api_calls", "user:u1", T0) not in truth.usage
    assert truth.usage["egress_bytes", "user:u1", T0] == 2_000
    assert truth.usage["slowest_call", "user:u1", T0] == 12


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """The file is the truth, so it must hold every field."""
    other = replace(CALL, id="g", identity=Identity("cus_2", company="acme"), tokens_in=None)
    with HistoryWriter(tmp_path / "history.jsonl") as history:
        history.append([CALL, other], Format.MOESIF)
    assert list(read_history(tmp_path / "history.jsonl")) == [
        Sent(CALL, Format.MOESIF),
        Sent(other, Format.MOESIF),
    ]
