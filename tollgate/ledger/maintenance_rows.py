"""Rows that leave the ledger by themselves once their time has come and nothing asks for them any more.

Owns the condition of each table. It refuses to know how long anything is kept (`retention.py`) and whatever hangs
together in chains (`maintenance_chains.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
)

from tollgate.ledger.arrays import Upsert, words_of, write_rows
from tollgate.ledger.audit import AuditAction
from tollgate.ledger.chunks import among, key_chunks
from tollgate.ledger.finalizations import DelayState
from tollgate.ledger.inbox import FAILED
from tollgate.ledger.maintenance_work import After, Batch, Work, delete_keys, remove_rows
from tollgate.ledger.posting_rows import AT_STRIPE, UNSETTLED
from tollgate.ledger.retention import DAY_MS
from tollgate.ledger.tables import (
    audit,
    finalization_delays,
    holds,
    invoice_lines,
    invoices,
    item_periods,
    postings,
    progress,
    progress_instances,
    reconciliations,
    rejections,
    seen_ids,
    stripe_inbox,
    usage,
)
from tollgate.metering.seen import oldest_day

ENDED_INSTANCES = "(ended)"
"""The row that ended instances are added up in. No instance is called so: theirs end in a random part."""

_OVER = ("paid", "void", "uncollectible")
"""States in which an invoice has come to its end; an open one is still to be paid."""


# ---------------------------------------------------------------------------------------------- meter


def expire_days(connection: Connection, work: Work, after: After) -> Batch:
    """Remove the ids of event days that no partition's next event can be of, by the time it has counted up to."""
    days = [
        and_(seen_ids.c.partition == row.partition, seen_ids.c.day < oldest_day(row.ingest_ms, work.rules))
        for row in connection.execute(select(progress.c.partition, progress.c.ingest_ms))
    ]
    return remove_rows(connection, work, seen_ids, or_(*days), after) if days else Batch()


