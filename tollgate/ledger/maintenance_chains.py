"""Usage and postings that leave the ledger together: whole chains of retired periods, and usage nobody was asked to pay.

Owns when a period is retired, which chains are over, and their removal in an order in which the law holds after every
transaction. It refuses to know how long anything is kept (`retention.py`).

Usage belongs to the meter and postings to stripe_sync, so no transaction removes both. Therefore:

1. stripe_sync marks a period `retired`: billed, reconciled, and past its time. From then on planning places nothing in
   it and reconciliation leaves it alone. The mark moves the lease's row, so that a planning transaction that began
   before it either ends before it or is refused.
2. The meter removes the usage of chains whose every link lies in retired periods and is settled, with nothing held and
   nothing unplanned, and adds it to `usage_retired`.
3. stripe_sync removes such chains once they have no usage, links and pins together, and notes the period `emptied`
   when its last link has gone.

Usage that comes for a retired window afterwards (an amendment, an event replayed in spite of its age) is counted, and
held as `no_item`: visible, and never posted against a chain that is no longer there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)

from tollgate.ledger.billing import FINALIZED_STATUSES
from tollgate.ledger.chunks import among, is_slot, key_chunks
from tollgate.ledger.maintenance_work import After, Batch, Work, delete_keys
from tollgate.ledger.meter_terms import load_terms
from tollgate.ledger.plan_rows import Slot
from tollgate.ledger.posting_rows import UNSETTLED
from tollgate.ledger.retired import book_retired, read_kinds, sum_usage
from tollgate.ledger.tables import (
    attributions,
    distinct_values,
    holds,
    item_periods,
    leases,
    plan_cursors,
    postings,
    reconciliations,
    usage,
)
from tollgate.metering.errors import InvariantViolated
from tollgate.metering.metric import MetricKind
from tollgate.metering.reconciliation import Verdict

_DONE = (Verdict.AGREES, Verdict.EXPLAINED)
"""Verdicts with which a billed period's comparison has come to its end."""

_CHAINS_A_LOOK = 2_000
"""Chains looked at in one go."""


class _Period(NamedTuple):
    customer_id: str
    event_name: str
    period_start_ms: int
    period_end_ms: int


# ------------------------------------------------------------------------------------------- periods


def _retirable(work: Work) -> ColumnElement[bool]:
    """Whether a row of `reconciliations` says that its period is over and done with."""
    row = reconciliations.c
    still_open = exists().where(
        item_periods.c.customer_id == row.customer_id,
        item_periods.c.event_name == row.event_name,
        item_periods.c.period_start_ms == row.period_start_ms,
        item_periods.c.state == "open",
    )
    return and_(
        row.retired_ms.is_(None),
        row.period_end_ms < work.before_ms("billed_days"),
        row.due_ms.is_(None),
        row.verdict.in_([str(verdict) for verdict in _DONE]),
        func.coalesce(row.invoice_status, "").in_(sorted(FINALIZED_STATUSES)),
        ~still_open,
    )


def waiting_periods(connection: Connection, work: Work) -> int:
    """Reconciled periods past their time that may not be retired: not billed, or not said and done."""
    row = reconciliations.c
    past = and_(row.retired_ms.is_(None), row.period_end_ms < work.before_ms("billed_days"))
    statement = select(func.count()).select_from(reconciliations).where(past, ~_retirable(work))
    return int(connection.execute(statement).scalar_one())


def mark_periods(connection: Connection, work: Work, after: After) -> Batch:
    """Retire periods, some at a time: step 1."""
    if not work.before_ms("billed_days"):
        return Batch()
    if not work.dry_run:
        first = select(reconciliations.c.customer_id).where(_retirable(work)).limit(1)
        if connection.execute(first).first() is None:
            return Batch()
        # A plan that began before this transaction saw the period unretired: its fence finds the row moved.
        connection.execute(update(leases).values(version=leases.c.version))
    key = [reconciliations.c.customer_id, reconciliations.c.event_name, reconciliations.c.period_start_ms]
    wanted = select(*key).where(_retirable(work)).order_by(*key).limit(work.batch_rows)
    if after is not None:
        wanted = wanted.where(tuple_(*key) > tuple_(*after))
    found = [tuple(row) for row in connection.execute(wanted)]
    if not work.dry_run:
        for chunk in key_chunks(connection, found):
            connection.execute(
                update(reconciliations).where(among(connection, key, chunk)).values(retired_ms=work.now_ms)
            )
    return Batch({}, found[-1] if len(found) == work.batch_rows else None, retired=len(found))


def _is_retired(work: Work) -> ColumnElement[bool]:
    """Whether a row of `reconciliations` is retired; in a dry run, whether it would be."""
    retired = reconciliations.c.retired_ms.is_not(None)
    return or_(retired, _retirable(work)) if work.dry_run else retired


