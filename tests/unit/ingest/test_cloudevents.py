"""CloudEvents as columns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.ingest.decoded import DecodedBatch
from tests.unit.ingest.decoders import INGEST_MS, cloud_event, cloudevents_decoder
from tollgate.metering.errors import DeadReason


def decode(body: object) -> DecodedBatch:
    return cloudevents_decoder().decode(
        json.dumps(body).encode(), ingest_ms=INGEST_MS, trust_ids=True, replayed=False
    )


def only(batch: DecodedBatch) -> dict[str, Any]:
    assert (batch.rows, list(batch.rejected)) == (1, [])
    return {name: column[0] for name, column in batch.columns.items()}


def test_subject_is_the_user_and_source_with_id_the_identity() -> None:
    """type and source stand in route and service."""
    row = only(decode(cloud_event()))
    assert (row["account"], row["id"], row["route"], row["service"], row["time_ms"]) == (
        "user:cus_1",
        "3:app:e-1",
        "prompt",
        "app",
        1_748_772_000_500,
    )
    assert row["properties.tokens"] == "7"


def test_no_two_pairs_of_source_and_id_are_the_same_event() -> None:
    """Moving a character from one to the other makes another event."""
    one = only(decode(cloud_event(source="a:", id="b")))
    two = only(decode(cloud_event(source="a", id=":b")))
    assert one["id_hash"] != two["id_hash"]


def test_without_a_time_it_happened_at_ingest() -> None:
    """The specification makes time optional."""
    event = cloud_event()
    del event["time"]
    assert only(decode(event))["time_ms"] == INGEST_MS


def test_text_of_a_number_is_kept_exactly() -> None:
    """More digits than a float holds arrive as they were sent."""
    body = json.dumps(cloud_event()).replace('"tokens": 7', '"tokens": 12345678901234567890.10').encode()
    batch = cloudevents_decoder().decode(body, ingest_ms=INGEST_MS, trust_ids=True, replayed=False)
    assert batch.columns["properties.tokens"] == ["12345678901234567890.10"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, DeadReason.NO_ID),
        ({"source": ""}, DeadReason.NO_ID),
        ({"subject": None}, DeadReason.NO_IDENTITY),
        ({"specversion": "0.3"}, DeadReason.UNSUPPORTED),
        ({"time": "2025-13-01T00:00:00Z"}, DeadReason.BAD_TIME),
        ({"id": 5}, DeadReason.BAD_TYPE),
        ({"data": {"usage": {"tokens": "x" * 20_000}}}, DeadReason.TOO_LARGE),
        ({"data": {"usage": {"tokens": "a\0"}}}, DeadReason.BAD_TYPE),
    ],
)
def test_a_bad_event_has_a_named_reason(changes: dict[str, Any], reason: DeadReason) -> None:
    """Its neighbour is counted."""
    batch = decode([cloud_event(**changes), cloud_event()])
    assert batch.rows == 1
    assert [rejected.reason for rejected in batch.rejected] == [reason]


def test_members_of_data_named_as_columns_fill_them() -> None:
    """A metering plug-in's status, path and sizes are what meters filter on."""
    row = only(
        decode(
            cloud_event(
                data={
                    "route": "chat",
                    "path": "/v1/chat?key=secret",
                    "status": 200,
                    "response_bytes": 512,
                    "blocked_by": "quota",
                    "usage": {"tokens": 7},
                }
            )
        )
    )
    assert (row["route"], row["path"], row["status"], row["response_bytes"], row["blocked_by"]) == (
        "chat",
        "/v1/chat",
        200,
        512,
        "quota",
    )
    assert row["properties.tokens"] == "7"


@pytest.mark.parametrize(
    "data", [{"status": "ok"}, {"status": -1}, {"status": 1e9}, {"weight": 0}, [1], "text"]
)
def test_data_of_another_shape_is_the_senders_own_business(data: object) -> None:
    """Members that do not fit a column leave it null, and the event is counted all the same."""
    row = only(decode(cloud_event(data=data)))
    assert (row["status"], row["weight"], row["route"]) == (None, 1, "prompt")
