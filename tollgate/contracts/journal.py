"""Contract `posting/1`: a posting as it is journalled to `stripe.postings` before it is sent.

Enough to rebuild the ledger's row after a restore: identity, chain, exact body. It refuses to know how Stripe is
called.
"""

from __future__ import annotations

import msgspec

CONTRACT = "posting/1"


class JournalEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One posting, as written down before its first attempt. Quantities are decimal strings."""

    posting_key: str
    seq: int
    quantity_from: str
    quantity_to: str
    identifier: str
    idempotency_key: str
    customer: str
    meter_id: int
    window_start_ms: int
    timestamp_s: int
    mode: str
    body: str
    """The exact JSON of the request's parameters: a retry sends these same bytes."""
    planned_ms: int
    planned_from: dict[int, int]
    """Per source partition, the progress offset the plan was read at."""
    for_period_ms: int | None = None
    """Start of the finalized period it makes up for; absent when its own period bills it."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(JournalEntry)


def encode_journal_entry(entry: JournalEntry) -> bytes:
    """The record value of a journal entry."""
    return _encoder.encode(entry)


def decode_journal_entry(value: bytes) -> JournalEntry:
    """Inverse of `encode_journal_entry`. Raises ValueError (msgspec.DecodeError) on anything else."""
    return _decoder.decode(value)


JOURNAL_HEADERS: list[tuple[str, bytes]] = [("contract", CONTRACT.encode())]
