"""Amendments as the ledger knows them: what one would meet, that it was asked for, and what it may take back.

Owns the audit entries of amendments. It refuses to know the log they travel on and how they are counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Connection, Engine, and_, or_, select

from tollgate.ledger.audit import AuditAction, AuditEntry, write_audit
from tollgate.ledger.billing import PeriodState
from tollgate.ledger.chunks import chunks
from tollgate.ledger.closed_bills import POLICIES
from tollgate.ledger.controls import read_controls
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.plan_rows import Slot
from tollgate.ledger.tables import attributions, audit, item_periods, mappings, meters, usage
from tollgate.ledger.types import EXACT, format_quantity
from tollgate.metering.closed import ClosedPolicy


@dataclass(frozen=True, slots=True)
class AmendmentSite:
    """What an amendment would meet."""

    account_known: bool
    """The account has usage of some meter, or a customer."""
    counted: Decimal
    """The window's quantity so far."""
    customer_id: str | None
    """Who pays for the window; None without exactly one."""
    final: bool
    """The invoice of the customer's period around that time is final, and no other period there is open."""
    policy: ClosedPolicy | None
    """What planning does with usage for a final invoice; None before it has ever planned this meter."""


def inspect_site(engine: Engine, slot: Slot, time_ms: int, event_name: str | None) -> AmendmentSite:
    """What an amendment of `slot` at `time_ms` would meet. `event_name`: of its Billing Meter, if any."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(
            select(usage.c.quantity).where(
                usage.c.account == slot.account,
                usage.c.meter_id == slot.meter_id,
                usage.c.window_start_ms == slot.window_start_ms,
            )
        ).scalars()
        counted = Decimal(0)
        for quantity in rows:
            counted = EXACT.add(counted, quantity)
        customer_id = _payer(connection, slot)
        states: set[str] = set()
        if customer_id is not None and event_name is not None:
            states = set(
                connection.execute(
                    select(item_periods.c.state).where(
                        item_periods.c.customer_id == customer_id,
                        item_periods.c.event_name == event_name,
                        item_periods.c.period_start_ms <= time_ms,
                        item_periods.c.period_end_ms > time_ms,
                    )
                ).scalars()
            )
        policies = json.loads(read_controls(connection).get(POLICIES, "{}"))
        policy = policies.get(str(slot.meter_id))
        return AmendmentSite(
            account_known=_is_known(connection, slot.account),
            counted=counted,
            customer_id=customer_id,
            final=PeriodState.CLOSED in states and PeriodState.OPEN not in states,
            policy=None if policy is None else ClosedPolicy(policy),
        )


def _payer(connection: Connection, slot: Slot) -> str | None:
    pinned = connection.execute(
        select(attributions.c.customer_id).where(
            attributions.c.meter_id == slot.meter_id,
            attributions.c.window_start_ms == slot.window_start_ms,
            attributions.c.account == slot.account,
        )
    ).scalar()
    if pinned is not None:
        return str(pinned)
    mapped = set(
        connection.execute(
            select(mappings.c.customer_id).where(
                mappings.c.account == slot.account,
                mappings.c.from_ms <= slot.window_start_ms,
                or_(mappings.c.to_ms.is_(None), mappings.c.to_ms > slot.window_start_ms),
            )
        ).scalars()
    )
    return mapped.pop() if len(mapped) == 1 else None


def _is_known(connection: Connection, account: str) -> bool:
    counted = select(usage.c.account).where(usage.c.account == account).limit(1)
    mapped = select(mappings.c.account).where(mappings.c.account == account).limit(1)
    return connection.execute(counted).first() is not None or connection.execute(mapped).first() is not None


def note_amendment(
    engine: Engine,
    amendment_id: str,
    slot: Slot,
    quantity: Decimal,
    who: str,
    reason: str,
    now_ms: int,
) -> bool:
    """Enter an amendment in the audit trail before it goes to the log; False when it is there already.

    Raises ValueError without a name or a reason, and when the id is that of another amendment.
    """
    entry = AuditEntry(
        at_ms=now_ms,
        who=who,
        action=AuditAction.AMEND,
        subject=_subject(slot),
        reason=reason,
        details={"quantity": format_quantity(quantity)},
    )
    with ledger_transaction(engine) as connection:
        there = connection.execute(select(audit).where(audit.c.audit_id == amendment_id)).first()
        if there is None:
            write_audit(connection, entry, amendment_id)
            return True
        if (there.subject, there.details) != (entry.subject, entry.details):
            raise ValueError(f"{amendment_id} is another amendment: {there.subject}, {there.details}")
        return False


@dataclass(frozen=True, slots=True)
class AskedAmendment:
    """An amendment of the audit trail: it is on the log, or its sending failed and it may never be."""

    meter: str
    account: str
    window_start_ms: int
    quantity: Decimal


def list_amendments(engine: Engine) -> list[AskedAmendment]:
    """Every amendment that was ever asked for, the oldest first."""
    with read_snapshot(engine) as connection:
        names = {
            row.meter_id: row.name for row in connection.execute(select(meters.c.meter_id, meters.c.name))
        }
        rows = connection.execute(
            select(audit.c.subject, audit.c.details)
            .where(audit.c.action == AuditAction.AMEND)
            .order_by(audit.c.at_ms, audit.c.audit_id)
        ).all()
    found = []
    for row in rows:
        meter_id, window_start_ms, account = row.subject.split("/", 2)
        quantity = Decimal(row.details["quantity"])
        found.append(AskedAmendment(names.get(int(meter_id), ""), account, int(window_start_ms), quantity))
    return found


def load_taken_back(connection: Connection, slots: Collection[Slot]) -> dict[Slot, Decimal]:
    """How much operators have taken back of each slot: the sum of its negative amendments, absent where none is."""
    by_subject = {_subject(slot): slot for slot in slots}
    found: dict[Slot, Decimal] = defaultdict(Decimal)
    for chunk in chunks(sorted(by_subject)):
        rows = connection.execute(
            select(audit.c.subject, audit.c.details).where(
                and_(audit.c.action == AuditAction.AMEND, audit.c.subject.in_(chunk))
            )
        )
        for row in rows:
            quantity = Decimal(row.details["quantity"])
            if quantity < 0:
                slot = by_subject[row.subject]
                found[slot] = EXACT.add(found[slot], quantity)
    return dict(found)


def _subject(slot: Slot) -> str:
    return f"{slot.meter_id}/{slot.window_start_ms}/{slot.account}"