def _next_period(connection: Connection, work: Work, after: _Period | None) -> _Period | None:
    row = reconciliations.c
    key = (row.customer_id, row.event_name, row.period_start_ms)
    wanted = (
        select(*key, row.period_end_ms)
        .where(row.emptied_ms.is_(None), _is_retired(work))
        .order_by(*key)
        .limit(1)
    )
    if after is not None:
        wanted = wanted.where(tuple_(*key) > tuple_(*after[:3]))
    found = connection.execute(wanted).first()
    return None if found is None else _Period(*found)


# -------------------------------------------------------------------------------------------- chains


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a walk over the chains of retired periods stands."""

    period: _Period
    meter: int = 0
    """Of the period's meters, by number."""
    beyond: tuple[int, str] | None = None
    """Window start and posting key of the last chain looked at."""
    kept: bool = False
    """A chain of the period has stayed."""


@dataclass(frozen=True, slots=True)
class _Chains:
    """What one look found: chains that are over, and what each has."""

    keys: Sequence[str]
    usage_rows: Mapping[str, int]


_Remove = Callable[[Connection, Work, Sequence[str]], Counter[str]]


def retire_usage(connection: Connection, work: Work, after: After) -> Batch:
    """Remove usage of chains that are over: step 2."""

    def removable(found: _Chains) -> list[str]:
        return [key for key in found.keys if found.usage_rows[key]]

    return _walk(connection, work, after, removable, _remove_usage)


def retire_postings(connection: Connection, work: Work, after: After) -> Batch:
    """Remove chains without usage, and note the periods that have none left: step 3."""

    def removable(found: _Chains) -> list[str]:
        # In a dry run step 2 has removed nothing.
        return [key for key in found.keys if work.dry_run or not found.usage_rows[key]]

    return _walk(connection, work, after, removable, _remove_chains, empty=True)


def _walk(
    connection: Connection,
    work: Work,
    after: _Place | None,
    removable: Callable[[_Chains], list[str]],
    remove: _Remove,
    *,
    empty: bool = False,
) -> Batch:
    """Look at the chains stamped in retired periods, in order, until `batch_rows` have gone or were looked at."""
    meter_ids: dict[str, list[int]] = {}
    for meter_id, terms in sorted(load_terms(connection).items()):
        meter_ids.setdefault(terms.event_name, []).append(meter_id)
    rows: Counter[str] = Counter()
    looked = 0
    place = after
    if place is None:
        first = _next_period(connection, work, None)
        if first is None:
            return Batch()
        place = _Place(first)
    while max(rows.total(), looked) < work.batch_rows:
        looked += 1
        ids = meter_ids.get(place.period.event_name, [])
        if place.meter == len(ids):
            if empty and not place.kept and not work.dry_run:
                _note_emptied(connection, work, place.period)
            following = _next_period(connection, work, place.period)
            if following is None:
                return Batch(rows)
            place = _Place(following)
            continue
        limit = min(_CHAINS_A_LOOK, work.batch_rows)
        chains = _stamped(connection, place, ids[place.meter], limit)
        ended = len(chains) < limit
        over = _over(connection, work, place.period, [key for _, key in chains])
        going = removable(over)
        allowed = work.batch_rows - rows.total()
        cut = _cut(going, over.usage_rows, allowed)
        kept = place.kept or len(over.keys) < len(chains) or (empty and len(going) < len(chains))
        if len(cut) < len(going):
            # Go on behind the last one that fits; those before it that stay have been looked at.
            beyond = next(chain for chain in chains if chain[1] == cut[-1])
            place = _Place(place.period, place.meter, beyond, kept)
        elif ended:
            place = _Place(place.period, place.meter + 1, None, kept)
        else:
            place = _Place(place.period, place.meter, chains[-1], kept)
        looked += len(chains)
        if cut:
            rows += remove(connection, work, cut)
    return Batch(rows, place)


def _cut(keys: Sequence[str], sizes: Mapping[str, int], rows_max: int) -> Sequence[str]:
    """As many of `keys` as have `rows_max` rows in all, and one at least."""
    total = 0
    for number, key in enumerate(keys):
        total += max(1, sizes[key])
        if total > rows_max:
            return keys[: max(1, number)]
    return keys


