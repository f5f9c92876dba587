"""What postings need of the meters: their Stripe target, kind and window.

Owns the step from a stored definition to `MeterTerms`. It refuses to know versions' validity and expressions.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, select

from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.plan_rows import (
    MeterTerms,
)
from tollgate.ledger.posting_rows import PostingMode
from tollgate.ledger.tables import (
    meters,
)
from tollgate.metering.meter import Meter


def load_terms(connection: Connection) -> dict[int, MeterTerms]:
    """Every version of every meter that has a Stripe target, by meter id."""
    found = {}
    for row in connection.execute(select(meters.c.meter_id, meters.c.definition)):
        meter = Meter.from_document(row.definition)
        if meter.stripe is not None:
            found[row.meter_id] = MeterTerms(
                meter_id=row.meter_id,
                name=meter.name,
                kind=meter.metric.kind,
                window_size_ms=meter.window.size_ms,
                event_name=meter.stripe.event_name,
                send=str(meter.stripe.send),
                mode=PostingMode(meter.stripe.mode),
                closed=meter.stripe.closed,
            )
    return found


def load_meter_terms(engine: Engine) -> dict[int, MeterTerms]:
    """Every meter version that has a Stripe target, by meter id."""
    with read_snapshot(engine) as connection:
        return load_terms(connection)


def load_modes(engine: Engine) -> dict[str, set[PostingMode]]:
    """By event name, what the postings of its meters' versions do at Stripe."""
    modes: dict[str, set[PostingMode]] = {}
    for meter in load_meter_terms(engine).values():
        modes.setdefault(meter.event_name, set()).add(meter.mode)
    return modes
