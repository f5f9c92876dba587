"""Whatever arrives, a decoder gives rows and rejections or says that the body is broken."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.decoded import BrokenBody
from services.ingest.decoder import Decoder
from services.ingest.letters import write_letter
from services.ingest.redaction import Redactor
from tests.unit.ingest.decoders import (
    CAPTURE,
    INGEST_MS,
    KEYS,
    cloud_event,
    cloudevents_decoder,
    kong_decoder,
    kong_entry,
    moesif_decoder,
    moesif_event,
)
from tollgate.contracts.events import event_schema
from tollgate.metering.errors import DeadReason

DECODERS: list[Decoder] = [kong_decoder(), moesif_decoder(), cloudevents_decoder()]
GOOD = {"kong": kong_entry, "moesif": moesif_event, "cloudevents": cloud_event}
REDACTOR = Redactor(KEYS, CAPTURE, ("apikey",), ("apikey",))

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("2025-06-01T10:00:00")
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def paths(document: Any) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in document.items():
        found.append((key,))
        if isinstance(value, dict):
            found += [(key, *rest) for rest in paths(value)]
    return found


def put(document: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return copy


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.format)
@settings(deadline=None, max_examples=150)
@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_decoded_or_broken(decoder: Decoder, body: bytes) -> None:
    """No other exception, and every entry is accounted for."""
    try:
        batch = decoder.decode(body, ingest_ms=INGEST_MS, trust_ids=True, replayed=False)
    except BrokenBody:
        return
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return
    assert batch.rows + len(batch.rejected) == (len(document) if isinstance(document, list) else 1)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.format)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_value_anywhere_leaves_the_neighbours_alone(decoder: Decoder, data: st.DataObject) -> None:
    """A good entry beside one with a member replaced by anything is still a row, and rows fit the contract."""
    good = GOOD[decoder.format]()
    bad = put(good, data.draw(st.sampled_from(paths(good))), data.draw(JSON))
    body = json.dumps([bad, good]).encode()
    batch = decoder.decode(body, ingest_ms=INGEST_MS, trust_ids=True, replayed=False)
    assert batch.rows + len(batch.rejected) == 2
    alone = decoder.decode(json.dumps(good).encode(), ingest_ms=INGEST_MS, trust_ids=True, replayed=False)
    assert {name: column[-1] for name, column in batch.columns.items()} == {
        name: column[0] for name, column in alone.columns.items()
    }
    packed = pa.RecordBatch.from_pydict(batch.columns, schema=event_schema(CAPTURE.names))
    packed.validate(full=True)


SECRET = "pl4nted-s3cret"


@pytest.mark.parametrize("decoder", DECODERS[:2], ids=lambda decoder: decoder.format)
@settings(deadline=None, max_examples=100)
@given(
    place=st.sampled_from(
        [
            ("request", "headers", "authorization"),
            ("request", "headers", "Cookie"),
            ("request", "headers", "apikey"),
            ("request", "headers", "x-anything"),
            ("request", "body"),
            ("response", "body"),
            ("response", "headers", "set-cookie"),
            ("request", "querystring"),
            ("session_token",),
        ]
    ),
    cut=st.integers(0, 40),
)
def test_a_planted_secret_never_reaches_a_row_or_a_letter(
    decoder: Decoder, place: tuple[str, ...], cut: int
) -> None:
    """In whatever part of a call it stands, and also when the entry is broken off."""
    value: object = {"token": SECRET, "apikey": SECRET} if place[-1] == "querystring" else SECRET
    entry = put(GOOD[decoder.format](), place, value)
    entry["request"]["uri"] = f"http://user:{SECRET}@api.test/v1?token={SECRET}&apikey={SECRET}"
    entry["request"]["url"] = entry["request"]["uri"]
    bodies = [
        json.dumps(entry),
        json.dumps(entry | {"request": entry["request"] | {"size": -1}, "weight": -1}),
    ]
    for body in bodies:
        batch = decoder.decode(body.encode(), ingest_ms=INGEST_MS, trust_ids=True, replayed=False)
        letters = [
            write_letter(REDACTOR, rejected, decoder.format, "s", INGEST_MS).payload
            for rejected in batch.rejected
        ]
        assert SECRET not in repr({k: v for k, v in batch.columns.items() if k != "id"})
        assert SECRET.encode() not in b"".join(letters)
    # Broken off so that no entry can be read: what is left has lost the secrets' values too.
    broken = json.dumps(entry)[: -1 - cut].encode()
    assert SECRET.encode() not in REDACTOR.redact(broken)


def test_a_letter_is_still_json_and_keeps_what_a_replay_reads() -> None:
    """Redaction takes out values, not structure: the mended letter decodes to the same row."""
    entry = kong_entry()
    payload = REDACTOR.redact(json.dumps(entry).encode())
    original = kong_decoder().decode(
        json.dumps(entry).encode(), ingest_ms=INGEST_MS, trust_ids=True, replayed=False
    )
    replayed = kong_decoder().decode(payload, ingest_ms=INGEST_MS, trust_ids=True, replayed=True)
    assert replayed.columns == original.columns
    assert b'"c"' not in payload.replace(b'"c-1"', b"")
    event = moesif_event()
    before = moesif_decoder().decode(
        json.dumps(event).encode(), ingest_ms=INGEST_MS, trust_ids=True, replayed=False
    )
    after = moesif_decoder().decode(
        REDACTOR.redact(json.dumps(event).encode()), ingest_ms=INGEST_MS, trust_ids=True, replayed=True
    )
    assert after.columns == before.columns


@pytest.mark.parametrize(
    ("decoder", "good", "bad"),
    [
        (kong_decoder(), kong_entry(), kong_entry(consumer={"custom_id": "x" * 257})),
        (moesif_decoder(), moesif_event(), moesif_event(company_id="x" * 257)),
        (cloudevents_decoder(), cloud_event(), cloud_event(subject="x" * 257)),
    ],
    ids=["kong", "moesif", "cloudevents"],
)
def test_a_name_too_long_for_the_ledgers_keys_is_dead_and_its_neighbour_counts(
    decoder: Decoder, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    """PostgreSQL refuses an index key past 2,704 bytes: one such account would stop a whole partition."""
    batch = decoder.decode(
        json.dumps([bad, good]).encode(), ingest_ms=INGEST_MS, trust_ids=True, replayed=False
    )
    assert batch.rows == 1
    assert [rejected.reason for rejected in batch.rejected] == [DeadReason.TOO_LARGE]
