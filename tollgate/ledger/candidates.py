"""The slots a planning transaction looks at: changed usage, held usage worth another look, meters switched on.

Owns `plan_cursors` and the controls that remember where each walk stands. It refuses to know what is decided about
a slot. Each source is bounded, so one transaction never grows with the backlog.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, and_, exists, func, select, tuple_

from tollgate.ledger.controls import write_controls
from tollgate.ledger.plan_rows import (
    HoldReason,
    MeterTerms,
    Slot,
)
from tollgate.ledger.posting_rows import UNSETTLED
from tollgate.ledger.tables import (
    attributions,
    directory_state,
    holds,
    plan_cursors,
    postings,
    usage,
)

JOURNAL_WAIT = "journal_wait:"
"""Control, followed by a partition: planning waits until that partition's progress has reached the value."""

_SCAN = "scan:"
"""Control, followed by a meter id: where a walk over all its usage stands (it was switched on)."""

_SENDING = "send:"
"""Control, followed by a meter id: whether planning took its usage, `on` or `off`, when it last looked."""

_DIRECTORY = "directory_version"

_RETRY = "retry_holds"

_LOOK_AGAIN = (
    HoldReason.NO_MAPPING,
    HoldReason.NO_ITEM,
    HoldReason.CLOSED,
    HoldReason.NO_PRICE,
    HoldReason.AMBIGUOUS,
    HoldReason.PERIOD_OVER,
)
"""Reasons that a change of mappings or item periods can remove."""


@dataclass(slots=True)
class Candidates:
    """What one transaction has gathered so far."""

    slots: set[Slot] = field(default_factory=set)
    cursors: dict[int, int] = field(default_factory=dict)
    controls: dict[str, str | None] = field(default_factory=dict)
    more: bool = False


def journal_gate(controls: Mapping[str, str], offsets: Mapping[int, int]) -> tuple[dict[int, int], list[str]]:
    """Partitions still behind what the journal was planned from, and the names of waits that are over."""
    waiting, reached = {}, []
    for name, value in controls.items():
        if name.startswith(JOURNAL_WAIT):
            partition, offset = int(name.removeprefix(JOURNAL_WAIT)), int(value)
            if offsets.get(partition, 0) < offset:
                waiting[partition] = offset
            else:
                reached.append(name)
    return waiting, reached


