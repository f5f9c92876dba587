"""The audit trail: what operators have changed by hand.

Owns the rows of `audit`, which are only ever added, in the transaction of the change they tell of. It refuses to know
what the changes are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, insert, select

from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.tables import audit


class AuditAction(StrEnum):
    """What was done."""

    AMEND = "amend"
    RELEASE_POSTING = "release_posting"
    CUTOVER = "cutover"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what to which subject, when (epoch ms) and why."""

    at_ms: int
    who: str
    action: AuditAction
    subject: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


def write_audit(connection: Connection, entry: AuditEntry, audit_id: str | None = None) -> str:
    """Add an entry; returns its id, a random one unless given. Raises ValueError without a name or a reason."""
    if not entry.who.strip() or not entry.reason.strip():
        raise ValueError("an audited change needs a name and a reason")
    audit_id = audit_id or uuid4().hex
    connection.execute(
        insert(audit).values(
            audit_id=audit_id,
            at_ms=entry.at_ms,
            who=entry.who,
            action=str(entry.action),
            subject=entry.subject,
            reason=entry.reason,
            details=dict(entry.details),
        )
    )
    return audit_id


def list_audit(engine: Engine, subject: str | None = None, limit: int = 100) -> list[AuditEntry]:
    """The newest entries first, of one subject or all."""
    wanted = select(audit).order_by(audit.c.at_ms.desc(), audit.c.audit_id).limit(limit)
    if subject is not None:
        wanted = wanted.where(audit.c.subject == subject)
    with read_snapshot(engine) as connection:
        return [
            AuditEntry(row.at_ms, row.who, AuditAction(row.action), row.subject, row.reason, row.details)
            for row in connection.execute(wanted)
        ]
