"""Contract `tick/1`: what each ingest instance says on every partition, every ten seconds.

A tick is the independent count of the law (rows this instance had acknowledged on this partition) and the watermark
that says a period is complete. It refuses to know who reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

CONTRACT = "tick/1"
TICK_INTERVAL_SECONDS = 10.0
"""Ten seconds: a period is known complete within ten seconds of its end, at 2.4 records a second an instance."""


class Tick(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One instance's count on one partition."""

    instance: str
    """Unique to one start of one ingest process, so its count begins at zero and never goes back."""
    wall_ms: int
    """The instance's wall time: every event it will write from now on has an ingest time at or after this."""
    rows_acknowledged: int
    """Rows of this instance the broker had acknowledged on this partition before this tick was written."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Tick)


def encode_tick(tick: Tick) -> bytes:
    """The record value of a tick."""
    return _encoder.encode(tick)


def decode_tick(value: bytes) -> Tick:
    """Inverse of `encode_tick`. Raises ValueError (msgspec.DecodeError) on anything else."""
    return _decoder.decode(value)


def tick_headers(instance: str) -> Sequence[tuple[str, bytes]]:
    """Kafka headers of a tick record."""
    return [("contract", CONTRACT.encode()), ("instance", instance.encode())]
