"""Bodies that come slowly: a sender has so long and no longer, and nothing stays held."""

from __future__ import annotations

import asyncio

import pytest

from services.ingest.admission import Admission
from services.ingest.body import BodyLimits, Hold, RefusedBody, read_body
from tollgate.runtime.http import Message

LIMITS = BodyLimits(body_bytes_max=1_000, inflated_bytes_max=1_000, timeout_seconds=0.02)


@pytest.mark.parametrize("chunks", [0, 1, 3], ids=["nothing after the headers", "one piece", "pieces"])
async def test_a_sender_that_stops_sending_is_refused(chunks: int) -> None:
    """408 when the time is up, wherever it stopped; the bytes that came are not held any longer."""
    admission = Admission(10_000)
    hold = Hold(admission)
    left = chunks

    async def receive() -> Message:
        nonlocal left
        if not left:
            await asyncio.Event().wait()
        left -= 1
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    async with asyncio.timeout(5):
        with pytest.raises(RefusedBody, match="did not arrive in time") as refused:
            await read_body(receive, 500, LIMITS, hold)
    assert refused.value.status == 408
    assert admission.bytes_held == chunks * 10
    hold.release()
    assert admission.bytes_held == 0
