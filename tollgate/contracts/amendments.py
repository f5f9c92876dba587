"""Contract `amendments/1`: one correction of what was counted, on the log like any event.

An operator says that an account used so much more (or less) of a meter in a window than its gateway's events say. It
travels in `gateway.events`, on its account's partition, so that whoever folds the log folds it too and a recount of the
log comes to the same. It refuses to know who may amend, and what.
"""

from __future__ import annotations

import msgspec
import xxhash

CONTRACT = "amendments/1"

ACCOUNT_BYTES_MAX = 1_000
"""Longer names would not fit a ledger's index, and stop the meter that had to write one."""
DIMENSIONS_BYTES_MAX = 1_200
"""As long as dimensions ever are."""


class Amendment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed quantity for one (meter version, account, window)."""

    amendment_id: str
    """What makes it the same amendment however often it is on the log."""
    meter_id: int
    meter: str
    """The meter's name, for whoever reads the log."""
    account: str
    window_start_ms: int
    time_ms: int
    """The moment inside the window it is for."""
    quantity: str
    """Decimal text, never zero."""
    reason: str
    by: str
    written_ms: int
    """Wall time at which it was written."""
    dimensions: str = ""
    """Canonical JSON of the meter's `group_by`, '' for none."""

    @property
    def id_hash(self) -> int:
        """The 64 bits by which it is remembered beside the events' ids."""
        return xxhash.xxh3_64_intdigest(b"tollgate amendment " + self.amendment_id.encode())


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Amendment)


def encode_amendment(amendment: Amendment) -> bytes:
    """The record value of an amendment."""
    return _encoder.encode(amendment)


def decode_amendment(value: bytes) -> Amendment:
    """Inverse of `encode_amendment`. Raises ValueError (msgspec.DecodeError) on anything else."""
    return _decoder.decode(value)


AMENDMENT_HEADERS: list[tuple[str, bytes]] = [("contract", CONTRACT.encode()), ("rows", b"1")]
"""Kafka headers of an amendment: it counts as one event, also where nobody can read it."""