def _stamped(connection: Connection, place: _Place, meter_id: int, limit: int) -> list[tuple[int, str]]:
    """Window start and key of chains of one meter with a link stamped in the period."""
    period = place.period
    where = [
        postings.c.customer_id == period.customer_id,
        postings.c.meter_id == meter_id,
        postings.c.window_start_ms < period.period_end_ms,
        _stamp_ms() >= period.period_start_ms,
        _stamp_ms() < period.period_end_ms,
    ]
    chain = (postings.c.window_start_ms, postings.c.posting_key)
    if place.beyond is not None:
        # The plain bound is what an index is searched by.
        where += [postings.c.window_start_ms >= place.beyond[0], tuple_(*chain) > tuple_(*place.beyond)]
    wanted = select(*chain).where(*where).distinct().order_by(*chain).limit(limit)
    return [(row.window_start_ms, row.posting_key) for row in connection.execute(wanted)]


def _stamp_ms() -> ColumnElement[int]:
    return postings.c.timestamp_s * 1000


def _over(connection: Connection, work: Work, period: _Period, keys: Sequence[str]) -> _Chains:
    """Those of `keys` nothing of which may change any more.

    Every link is settled and stamped in a retired period, no slot is held, and planning has read all usage.
    """
    stays: set[str] = set()
    usage_rows: dict[str, int] = {}
    in_retired = exists().where(
        reconciliations.c.customer_id == postings.c.customer_id,
        reconciliations.c.event_name == period.event_name,
        reconciliations.c.period_start_ms <= _stamp_ms(),
        reconciliations.c.period_end_ms > _stamp_ms(),
        _is_retired(work),
    )
    for chunk in key_chunks(connection, keys):
        links = among(connection, [postings.c.posting_key], [(key,) for key in chunk])
        unsettled = postings.c.state.in_([str(state) for state in UNSETTLED])
        stays.update(
            connection.execute(
                select(postings.c.posting_key).where(links, or_(unsettled, ~in_retired)).distinct()
            ).scalars()
        )
        pins = among(connection, [attributions.c.posting_key], [(key,) for key in chunk])
        stays.update(
            connection.execute(
                select(attributions.c.posting_key)
                .join_from(attributions, holds, _same_slot(holds))
                .where(pins)
                .distinct()
            ).scalars()
        )
        unplanned = case((usage.c.changed_offset > func.coalesce(plan_cursors.c.planned_offset, 0), 1))
        for row in connection.execute(
            select(
                attributions.c.posting_key,
                func.count(usage.c.account).label("usage_rows"),
                func.count(unplanned).label("unplanned"),
            )
            .select_from(attributions)
            .outerjoin(usage, _same_slot(usage))
            .outerjoin(plan_cursors, plan_cursors.c.partition == usage.c.partition)
            .where(pins)
            .group_by(attributions.c.posting_key)
        ):
            usage_rows[row.posting_key] = row.usage_rows
            if row.unplanned:
                stays.add(row.posting_key)
    # A chain without pins is one whose usage is not known: after a restore, until it has been planned again.
    return _Chains([key for key in keys if key in usage_rows and key not in stays], usage_rows)


def _same_slot(table: FromClause) -> ColumnElement[bool]:
    return and_(
        table.c.account == attributions.c.account,
        table.c.meter_id == attributions.c.meter_id,
        table.c.window_start_ms == attributions.c.window_start_ms,
    )


def _note_emptied(connection: Connection, work: Work, period: _Period) -> None:
    connection.execute(
        update(reconciliations)
        .where(
            reconciliations.c.customer_id == period.customer_id,
            reconciliations.c.event_name == period.event_name,
            reconciliations.c.period_start_ms == period.period_start_ms,
        )
        .values(emptied_ms=work.now_ms)
    )


def _remove_usage(connection: Connection, work: Work, keys: Sequence[str]) -> Counter[str]:
    slots = []
    for chunk in key_chunks(connection, keys):
        pins = among(connection, [attributions.c.posting_key], [(key,) for key in chunk])
        wanted = select(attributions.c.meter_id, attributions.c.window_start_ms, attributions.c.account)
        slots += [Slot(*row) for row in connection.execute(wanted.where(pins))]
    return _remove_slots(connection, work, slots)


def _remove_slots(connection: Connection, work: Work, slots: Sequence[Slot]) -> Counter[str]:
    """Remove all usage of `slots` and what their unique metrics have seen, and book what goes."""
    kinds = read_kinds(connection)
    gone: Counter[str] = Counter()
    for chunk in key_chunks(connection, sorted(slots)):
        of_them = is_slot(connection, usage, chunk)
        sums = sum_usage(connection, kinds, of_them)
        expected = sum(row.usage_rows for row in sums)
        unique = [slot for slot in chunk if kinds[slot.meter_id] is MetricKind.UNIQUE]
        gone["usage"] += expected
        if work.dry_run:
            if unique:
                seen = is_slot(connection, distinct_values, unique)
                counted = connection.execute(select(func.count()).select_from(distinct_values).where(seen))
                gone["distinct_values"] += int(counted.scalar_one())
            continue
        book_retired(connection, sums)
        removed = connection.execute(delete(usage).where(of_them)).rowcount
        if removed != expected:
            # The snapshot holds still, so this would be a database that does not.
            raise InvariantViolated(f"{expected} usage rows were to be removed, {removed} were")
        if unique:
            seen = is_slot(connection, distinct_values, unique)
            gone["distinct_values"] += connection.execute(delete(distinct_values).where(seen)).rowcount
    return gone


