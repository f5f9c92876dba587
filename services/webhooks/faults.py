"""The webhooks service's fault points, in order. What reaching one does is `tollgate.runtime.faults`."""

from __future__ import annotations

from enum import StrEnum


class FaultPoint(StrEnum):
    """Where a crash is worth trying."""

    STORED = "stored"
    """The broker has acknowledged the event, Stripe has not been answered."""
    FETCHED = "fetched"
    """The object is fetched, the ledger not written."""
    PROJECTED = "projected"
    """The ledger is written, the offset not committed."""
    COMMITTED = "committed"
