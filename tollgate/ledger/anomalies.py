"""Postings far above what their customer used before: found while planning, let go by an operator.

Owns the reading of what they are compared with, and their release. It refuses to know the rule
(`tollgate.metering.anomaly`, through the planning rules) and how a link is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from sqlalchemy import Connection, Engine, and_, func, select, update

from tollgate.ledger.attribution import Claim
from tollgate.ledger.audit import AuditAction, AuditEntry, write_audit
from tollgate.ledger.chunks import chunks
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.plan_rows import MeterTerms, NextLink
from tollgate.ledger.plan_rules import PlanRules
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.tables import attributions, audit, mappings, postings, usage
from tollgate.ledger.types import EXACT

ANOMALY = "anomaly"
"""How the reason of a posting begins that is parked for this."""

PARKED_AS_ANOMALY = and_(
    postings.c.state == PostingState.PARKED, func.coalesce(postings.c.error, "").startswith(f"{ANOMALY}:")
)
"""Whether a row of `postings` waits for such a release."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A link that planning has decided on."""

    key: str
    claim: Claim
    link: NextLink


def park_anomalies(
    connection: Connection, rules: PlanRules, terms: Mapping[int, MeterTerms], decided: Sequence[Decided]
) -> dict[str, NextLink]:
    """By posting key, the links among `decided` that are far above the weeks before, now parked.

    Windows are judged in their order, and one that is parked, now or before, is no measure for those after it. A chain
    that an operator has released once is not judged again. Only suspects cost anything.
    """
    suspects = []
    for entry in decided:
        history_ms = rules.suspects(entry.claim.terms, entry.link)
        if history_ms is not None:
            suspects.append((entry.claim.placement.scope_start_ms, entry, history_ms))
    parked: dict[str, NextLink] = {}
    released = _released(connection, [entry.key for _, entry, _ in suspects])
    for start_ms, entry, history_ms in sorted(suspects, key=lambda suspect: (suspect[0], suspect[1].key)):
        if entry.key in released:
            continue
        claim = entry.claim
        same_meter = [m for m, other in terms.items() if other.event_name == claim.terms.event_name]
        left_out = {*parked, *_parked_keys(connection, claim.customer_id, same_meter)}
        trailing = _trailing(connection, claim, same_meter, (start_ms - history_ms, start_ms), left_out)
        reason = rules.judge_anomaly(entry.link, start_ms, trailing)
        if reason is not None:
            parked[entry.key] = replace(entry.link, park_reason=f"{ANOMALY}: {reason}")
    return parked


def _released(connection: Connection, keys: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for chunk in chunks(sorted(keys)):
        found.update(
            connection.execute(
                select(audit.c.subject).where(
                    audit.c.action == AuditAction.RELEASE_POSTING, audit.c.subject.in_(chunk)
                )
            ).scalars()
        )
    return found


def _parked_keys(connection: Connection, customer_id: str, meter_ids: Sequence[int]) -> set[str]:
    rows = connection.execute(
        select(postings.c.posting_key).where(
            postings.c.customer_id == customer_id, postings.c.meter_id.in_(meter_ids), PARKED_AS_ANOMALY
        )
    )
    return set(rows.scalars())


def _trailing(
    connection: Connection,
    claim: Claim,
    meter_ids: Sequence[int],
    span_ms: tuple[int, int],
    left_out: set[str],
) -> dict[int, Decimal]:
    """What the customer used, by window start, of the windows in `[from, to)` that belong to it."""
    mapped = connection.execute(
        select(mappings.c.account).where(mappings.c.customer_id == claim.customer_id)
    ).scalars()
    accounts = {*mapped, *(slot.account for slot in claim.slots)}
    found: dict[int, Decimal] = {}
    same_slot = and_(
        attributions.c.meter_id == usage.c.meter_id,
        attributions.c.window_start_ms == usage.c.window_start_ms,
        attributions.c.account == usage.c.account,
    )
    for chunk in chunks(sorted(accounts)):
        rows = connection.execute(
            select(usage.c.window_start_ms, usage.c.quantity, attributions.c.posting_key)
            .join_from(usage, attributions, same_slot)
            .where(
                usage.c.account.in_(chunk),
                usage.c.meter_id.in_(meter_ids),
                usage.c.window_start_ms >= span_ms[0],
                usage.c.window_start_ms < span_ms[1],
                attributions.c.customer_id == claim.customer_id,
            )
        )
        for row in rows:
            if row.posting_key not in left_out:
                before = found.get(row.window_start_ms, Decimal(0))
                found[row.window_start_ms] = EXACT.add(before, row.quantity)
    return found


def release_anomaly(engine: Engine, posting_key: str, who: str, reason: str, now_ms: int) -> int | None:
    """Let a chain's anomalous posting go, on an operator's word; returns its sequence number, None without one.

    The chain is not judged again. Raises ValueError without a name or a reason.
    """
    with ledger_transaction(engine) as connection:
        released = connection.execute(
            update(postings)
            .where(postings.c.posting_key == posting_key, PARKED_AS_ANOMALY)
            .values(state=str(PostingState.PLANNED), error=None, retry_ms=None)
            .returning(
                postings.c.seq, postings.c.customer_id, postings.c.quantity_from, postings.c.quantity_to
            )
        ).all()
        if not released:
            return None
        row = released[0]
        details = {
            "seq": row.seq,
            "customer": row.customer_id,
            "from": str(row.quantity_from),
            "to": str(row.quantity_to),
        }
        write_audit(
            connection,
            AuditEntry(now_ms, who, AuditAction.RELEASE_POSTING, posting_key, reason, details),
        )
        return int(row.seq)


def count_anomalies(engine: Engine) -> int:
    """Postings that wait for such a release."""
    with read_snapshot(engine) as connection:
        return int(
            connection.execute(
                select(func.count()).select_from(postings).where(PARKED_AS_ANOMALY)
            ).scalar_one()
        )