def _remove_chains(connection: Connection, work: Work, keys: Sequence[str]) -> Counter[str]:
    gone: Counter[str] = Counter()
    for chunk in key_chunks(connection, keys):
        for table in (postings, attributions):
            of_them = among(connection, [table.c.posting_key], [(key,) for key in chunk])
            if work.dry_run:
                counted = connection.execute(select(func.count()).select_from(table).where(of_them))
                gone[table.name] += int(counted.scalar_one())
            else:
                gone[table.name] += connection.execute(delete(table).where(of_them)).rowcount
    return gone


# ------------------------------------------------------------------------------------------ no chain


def retire_unbilled(connection: Connection, work: Work, after: After) -> Batch:
    """Remove usage past `unbilled_days` of which nothing was ever posted: held, of quantity zero, or not sent at all."""
    before_ms = work.before_ms("unbilled_days")
    kinds = read_kinds(connection)
    if not before_ms or not kinds:
        return Batch()
    sent = {meter_id for meter_id, terms in load_terms(connection).items() if terms.send != "off"}
    ids = sorted(kinds)
    number, beyond = after or (0, None)
    slots = _unbilled(connection, ids[number], ids[number] in sent, before_ms, beyond, work.batch_rows)
    rows = _remove_slots(connection, work, slots)
    if len(slots) == work.batch_rows:
        return Batch(rows, (number, (slots[-1].window_start_ms, slots[-1].account)))
    return Batch(rows, (number + 1, None) if number + 1 < len(ids) else None)


def _unbilled(
    connection: Connection,
    meter_id: int,
    sent: bool,
    before_ms: int,
    beyond: tuple[int, str] | None,
    limit: int,
) -> list[Slot]:
    same_slot = and_(
        attributions.c.account == usage.c.account,
        attributions.c.meter_id == usage.c.meter_id,
        attributions.c.window_start_ms == usage.c.window_start_ms,
    )
    posted = (
        select(postings.c.seq)
        .select_from(attributions)
        .join(postings, postings.c.posting_key == attributions.c.posting_key)
        .where(same_slot)
        .exists()
    )
    place = (usage.c.window_start_ms, usage.c.account)
    where = [usage.c.meter_id == meter_id, usage.c.window_start_ms < before_ms, ~posted]
    if beyond is not None:
        where += [usage.c.window_start_ms >= beyond[0], tuple_(*place) > tuple_(*beyond)]
    wanted = select(*place).where(*where).group_by(*place).order_by(*place).limit(limit)
    if sent:
        # What planning has not read is not said to be nobody's yet.
        unread = usage.c.changed_offset > func.coalesce(plan_cursors.c.planned_offset, 0)
        wanted = wanted.outerjoin_from(
            usage, plan_cursors, plan_cursors.c.partition == usage.c.partition
        ).having(func.count(case((unread, 1))) == 0)
    return [Slot(meter_id, row.window_start_ms, row.account) for row in connection.execute(wanted)]


def remove_pins(connection: Connection, work: Work, after: After) -> Batch:
    """Remove attributions past `billed_days` whose chain has no posting and whose slot has no usage."""
    before_ms = work.before_ms("billed_days")
    ids = sorted(read_kinds(connection))
    if not before_ms or not ids:
        return Batch()
    number, beyond = after or (0, None)
    place = (attributions.c.window_start_ms, attributions.c.account)
    wanted = (
        select(attributions.c.meter_id, *place)
        .where(
            attributions.c.meter_id == ids[number],
            attributions.c.window_start_ms < before_ms,
            ~exists().where(postings.c.posting_key == attributions.c.posting_key),
            ~exists().where(_same_slot(usage)),
        )
        .order_by(*place)
        .limit(work.batch_rows)
    )
    if beyond is not None:
        wanted = wanted.where(tuple_(*place) > tuple_(*beyond))
    found = [tuple(row) for row in connection.execute(wanted)]
    gone = len(found) if work.dry_run else delete_keys(connection, attributions, found)
    rows = {"attributions": gone}
    if len(found) == work.batch_rows:
        return Batch(rows, (number, found[-1][1:]))
    return Batch(rows, (number + 1, None) if number + 1 < len(ids) else None)
