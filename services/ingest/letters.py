"""Dead letters of this service: what is kept of an entry that cannot be counted.

Owns their making, which is the one place where a rejected entry's bytes pass on their way to the log: secrets are
taken out here. It refuses to know how a letter is stored.
"""

from __future__ import annotations

from services.ingest.decoded import Rejected
from services.ingest.gateways import cloudevents
from services.ingest.redaction import Redactor
from tollgate.contracts.dead import DeadLetter

PAYLOAD_BYTES_MAX = 1024 * 1024
"""Longer payloads are cut, and say so: a record has a limit, and what is needed to see the mistake is at the start."""

RAW = "raw"


def write_letter(
    redactor: Redactor, rejected: Rejected, format: str, source: str, ingest_ms: int
) -> DeadLetter:
    """The letter of one rejected entry of a body in `format`; `RAW`: of a body in which none can be told apart."""
    payload = redactor.redact(rejected.payload, gateway_entry=format != cloudevents.FORMAT)
    detail = rejected.detail
    if len(payload) > PAYLOAD_BYTES_MAX:
        detail = f"{detail} (payload cut from {len(payload)} bytes)"
        payload = payload[:PAYLOAD_BYTES_MAX]
        format = RAW
    return DeadLetter(
        reason=rejected.reason,
        detail=detail,
        source=source,
        rows=1,
        format=format,
        payload=payload,
        ingest_ms=ingest_ms,
    )
