"""Kong's http-log entries as columns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.ingest.capture import parse_capture
from services.ingest.decoded import BrokenBody, DecodedBatch
from services.ingest.gateways.kong import KongDecoder
from tests.unit.ingest.decoders import ID_SEED, INGEST_MS, KEYS, kong_decoder, kong_entry
from tollgate.contracts.events import hash_id
from tollgate.metering.errors import DeadReason


def decode(body: bytes | object, *, replayed: bool = False) -> DecodedBatch:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return kong_decoder().decode(data, ingest_ms=INGEST_MS, trust_ids=True, replayed=replayed)


def only(batch: DecodedBatch) -> dict[str, Any]:
    assert (batch.rows, list(batch.rejected)) == (1, [])
    return {name: column[0] for name, column in batch.columns.items()}


def test_an_entry_becomes_one_row_of_exactly_these_columns() -> None:
    """Every column of the contract, from where Kong keeps it."""
    assert only(decode(kong_entry())) == {
        "id_hash": hash_id("a" * 32, ID_SEED),
        "id_weak": False,
        "id": "a" * 32,
        "time_ms": 1_700_000_000_123,
        "account": "user:cus_1",
        "user": "cus_1",
        "company": None,
        "subscription": None,
        "api_key": KEYS.hash_key("k"),
        "gateway": "kong",
        "service": "llm",
        "route": "chat",
        "method": "POST",
        "host": "api.test",
        "path": "/v1/chat",
        "status": 200,
        "latency_ms": 33,
        "request_bytes": 100,
        "response_bytes": 200,
        "client_ip": "192.0.2.1",
        "user_agent": "curl",
        "weight": 1,
        "blocked_by": None,
        "properties.cost": "1.10",
        "properties.model": "m1",
        "properties.plan": None,
        "properties.tenant": "t1",
        "properties.tokens": None,
        "properties.total_tokens": None,
    }


def test_an_array_and_an_object_are_read_alike() -> None:
    """Kong sends an object at batch size 1 and an array otherwise, even for one entry."""
    assert only(decode([kong_entry()])) == only(decode(kong_entry()))


@pytest.mark.parametrize(
    ("consumer", "account"),
    [
        ({"id": "i", "username": "u", "custom_id": "c"}, "user:c"),
        ({"id": "i", "username": "u", "custom_id": None}, "user:u"),
        ({"id": "i"}, "user:i"),
        (None, "key:" + KEYS.hash_key("k")),
    ],
)
def test_the_account_is_kongs_own_consumer_else_the_key(consumer: object, account: str) -> None:
    """custom_id, else username, else id, else the holder of the API key."""
    assert only(decode(kong_entry(consumer=consumer)))["account"] == account


def test_an_identity_header_of_the_caller_is_not_believed() -> None:
    """Without a consumer and a key there is nobody to bill, whatever headers the caller sent."""
    entry = kong_entry(consumer=None)
    entry["request"] |= {"querystring": {}, "headers": {"x-consumer-custom-id": "victim"}}
    batch = decode(entry)
    assert [rejected.reason for rejected in batch.rejected] == [DeadReason.NO_IDENTITY]


def test_what_kong_answered_itself_is_blocked_by_kong() -> None:
    """source=kong marks 401, 429 and gateway errors."""
    assert only(decode(kong_entry(source="kong")))["blocked_by"] == "kong"


def test_without_request_id_the_response_header_is_the_id() -> None:
    """Kong's own response header is as good; a header of the request is not asked."""
    entry = kong_entry()
    del entry["request"]["id"]
    entry["request"]["headers"]["x-kong-request-id"] = "callers-own"
    entry["response"]["headers"]["x-kong-request-id"] = "gateways-own"
    row = only(decode(entry))
    assert (row["id"], row["id_weak"]) == ("gateways-own", False)


def test_a_weak_id_is_stable_and_tells_different_calls_apart() -> None:
    """The same entry gives the same weak id, another millisecond another."""
    entry = kong_entry()
    del entry["request"]["id"]
    one, again = only(decode(entry)), only(decode([entry]))
    other = only(decode(entry | {"started_at": 1_700_000_000_124}))
    assert one["id_weak"] is True
    assert one["id"] == again["id"] != other["id"]


def test_a_tcp_entry_is_unsupported() -> None:
    """Stream entries have a session instead of a request."""
    batch = decode({"session": {"received": 1}, "started_at": 1, "client_ip": "1.1.1.1"})
    assert [rejected.reason for rejected in batch.rejected] == [DeadReason.UNSUPPORTED]


def test_an_unmeasured_latency_is_null() -> None:
    """-1 is Kong's word for not measured, not a duration."""
    assert only(decode(kong_entry(latencies={"request": -1})))["latency_ms"] is None


def with_request(**changes: object) -> bytes:
    entry = kong_entry()
    entry["request"] |= changes
    return json.dumps(entry).encode()