def expire_instances(connection: Connection, work: Work, _after: After) -> Batch:
    """Add up instances that ended long ago, on all partitions at once, in one row a partition.

    An instance has ended when on every partition it wrote to a tick of another, counted there, is `instances_days`
    newer than its last sign of life anywhere. One that lost records stays, and so does one that never ticked.
    """
    if not work.before_ms("instances_days"):
        return Batch()
    silence_ms = work.retention.instances_days * DAY_MS
    rows = connection.execute(select(progress_instances)).all()
    newest_ms: dict[int, int] = {}
    last_sign_ms: dict[str, int] = {}
    for row in rows:
        newest_ms[row.partition] = max(newest_ms.get(row.partition, 0), row.tick_ms)
        last_sign_ms[row.instance] = max(last_sign_ms.get(row.instance, 0), row.tick_ms)
    living = {
        row.instance
        for row in rows
        if row.instance == ENDED_INSTANCES
        or last_sign_ms[row.instance] == 0
        or newest_ms[row.partition] - last_sign_ms[row.instance] <= silence_ms
        or row.tick_received < row.tick_acknowledged
    }
    ended = sorted({row.instance for row in rows} - living)
    if work.dry_run:
        return Batch({"progress_instances": sum(row.instance not in living for row in rows)})
    going = ended[: max(1, work.batch_rows // max(1, len(newest_ms)))]
    gone = [row for row in rows if row.instance in set(going)]
    if not gone:
        return Batch()
    removed = _delete_as_read(connection, gone)
    sums: dict[int, list[int]] = {}
    for row in removed:
        total = sums.setdefault(row.partition, [0, 0, 0, 0])
        total[0] += row.rows_received
        total[1] = max(total[1], row.tick_ms)
        total[2] += row.tick_acknowledged
        total[3] += row.tick_received
    columns = {
        "partition": "integer",
        "instance": "text",
        "rows_received": "bigint",
        "tick_ms": "bigint",
        "tick_acknowledged": "bigint",
        "tick_received": "bigint",
    }
    counters = ("rows_received", "tick_acknowledged", "tick_received")
    write_rows(
        connection,
        Upsert(
            "progress_instances",
            columns,
            ("partition", "instance"),
            {
                **{name: f"held.{name} + excluded.{name}" for name in counters},
                "tick_ms": words_of(connection).larger.format("held.tick_ms", "excluded.tick_ms"),
            },
        ),
        {
            "partition": list(sums),
            "instance": [ENDED_INSTANCES] * len(sums),
            "rows_received": [total[0] for total in sums.values()],
            "tick_ms": [total[1] for total in sums.values()],
            "tick_acknowledged": [total[2] for total in sums.values()],
            "tick_received": [total[3] for total in sums.values()],
        },
    )
    return Batch({"progress_instances": len(removed)}, going[-1] if len(going) < len(ended) else None)


def _delete_as_read(connection: Connection, rows: Sequence[Any]) -> list[Any]:
    """Delete these rows of `progress_instances`; those that were still there, as they were then."""
    key = [progress_instances.c.partition, progress_instances.c.instance]
    found: list[Any] = []
    for chunk in key_chunks(connection, [(row.partition, row.instance) for row in rows]):
        gone = delete(progress_instances).where(among(connection, key, chunk)).returning(progress_instances)
        found += connection.execute(gone).all()
    return found


# ------------------------------------------------------------------------------------------- webhooks


def expire_periods(connection: Connection, work: Work, after: After) -> Batch:
    """Remove item periods past `billed_days` in which there is nothing left to place, compare or look up."""
    before_ms = work.before_ms("billed_days")
    if not before_ms:
        return Batch()
    period = item_periods.c
    compared = exists().where(_compared(item_periods))
    emptied = exists().where(_compared(item_periods), reconciliations.c.emptied_ms.is_not(None))
    posted = exists().where(
        postings.c.customer_id == period.customer_id,
        postings.c.timestamp_s * 1000 >= period.period_start_ms,
        postings.c.timestamp_s * 1000 < period.period_end_ms,
    )
    condition = and_(
        period.state != "open",
        period.period_end_ms < before_ms,
        or_(emptied, and_(~compared, ~posted)),
    )
    return remove_rows(connection, work, item_periods, condition, after)


def _compared(periods: Any) -> ColumnElement[bool]:
    return and_(
        reconciliations.c.customer_id == periods.c.customer_id,
        reconciliations.c.event_name == periods.c.event_name,
        reconciliations.c.period_start_ms == periods.c.period_start_ms,
    )


def expire_invoices(connection: Connection, work: Work, after: After) -> Batch:
    """Remove ended invoices past `billed_days` with their lines, once no period they bill is there."""
    before_ms = work.before_ms("billed_days")
    if not before_ms:
        return Batch()
    billed = (
        select(invoice_lines.c.invoice_id)
        .join(
            item_periods,
            and_(
                item_periods.c.customer_id == invoice_lines.c.customer_id,
                item_periods.c.event_name == invoice_lines.c.event_name,
                item_periods.c.period_start_ms == invoice_lines.c.period_start_ms,
            ),
        )
        .where(invoice_lines.c.invoice_id == invoices.c.invoice_id)
        .correlate(invoices)
        .exists()
    )
    wanted = (
        select(invoices.c.invoice_id)
        .where(
            invoices.c.status.in_(_OVER),
            invoices.c.created_ms < before_ms,
            invoices.c.period_end_ms < before_ms,
            ~billed,
        )
        .order_by(invoices.c.invoice_id)
        .limit(work.batch_rows)
    )
    if after is not None:
        wanted = wanted.where(invoices.c.invoice_id > after)
    found = list(connection.execute(wanted).scalars())
    gone: Counter[str] = Counter()
    for chunk in key_chunks(connection, found):
        for table in (invoice_lines, invoices):
            of_them = among(connection, [table.c.invoice_id], [(invoice_id,) for invoice_id in chunk])
            if work.dry_run:
                counted = connection.execute(select(func.count()).select_from(table).where(of_them))
                gone[table.name] += int(counted.scalar_one())
            else:
                gone[table.name] += connection.execute(delete(table).where(of_them)).rowcount
    return Batch(gone, found[-1] if len(found) == work.batch_rows else None)


def expire_inbox(connection: Connection, work: Work, after: After) -> Batch:
    """Remove ids of webhook events that are done, once nobody sends them again."""
    before_ms = work.before_ms("inbox_days")
    condition = and_(
        stripe_inbox.c.projected_ms < before_ms,
        ~stripe_inbox.c.outcome.startswith(FAILED, autoescape=True),
    )
    return remove_rows(connection, work, stripe_inbox, condition, after)


def expire_rejections(connection: Connection, work: Work, after: After) -> Batch:
    """Remove refusals that planning has acted upon."""
    waiting = exists().where(
        postings.c.identifier == rejections.c.identifier,
        postings.c.state.in_([str(state) for state in (*AT_STRIPE, *UNSETTLED)]),
    )
    condition = and_(rejections.c.reported_ms < work.before_ms("rejections_days"), ~waiting)
    return remove_rows(connection, work, rejections, condition, after)


# ---------------------------------------------------------------------------------------- stripe_sync


def expire_holds(connection: Connection, work: Work, after: After) -> Batch:
    """Remove holds whose usage is gone."""
    before_ms = work.before_ms("unbilled_days")
    used = exists().where(
        usage.c.account == holds.c.account,
        usage.c.meter_id == holds.c.meter_id,
        usage.c.window_start_ms == holds.c.window_start_ms,
    )
    condition = and_(holds.c.window_start_ms < before_ms, ~used)
    return remove_rows(connection, work, holds, condition, after) if before_ms else Batch()


def expire_delays(connection: Connection, work: Work, after: After) -> Batch:
    """Remove what was done about drafts whose invoice is gone."""
    gone = ~exists().where(invoices.c.invoice_id == finalization_delays.c.invoice_id)
    condition = and_(
        finalization_delays.c.since_ms < work.before_ms("billed_days"),
        finalization_delays.c.state != str(DelayState.DELAYED),
        gone,
    )
    return remove_rows(connection, work, finalization_delays, condition, after)


def expire_evidence(connection: Connection, work: Work, after: After) -> Batch:
    """Remove results of reconciliations whose period has left nothing else behind."""
    condition = and_(
        reconciliations.c.emptied_ms.is_not(None),
        reconciliations.c.period_end_ms < work.before_ms("evidence_days"),
        ~exists().where(_compared(item_periods)),
    )
    return remove_rows(connection, work, reconciliations, condition, after)


# ------------------------------------------------------------------------------------------ catalogue


def expire_audit(connection: Connection, work: Work, after: After) -> Batch:
    """Remove audit entries past `audit_days`, but those planning reads: amendments of usage that is there, releases of
    postings that are."""
    before_ms = work.before_ms("audit_days")
    if not before_ms:
        return Batch()
    wanted = (
        select(audit.c.audit_id, audit.c.action, audit.c.subject)
        .where(audit.c.at_ms < before_ms)
        .order_by(audit.c.audit_id)
        .limit(work.batch_rows)
    )
    if after is not None:
        wanted = wanted.where(audit.c.audit_id > after)
    found = connection.execute(wanted).all()
    going = [(row.audit_id,) for row in found if not _is_read(connection, row.action, row.subject)]
    removed = len(going) if work.dry_run else delete_keys(connection, audit, going)
    return Batch({"audit": removed}, found[-1].audit_id if len(found) == work.batch_rows else None)


def _is_read(connection: Connection, action: str, subject: str) -> bool:
    if action == AuditAction.AMEND:
        meter_id, window_start_ms, account = subject.split("/", 2)
        there = select(usage.c.account).where(
            usage.c.account == account,
            usage.c.meter_id == int(meter_id),
            usage.c.window_start_ms == int(window_start_ms),
        )
    elif action == AuditAction.RELEASE_POSTING:
        there = select(postings.c.posting_key).where(postings.c.posting_key == subject)
    else:
        # Something this version does not know: whoever reads it may still do.
        return True
    return connection.execute(there.limit(1)).first() is not None
