"""Usage as reconciliation sees it: what chains amount to, and what of it no posting covers.

Owns adding usage rows up again, by itself and not by the planning rules, so that a fault of theirs shows. It refuses
to know invoices and Stripe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, and_, func, select

from tollgate.ledger.chunks import chunks
from tollgate.ledger.controls import read_controls
from tollgate.ledger.plan_rows import HoldReason, MeterTerms
from tollgate.ledger.tables import attributions, distinct_values, holds, mappings, plan_cursors, usage
from tollgate.metering.metric import COMBINE_ADD, MetricKind
from tollgate.metering.reconciliation import EXACT, NOTHING, Link, Missing, Standing, Subject, add_up

_CATCHING_UP = ("journal_wait:", "scan:")
"""Controls that say planning has not looked at everything yet: after a restore, or after a meter was switched on."""


def load_slots(connection: Connection, subject: Subject, terms: Mapping[int, MeterTerms]) -> list[Row[Any]]:
    """Usage rows of the customer's accounts whose window touches the period, pinned to it or to nobody yet."""
    if not terms:
        return []
    validity = defaultdict(list)
    for row in connection.execute(select(mappings).where(mappings.c.customer_id == subject.customer_id)):
        validity[row.account].append((row.from_ms, row.to_ms))
    widest_ms = max(meter.window_size_ms for meter in terms.values())
    found: list[Row[Any]] = []
    for accounts in chunks(sorted(validity)):
        rows = connection.execute(
            _usage_columns().where(
                usage.c.account.in_(accounts),
                usage.c.meter_id.in_(list(terms)),
                usage.c.window_start_ms > subject.period_start_ms - widest_ms,
                usage.c.window_start_ms < subject.period_end_ms,
            )
        )
        for row in rows:
            pinned_here = row.pinned_to == subject.customer_id
            mapped_here = row.pinned_to is None and any(
                from_ms <= row.window_start_ms and (to_ms is None or row.window_start_ms < to_ms)
                for from_ms, to_ms in validity[row.account]
            )
            if pinned_here or mapped_here:
                found.append(row)
    return found


def _usage_columns() -> Any:
    def same_slot(table: Any) -> Any:
        return and_(
            table.c.meter_id == usage.c.meter_id,
            table.c.window_start_ms == usage.c.window_start_ms,
            table.c.account == usage.c.account,
        )

    return (
        select(
            usage,
            attributions.c.customer_id.label("pinned_to"),
            attributions.c.posting_key,
            plan_cursors.c.planned_offset,
            holds.c.reason,
        )
        .select_from(usage)
        .outerjoin(attributions, same_slot(attributions))
        .outerjoin(holds, same_slot(holds))
        .outerjoin(plan_cursors, plan_cursors.c.partition == usage.c.partition)
    )


def load_missing(
    connection: Connection,
    subject: Subject,
    terms: Mapping[int, MeterTerms],
    slots: Sequence[Row[Any]],
    links: Mapping[str, Sequence[Link]],
) -> list[Missing]:
    """Per chain that ends in the period, and per reason for slots of none, the usage that no posting covers."""
    catching_up = any(name.startswith(_CATCHING_UP) for name in read_controls(connection))
    pinned = {row.posting_key for row in slots if row.posting_key is not None}
    rows_of = _chain_rows(connection, sorted({*links, *pinned}))
    distinct = _chain_distinct(connection, sorted(rows_of))
    found = []
    for key, rows in sorted(rows_of.items()):
        chain = links.get(key, ())
        ends_ms = chain[-1].stamp_s * 1000 if chain else max(row.latest_event_ms for row in rows)
        if not subject.period_start_ms <= ends_ms < subject.period_end_ms:
            continue
        meter = terms[rows[0].meter_id]
        unique = meter.kind is MetricKind.UNIQUE
        used = Decimal(distinct.get(key, 0)) if unique else _combined(meter.kind, rows)
        # Void links and the reversals that took them back cancel out; what is left of them is owed again.
        covered = add_up(
            link.quantity for link in chain if link.standing not in (Standing.VOID, Standing.REVERSAL)
        )
        found.append(_part(key, meter, EXACT.subtract(used, covered), rows, catching_up))
    for key in sorted(links.keys() - rows_of.keys()):
        chain = links[key]
        if subject.period_start_ms <= chain[-1].stamp_s * 1000 < subject.period_end_ms:
            covered = add_up(
                link.quantity for link in chain if link.standing not in (Standing.VOID, Standing.REVERSAL)
            )
            # Nobody's usage is pinned to it: after a restore, until its usage has been counted and planned again.
            found.append(Missing(key, -covered, None, due=not catching_up))
    return found + _unpinned(subject, terms, slots, catching_up)


def _unpinned(
    subject: Subject, terms: Mapping[int, MeterTerms], slots: Sequence[Row[Any]], catching_up: bool
) -> list[Missing]:
    groups: dict[tuple[int, str | None], list[Row[Any]]] = defaultdict(list)
    for row in slots:
        here = subject.period_start_ms <= row.latest_event_ms < subject.period_end_ms
        if row.posting_key is None and here:
            groups[row.meter_id, row.reason].append(row)
    return [
        _part("", terms[meter_id], _combined(terms[meter_id].kind, rows), rows, catching_up)
        for (meter_id, _), rows in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] or ""))
    ]


def _part(
    key: str, meter: MeterTerms, quantity: Decimal, rows: Sequence[Row[Any]], catching_up: bool
) -> Missing:
    reasons = sorted({row.reason for row in rows if row.reason not in (None, HoldReason.IN_FLIGHT)})
    in_flight = any(row.reason == HoldReason.IN_FLIGHT for row in rows)
    planned = all(row.changed_offset <= (row.planned_offset or 0) for row in rows)
    reason = ", ".join(reasons) or ("send is off" if meter.send == "off" else None)
    return Missing(key, quantity, reason, due=planned and not in_flight and not catching_up)


def _chain_rows(connection: Connection, keys: Sequence[str]) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = defaultdict(list)
    for chunk in chunks(keys):
        for row in connection.execute(_usage_columns().where(attributions.c.posting_key.in_(chunk))):
            found[row.posting_key].append(row)
    return found


def _chain_distinct(connection: Connection, keys: Sequence[str]) -> dict[str, int]:
    same_slot = and_(
        distinct_values.c.meter_id == attributions.c.meter_id,
        distinct_values.c.window_start_ms == attributions.c.window_start_ms,
        distinct_values.c.account == attributions.c.account,
    )
    found: dict[str, int] = {}
    for chunk in chunks(keys):
        rows = connection.execute(
            select(attributions.c.posting_key, func.count(distinct_values.c.value_hash.distinct()))
            .join_from(attributions, distinct_values, same_slot)
            .where(attributions.c.posting_key.in_(chunk))
            .group_by(attributions.c.posting_key)
        )
        found |= {row[0]: int(row[1]) for row in rows}
    return found


def _combined(kind: MetricKind, rows: Iterable[Row[Any]]) -> Decimal:
    """Usage rows as one quantity. `unique` over several slots without a chain is an upper bound."""
    if kind.combine == COMBINE_ADD or kind is MetricKind.UNIQUE:
        return add_up(row.quantity for row in rows)
    valued = [row for row in rows if row.events]
    if not valued:
        return NOTHING
    if kind is MetricKind.LATEST:
        last = max(valued, key=lambda row: (row.order_ms, row.partition, row.order_offset))
        return Decimal(last.quantity)
    quantities = [row.quantity for row in valued]
    return Decimal(max(quantities) if kind is MetricKind.MAX else min(quantities))