def gather_changed(
    connection: Connection,
    terms: Mapping[int, MeterTerms],
    offsets: Mapping[int, int],
    found: Candidates,
    rows_max: int,
) -> None:
    """Usage changed above each partition's cursor. The cursor stops below a change that did not fit whole."""
    planned = {
        row.partition: row.planned_offset
        for row in connection.execute(select(plan_cursors.c.partition, plan_cursors.c.planned_offset))
    }
    behind = {p: offset for p, offset in offsets.items() if offset > planned.get(p, 0)}
    # Shared out, so that the transaction stays as short with many partitions as with one.
    rows_max = max(1, rows_max // max(1, len(behind)))
    for partition, next_offset in sorted(behind.items()):
        cursor = planned.get(partition, 0)
        changed = (
            select(usage.c.meter_id, usage.c.window_start_ms, usage.c.account, usage.c.changed_offset)
            .where(and_(usage.c.partition == partition, usage.c.changed_offset > cursor))
            .order_by(usage.c.changed_offset)
        )
        rows = connection.execute(
            changed.where(usage.c.changed_offset <= next_offset).limit(rows_max + 1)
        ).all()
        reached = next_offset
        if len(rows) > rows_max:
            found.more = True
            reached = rows[-1].changed_offset - 1
            rows = [row for row in rows if row.changed_offset <= reached]
            if not rows:  # one flush alone is past the bound: take it whole
                reached += 1
                rows = connection.execute(changed.where(usage.c.changed_offset <= reached)).all()
        found.slots.update(
            Slot(meter_id, start_ms, account) for meter_id, start_ms, account, _ in rows if meter_id in terms
        )
        found.cursors[partition] = reached


def gather_held(
    connection: Connection,
    controls: Mapping[str, str],
    switched_on: Sequence[int],
    found: Candidates,
    rows_max: int,
) -> None:
    """Held usage worth another look: its chain has settled, or the directory changed since it was held."""
    blocked = exists().where(
        and_(postings.c.posting_key == attributions.c.posting_key, postings.c.state.in_(UNSETTLED))
    )
    same_slot = and_(
        attributions.c.meter_id == holds.c.meter_id,
        attributions.c.window_start_ms == holds.c.window_start_ms,
        attributions.c.account == holds.c.account,
    )
    freed = connection.execute(
        select(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .join_from(holds, attributions, same_slot)
        .where(and_(holds.c.reason == HoldReason.IN_FLIGHT, holds.c.meter_id.in_(switched_on), ~blocked))
        .limit(rows_max)
    ).all()
    found.slots.update(Slot(*row) for row in freed)
    found.more |= len(freed) == rows_max

    version = connection.execute(select(func.max(directory_state.c.version))).scalar() or 0
    if _RETRY in controls:
        walk = json.loads(controls[_RETRY])
    elif str(version) != controls.get(_DIRECTORY, "0"):
        walk = {"version": version, "after": None}
    else:
        return
    again = (
        select(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .where(and_(holds.c.reason.in_(_LOOK_AGAIN), holds.c.meter_id.in_(switched_on)))
        .order_by(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .limit(rows_max)
    )
    if walk["after"] is not None:
        place = tuple_(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        again = again.where(place > tuple_(*walk["after"]))
    rows = [Slot(*row) for row in connection.execute(again)]
    found.slots.update(rows)
    if len(rows) == rows_max:
        last = rows[-1]
        walk["after"] = [last.meter_id, last.window_start_ms, last.account]
        found.controls[_RETRY] = json.dumps(walk)
        found.more = True
    else:
        # A change during the walk left the version ahead of the walk's: the next pass starts another.
        found.controls[_RETRY] = None
        found.controls[_DIRECTORY] = str(walk["version"])


def look_at_holds_again(controls: Mapping[str, str]) -> dict[str, str]:
    """Controls that have the next plannings look at all usage that waits for something outside of it."""
    version = json.loads(controls[_RETRY])["version"] if _RETRY in controls else controls.get(_DIRECTORY, "0")
    return {_RETRY: json.dumps({"version": version, "after": None})}


def gather_switched(
    connection: Connection,
    terms: Mapping[int, MeterTerms],
    controls: Mapping[str, str],
    found: Candidates,
    rows_max: int,
) -> None:
    """All usage of meters whose `send` was off until now, walked in bounded steps."""
    for meter_id, meter in sorted(terms.items()):
        name, scan = f"{_SENDING}{meter_id}", f"{_SCAN}{meter_id}"
        if meter.send == "off":
            if controls.get(name) != "off":
                found.controls.update({name: "off", scan: None})
            continue
        after = controls.get(scan)
        if controls.get(name) != "on":
            found.controls[name] = "on"
            after = "[]"
        if after is None:
            continue
        place = tuple_(usage.c.window_start_ms, usage.c.account)
        walk = (
            select(usage.c.window_start_ms, usage.c.account)
            .where(usage.c.meter_id == meter_id)
            .group_by(usage.c.window_start_ms, usage.c.account)
            .order_by(usage.c.window_start_ms, usage.c.account)
            .limit(rows_max)
        )
        passed = json.loads(after)
        if passed:
            walk = walk.where(place > tuple_(*passed))
        rows = connection.execute(walk).all()
        found.slots.update(Slot(meter_id, row.window_start_ms, row.account) for row in rows)
        if len(rows) == rows_max:
            found.controls[scan] = json.dumps([rows[-1].window_start_ms, rows[-1].account])
            found.more = True
        else:
            found.controls[scan] = None


def request_scan(connection: Connection, meter_id: int, now_ms: int) -> None:
    """Have the next planning look at all usage of a meter again."""
    write_controls(connection, {f"{_SCAN}{meter_id}": "[]"}, now_ms)
