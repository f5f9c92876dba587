"""Contract `dead/1`: an event that could not be counted, with its bytes, the reason, and where it came from.

Owns the envelope and its encoding. Original bytes are kept exactly,
so that a dead letter can be shown, mended and replayed.
"""

from __future__ import annotations

import msgspec

from tollgate.metering.errors import DeadReason

CONTRACT = "dead/1"


class DeadLetter(msgspec.Struct, frozen=True):
    """One dead event or record."""

    reason: DeadReason
    detail: str
    source: str
    rows: int
    """Events this letter stands for: 1 from ingest; from the meter, those of one record that share the reason."""
    format: str
    """What `payload` is: `kong`, `moesif`, `cloudevents` (one entry's JSON), `events/1` (an Arrow stream), `raw`."""
    payload: bytes
    """The original bytes, secrets removed where the format names them."""
    ingest_ms: int
    topic: str = ""
    """Where it came from in the log, when the meter wrote it."""
    partition: int = -1
    offset: int = -1
    account: str = ""
    """Of the first event, to find whose it was."""
    time_ms: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DeadLetter)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The record value of a dead letter (MessagePack: bytes stay bytes)."""
    return _encoder.encode(letter)


def decode_dead_letter(value: bytes) -> DeadLetter:
    """Inverse of `encode_dead_letter`. Raises ValueError (msgspec.DecodeError) on anything else."""
    return _decoder.decode(value)


DEAD_HEADERS: list[tuple[str, bytes]] = [("contract", CONTRACT.encode())]
