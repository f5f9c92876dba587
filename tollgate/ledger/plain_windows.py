"""First postings of plain windows, found and written in a few statements.

Owns which candidates are alone: a usage row that is all its customer used in a window, that nothing was posted of, with
one mapping and one period. Most are, at the top of every hour. What is posted of such a window its meter's `Shorthand`
says; every other candidate is left for the planner's steps, which would have written the same of these
(`tests/contract/ledger/test_plain_windows.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, case, func, or_, select

from tollgate.ledger.billing import PeriodState
from tollgate.ledger.chunks import is_slot, key_chunks, load_present
from tollgate.ledger.insertion import insert_columns
from tollgate.ledger.plan_rows import FirstLink, MeterTerms, Slot
from tollgate.ledger.plan_rules import Shorthand
from tollgate.ledger.tables import attributions, item_periods, mappings, postings, reconciliations, usage

_POSTING_COLUMNS = (
    "posting_key",
    "customer_id",
    "meter_id",
    "window_start_ms",
    "quantity_to",
    "mode",
    "identifier",
    "idempotency_key",
    "timestamp_s",
    "body",
    "planned_from",
)
"""Those in which first postings differ."""

_ATTRIBUTION_COLUMNS = ("meter_id", "window_start_ms", "account", "customer_id", "posting_key")


class _Use(NamedTuple):
    """A usage row of a candidate, with its only mapping and its only period."""

    meter_id: int
    window_start_ms: int
    account: str
    partition: int
    quantity: Decimal
    latest_event_ms: int
    customer_id: str
    period_start_ms: int
    period_end_ms: int


def post_plain_windows(
    connection: Connection,
    terms: Mapping[int, MeterTerms],
    shorthands: Mapping[int, Shorthand],
    slots: Sequence[Slot],
    offsets: Mapping[int, int],
    shared: Mapping[str, Any],
) -> frozenset[Slot]:
    """Write attributions and postings of those of `slots` that are plain windows; returns which.

    `offsets`: the progress they are read at; `shared`: the columns in which a plan's first postings are alike.

    1. Read the candidates' usage beside all it may be posted to. 2. Pick what is alone. 3. Compose the links.
    4. Leave out chains of which anything is known. 5. Write them.
    """
    able = [slot for slot in slots if slot.meter_id in shorthands]
    if not able:
        return frozenset()
    links: list[tuple[FirstLink, _Use]] = []
    for use in _pick_alone(_load_uses(connection, [terms[meter_id] for meter_id in shorthands], able)):
        link = shorthands[use.meter_id].first_link(
            use.customer_id,
            use.window_start_ms,
            use.latest_event_ms,
            use.quantity,
            use.period_start_ms,
            use.period_end_ms,
        )
        if link is not None:
            links.append((link, use))
    keys = [link.posting_key for link, _ in links]
    known = load_present(connection, attributions.c.posting_key, keys)
    known |= load_present(connection, postings.c.posting_key, keys)
    # By key: what is written together lies together in the largest indexes.
    links = sorted(
        (entry for entry in links if entry[0].posting_key not in known), key=lambda entry: entry[0]
    )
    if links:
        _write(connection, shorthands, links, offsets, shared)
    return frozenset(Slot(use.meter_id, use.window_start_ms, use.account) for _, use in links)


def _write(
    connection: Connection,
    shorthands: Mapping[int, Shorthand],
    links: Sequence[tuple[FirstLink, _Use]],
    offsets: Mapping[int, int],
    shared: Mapping[str, Any],
) -> None:
    insert_columns(
        connection,
        attributions,
        _ATTRIBUTION_COLUMNS,
        (
            (use.meter_id, use.window_start_ms, use.account, use.customer_id, link.posting_key)
            for link, use in links
        ),
    )
    modes = {meter_id: str(shorthand.mode) for meter_id, shorthand in shorthands.items()}
    read_from = {partition: {str(partition): offset} for partition, offset in offsets.items()}
    insert_columns(
        connection,
        postings,
        _POSTING_COLUMNS,
        (
            (
                link.posting_key,
                use.customer_id,
                use.meter_id,
                use.window_start_ms,
                use.quantity,
                modes[use.meter_id],
                link.identifier,
                link.idempotency_key,
                link.timestamp_s,
                link.body,
                read_from[use.partition],
            )
            for link, use in links
        ),
        shared,
    )


def _load_uses(connection: Connection, terms: Sequence[MeterTerms], slots: Sequence[Slot]) -> Iterable[Any]:
    """Each usage row of `slots`, once for each mapping and period it may be posted by: a `_Use` and the period's state.

    The customer is whom it is pinned to, then without a period, or mapped to. What is not there is NULL, as is the
    state of a period that is retired: what was posted in it may be gone.
    """
    event_name = case({meter.meter_id: meter.event_name for meter in terms}, value=usage.c.meter_id)
    window_size_ms = case({meter.meter_id: meter.window_size_ms for meter in terms}, value=usage.c.meter_id)
    uses = select(
        usage.c.meter_id,
        usage.c.window_start_ms,
        usage.c.account,
        usage.c.partition,
        usage.c.quantity,
        usage.c.latest_event_ms,
        func.coalesce(attributions.c.customer_id, mappings.c.customer_id),
        item_periods.c.period_start_ms,
        item_periods.c.period_end_ms,
        case((reconciliations.c.retired_ms.is_(None), item_periods.c.state)),
    ).select_from(
        usage.outerjoin(
            attributions,
            and_(
                attributions.c.account == usage.c.account,
                attributions.c.meter_id == usage.c.meter_id,
                attributions.c.window_start_ms == usage.c.window_start_ms,
            ),
        )
        .outerjoin(
            mappings,
            and_(
                attributions.c.posting_key.is_(None),
                mappings.c.account == usage.c.account,
                mappings.c.from_ms <= usage.c.window_start_ms,
                or_(mappings.c.to_ms.is_(None), mappings.c.to_ms > usage.c.window_start_ms),
            ),
        )
        .outerjoin(
            item_periods,
            and_(
                item_periods.c.customer_id == mappings.c.customer_id,
                item_periods.c.event_name == event_name,
                item_periods.c.period_start_ms < usage.c.window_start_ms + window_size_ms,
                item_periods.c.period_end_ms > usage.c.window_start_ms,
            ),
        )
        .outerjoin(
            reconciliations,
            and_(
                reconciliations.c.customer_id == item_periods.c.customer_id,
                reconciliations.c.event_name == item_periods.c.event_name,
                reconciliations.c.period_start_ms == item_periods.c.period_start_ms,
            ),
        )
    )
    for chunk in key_chunks(connection, slots):
        yield from connection.execute(uses.where(is_slot(connection, usage, chunk)))


def _pick_alone(uses: Iterable[Any]) -> list[_Use]:
    """Those that are all their customer used in a window, with one mapping and one period, which is open."""
    group_of: dict[tuple[int, int, str], tuple[str | None, int, int]] = {}
    alone: dict[tuple[str | None, int, int], _Use | None] = {}
    for row in uses:
        *use, period_state = row
        meter_id, window_start_ms, account, _, _, _, customer_id, _, _ = use
        slot, group = (meter_id, window_start_ms, account), (customer_id, meter_id, window_start_ms)
        if slot in group_of:
            alone[group_of[slot]] = alone[group] = None
            continue
        group_of[slot] = group
        plain = period_state == PeriodState.OPEN and group not in alone
        alone[group] = _Use(*use) if plain else None
    return [use for use in alone.values() if use is not None]
