"""Held usage: what is not posted, and why.

Owns every row of `holds`. It refuses to know why a reason was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from sqlalchemy import (
    Connection,
    and_,
    delete,
    func,
    select,
)

from tollgate.ledger.chunks import chunks, is_slot, key_chunks
from tollgate.ledger.insertion import insert_new, put
from tollgate.ledger.plan_rows import (
    Hold,
    HoldReason,
    Slot,
)
from tollgate.ledger.superseding import void_uncarried
from tollgate.ledger.tables import (
    attributions,
    holds,
    usage,
)


def reopen_chains(connection: Connection, keys: Sequence[str], now_ms: int) -> None:
    """A link of these chains is void: put all their slots among the held, as in flight, for the next planning.

    Superseded links that it was to carry are void with it.
    """
    void_uncarried(connection, keys, now_ms)
    for chunk in chunks(keys):
        rows = connection.execute(
            select(
                attributions.c.meter_id,
                attributions.c.window_start_ms,
                attributions.c.account,
                func.min(usage.c.latest_event_ms),
            )
            .join_from(
                attributions,
                usage,
                and_(
                    usage.c.account == attributions.c.account,
                    usage.c.meter_id == attributions.c.meter_id,
                    usage.c.window_start_ms == attributions.c.window_start_ms,
                ),
            )
            .where(attributions.c.posting_key.in_(chunk))
            .group_by(attributions.c.meter_id, attributions.c.window_start_ms, attributions.c.account)
        ).all()
        put(
            connection,
            holds,
            [
                {
                    "meter_id": row.meter_id,
                    "window_start_ms": row.window_start_ms,
                    "account": row.account,
                    "reason": str(HoldReason.IN_FLIGHT),
                    "quantity": Decimal(0),  # the next planning says how much
                    "since_ms": now_ms,
                }
                for row in rows
            ],
        )


def write_holds(
    connection: Connection, slots: Sequence[Slot], new_holds: Mapping[Slot, Hold], now_ms: int
) -> dict[str, int]:
    """Replace what is held of the candidates; a hold that goes on for the same reason keeps its age.

    Returns how many are now held, by reason.
    """
    since: dict[Slot, tuple[str, int]] = {}
    for chunk in key_chunks(connection, slots):
        where = is_slot(connection, holds, chunk)
        for row in connection.execute(select(holds).where(where)):
            since[Slot(row.meter_id, row.window_start_ms, row.account)] = row.reason, row.since_ms
        connection.execute(delete(holds).where(where))
    rows = []
    held: dict[str, int] = {}
    for slot, hold in sorted(new_holds.items()):
        reason, since_ms = since.get(slot, ("", 0))
        rows.append(
            {
                "meter_id": slot.meter_id,
                "window_start_ms": slot.window_start_ms,
                "account": slot.account,
                "reason": str(hold.reason),
                "quantity": hold.quantity,
                "since_ms": since_ms if reason == hold.reason else now_ms,
            }
        )
        held[str(hold.reason)] = held.get(str(hold.reason), 0) + 1
    insert_new(connection, holds, rows)
    return held