HOSTILE: list[tuple[bytes, DeadReason]] = [
    (with_request(size=-5), DeadReason.OUT_OF_RANGE),
    (with_request(size=0).replace(b'"size": 0', b'"size": 1e999'), DeadReason.OUT_OF_RANGE),
    (with_request(size=0).replace(b'"size": 0', b'"size": NaN'), DeadReason.OUT_OF_RANGE),
    (json.dumps(kong_entry(x=1)).encode().replace(b'"x": 1', b'"x": -Infinity'), DeadReason.OUT_OF_RANGE),
    (with_request(size="7"), DeadReason.BAD_TYPE),
    (with_request(uri="/" + "x" * 10_000_000), DeadReason.TOO_LARGE),
    (with_request(uri="/a\0b"), DeadReason.BAD_TYPE),
    (json.dumps(kong_entry(consumer={"custom_id": "a\0b"})).encode(), DeadReason.BAD_TYPE),
    (json.dumps(kong_entry(started_at=None)).encode(), DeadReason.NO_TIME),
    (json.dumps(kong_entry(response={"status": 70_000})).encode(), DeadReason.OUT_OF_RANGE),
    (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", DeadReason.TOO_DEEP),
    (b"17", DeadReason.NOT_AN_OBJECT),
    (b"null", DeadReason.NOT_AN_OBJECT),
    (b'{"a" 1}', DeadReason.BAD_JSON),
]


@pytest.mark.parametrize(("hostile", "reason"), HOSTILE, ids=[f"{i}-{r}" for i, (_, r) in enumerate(HOSTILE)])
def test_a_bad_entry_has_a_named_reason_and_leaves_its_neighbours_alone(
    hostile: bytes, reason: DeadReason
) -> None:
    """The entries before and after it are counted."""
    before, after = kong_entry(started_at=1), kong_entry(started_at=2)
    batch = decode(b"[%s,%s,%s]" % (json.dumps(before).encode(), hostile, json.dumps(after).encode()))
    assert [rejected.reason for rejected in batch.rejected] == [reason]
    assert batch.columns["time_ms"] == [1, 2]
    assert batch.rejected[0].payload == hostile


def test_bytes_that_are_not_utf8_are_replaced_and_the_call_counted() -> None:
    """A caller who sends broken text does not get the call for nothing."""
    body = with_request(uri="/v1/XX").replace(b"/v1/XX", b"/v1/\xff\xfe")
    assert only(decode(b"[" + body + b"]"))["path"] == "/v1/��"
    assert only(decode(with_request(uri="/XX").replace(b"/XX", b"/\\ud800")))["path"] == "/�"


@pytest.mark.parametrize(
    ("body", "position"),
    [
        (b"", 0),
        (b"oops", 0),
        (b'{"a": 1', 7),
        (b"[{},", 4),
        (b'[{"a": "x]', 7),
        (b'{"a": }', 6),
        (b"[{}]]", 4),
    ],
)
def test_a_broken_body_names_the_position(body: bytes, position: int) -> None:
    """When entries cannot be told apart, the sender is told where it stopped making sense."""
    with pytest.raises(BrokenBody) as raised:
        decode(body)
    assert raised.value.position == position


def test_a_replayed_entry_keeps_the_hash_of_its_key() -> None:
    """A dead letter holds the hash already; a caller who sends one in clear gains nothing by it."""
    marked = with_request(querystring={"apikey": "keyed:" + KEYS.hash_key("k")})
    assert only(decode(marked, replayed=True))["api_key"] == KEYS.hash_key("k")
    assert only(decode(marked))["api_key"] != KEYS.hash_key("k")


def test_a_header_repeated_past_the_longest_text_is_that_rows_fault() -> None:
    """A caller chooses how often it sends a header, and must not be able to fail its gateway's whole body."""
    many = ["x" * 8_000] * 3
    for headers in ({"user-agent": many}, {"x-model": many}):
        entry = kong_entry(request=kong_entry()["request"] | {"headers": headers})
        batch = decode([kong_entry(), entry])
        assert batch.rows == 1
        assert [rejected.reason for rejected in batch.rejected] == [DeadReason.TOO_LARGE]


def test_a_property_takes_its_first_location_that_has_a_value() -> None:
    """A later location is not even looked at where an earlier one answered, so it cannot be a fault there."""
    decoder = KongDecoder(
        id_seed=1, keys=KEYS, capture=parse_capture(["header:x-a=p", "response_header:x-b=p", "query:c=p"])
    )
    rows = [
        ({"x-a": "1"}, {"x-b": ["y" * 9_000] * 2}, {"c": "9"}),
        ({}, {"x-b": "2"}, {"c": "9"}),
        ({}, {}, {"c": "3"}),
        ({}, {}, {}),
    ]
    entries = [
        kong_entry(
            request=kong_entry()["request"] | {"id": str(row), "headers": asked, "querystring": query},
            response={"status": 200, "headers": answered},
        )
        for row, (asked, answered, query) in enumerate(rows)
    ]
    body = json.dumps(entries).encode()
    batch = decoder.decode(body, ingest_ms=INGEST_MS, trust_ids=True, replayed=False)
    assert batch.columns["properties.p"] == ["1", "2", "3", None]
