"""The golden samples of each format still become the rows beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

import tollgate.contracts
from services.ingest.decoder import Decoder
from tests.unit.ingest.decoders import (
    CAPTURE,
    INGEST_MS,
    cloudevents_decoder,
    kong_decoder,
    moesif_decoder,
)
from tollgate.contracts.events import decode_batch, encode_batch, event_schema

SAMPLES = Path(tollgate.contracts.__file__).parent / "samples"


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("kong_http_log", kong_decoder()),
        ("moesif_batch", moesif_decoder()),
        ("cloudevents_batch", cloudevents_decoder()),
    ],
)
def test_a_sample_becomes_its_rows(name: str, decoder: Decoder) -> None:
    """Through the decoder and the record's encoding, every column as it was agreed."""
    body = (SAMPLES / f"{name}.json").read_bytes()
    decoded = decoder.decode(body, ingest_ms=INGEST_MS, trust_ids=True, replayed=False)
    batch = pa.RecordBatch.from_pydict(decoded.columns, schema=event_schema(CAPTURE.names))
    assert decode_batch(encode_batch(batch)).to_pylist() == json.loads(
        (SAMPLES / f"{name}.rows.json").read_text()
    )
