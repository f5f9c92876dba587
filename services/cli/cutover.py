"""`tollgate cutover`: the log goes over to more partitions, with no event lost, doubled or forgotten.

Owns the order of steps and what is refused before the first. What the ledger is given is `tollgate.ledger.cutover`.

1. The topic, the ledger and the wish fit, and the broker would grow the topic. 2. Nothing is written any more: the log's
ends stand still for longer than two ticks, and everything up to them is counted. 3. New partitions get their parents' seen
ids. 4. The topic grows. 5. Pins, progress and meter set change, in one transaction that proves 2 and 3 once more.

It may be killed anywhere and run again: 3 goes on where it was, 4 and 5 find themselves done. Until 5 everything counts
as before; what starts between 4 and 5 refuses its pins, and ends. No step back is needed or possible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import click

from services.cli.cutover_faults import CutoverStep
from services.cli.cutover_wait import Patience, StillWriting
from services.cli.ledger import open_book
from services.cli.log import reaching_broker
from services.cli.operator import operator_name
from services.cli.settings import CliSettings
from tollgate.contracts.ticks import TICK_INTERVAL_SECONDS
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.audit import AuditAction, AuditEntry
from tollgate.ledger.cutover import (
    CannotGrow,
    IdsMissing,
    NotDrained,
    Standing,
    copy_ids,
    find_behind,
    find_parents,
    read_standing,
    switch,
)
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import check_pins
from tollgate.ledger.migrations import check_schema
from tollgate.ledger.progress import load_progress
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.faults import Faults
from tollgate.runtime.kafka import (
    ClusterUnidentified,
    TopicCreationFailed,
    TopicMismatch,
    cluster_id,
    grow_topic,
    topic_bounds,
)
from tollgate.runtime.settings import load_settings

QUIET_SECONDS = 2.5 * TICK_INTERVAL_SECONDS
"""An ingest that lives writes a tick to every partition each interval: a log that stands still for two has no writer."""

_ID_BYTES = 8


@click.command()
@click.option(
    "--partitions",
    type=click.IntRange(2, 10_000),
    required=True,
    help="How many there are to be: a multiple.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be done and what stands in the way.")
@click.option(
    "--quiet-seconds",
    type=click.FloatRange(0),
    default=QUIET_SECONDS,
    show_default=True,
    help="How long the log must stand still; a living ingest ticks every 10 seconds.",
)
@click.option(
    "--wait-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="How long meters may take to count what is there.",
)
@click.option("--reason", default="more partitions", show_default=True, help="For the audit trail.")
@click.option("--by", help="Who does it, for the audit trail; your user name otherwise.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cutover(
    partitions: int,
    plan_only: bool,
    quiet_seconds: float,
    wait_seconds: float,
    reason: str,
    by: str | None,
    yes: bool,
) -> None:
    """Go over to another, larger number of partitions of gateway.events.

    \b
    Before   stop every ingest; leave the meters running, they count what is there
    After    set TOLLGATE_TOPICS__PARTITIONS to the new number; restart meters and archive; start ingest

    The new number is a multiple of the old one: each account stays in its partition or goes to one that begins with all
    ids seen where it was, so a call sent before and sent again after counts once. An ingest that was forgotten and writes
    on by the old number loses nothing either: what it writes is dead, and `tollgate dead replay` puts it right.

    Safe to kill and to run again. There is no way back to fewer partitions. docs/scale.md has the procedure and what each
    number costs.

    Exits 0 when done (or done before), 1 when something stands in the way: then nothing was changed that counts.
    """
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    check_schema(engine)
    faults = Faults(settings.cutover_fault)
    try:
        cluster, bounds = _ask_broker(settings)
        check_pins(
            engine,
            kafka_cluster_id=cluster,
            events_topic=settings.kafka.topic_name(GATEWAY_EVENTS.name),
        )
        standing = read_standing(engine)
        before = standing.partitions
        if before == partitions:
            _require_topic(bounds, partitions)
            click.echo(f"The log has {partitions} partitions, in broker and ledger: nothing to do.")
            return
        find_parents(before, partitions)
        if len(bounds) not in (before, partitions):
            raise click.ClickException(
                f"the topic has {len(bounds)} partitions, the ledger {before}: neither is the number before nor after"
            )
        with reaching_broker(settings.kafka):
            asyncio.run(grow_topic(settings.kafka, GATEWAY_EVENTS.name, partitions, dry_run=True))
        _tell(standing, partitions, len(bounds), find_behind(_old(standing), _ends(bounds)))
        if plan_only:
            return
        if not yes:
            click.confirm("Every ingest is stopped. Cut over?", abort=True)
        _carry_out(
            settings,
            engine,
            standing,
            partitions,
            Patience(quiet_seconds, wait_seconds),
            AuditEntry(
                at_ms=SystemClock().now_ms(),
                who=by or operator_name(),
                action=AuditAction.CUTOVER,
                subject=settings.kafka.topic_name(GATEWAY_EVENTS.name),
                reason=reason,
                details={"before": before, "after": partitions},
            ),
            faults,
        )
    except (
        CannotGrow,
        NotDrained,
        IdsMissing,
        StillWriting,
        LookupError,
        TopicMismatch,
        TopicCreationFailed,
        ClusterUnidentified,
    ) as error:
        raise click.ClickException(str(error)) from None


def _carry_out(
    settings: CliSettings,
    engine: Engine,
    standing: Standing,
    partitions: int,
    patience: Patience,
    entry: AuditEntry,
    faults: Faults[CutoverStep],
) -> None:
    before = standing.partitions
    ends = asyncio.run(
        patience.until_drained(lambda: _read_ends(settings, before), lambda: _counted(engine, before))
    )
    click.echo(f"drained   every partition is counted to its end ({sum(ends.values()):,} records)")
    faults.reach(CutoverStep.DRAINED)
    copied = copy_ids(engine, before, partitions, lambda *_: faults.reach(CutoverStep.IDS_BEGUN))
    click.echo(f"seen ids  {copied:,} given to {partitions - before} new partitions")
    faults.reach(CutoverStep.IDS_COPIED)
    with reaching_broker(settings.kafka):
        grown = asyncio.run(grow_topic(settings.kafka, GATEWAY_EVENTS.name, partitions))
    click.echo(f"topic     {partitions} partitions" + ("" if grown else ", as before"))
    faults.reach(CutoverStep.TOPIC_GROWN)
    # Asked once more: what was written since would otherwise be counted by the new number, and be dead.
    ends = asyncio.run(_read_ends(settings, before))
    version = switch(engine, before, partitions, ends, entry, SystemClock().now_ms())
    faults.reach(CutoverStep.SWITCHED)
    click.echo(f"ledger    {partitions} partitions, with meter set {version}")
    click.echo(
        f"\nNow set TOLLGATE_TOPICS__PARTITIONS={partitions}, restart meters and archive, then start ingest."
    )


def _tell(standing: Standing, partitions: int, in_topic: int, behind: Mapping[int, int]) -> None:
    before = standing.partitions
    copies = standing.ids * (partitions // before - 1)
    click.echo(f"partitions  {before} -> {partitions}; the topic has {in_topic}")
    click.echo(
        f"seen ids    {standing.ids:,} of {before} partitions, {copies:,} copies to make, {standing.ids_copied:,} made: "
        f"{copies * _ID_BYTES / 1e6:,.1f} MB more in the ledger until they expire"
    )
    if behind:
        named = ", ".join(f"{p} by {records:,}" for p, records in sorted(behind.items()))
        click.echo(f"to count    partitions {named} records")
    else:
        click.echo("to count    nothing")


def _require_topic(bounds: Mapping[int, tuple[int, int]], partitions: int) -> None:
    if len(bounds) != partitions:
        raise click.ClickException(
            f"the ledger has {partitions} partitions, the topic {len(bounds)}: it is another topic, or was made anew"
        )


def _ask_broker(settings: CliSettings) -> tuple[str, dict[int, tuple[int, int]]]:
    async def ask() -> tuple[str, dict[int, tuple[int, int]]]:
        return await cluster_id(settings.kafka), await topic_bounds(settings.kafka, GATEWAY_EVENTS.name)

    with reaching_broker(settings.kafka):
        return asyncio.run(ask())


async def _read_ends(settings: CliSettings, before: int) -> dict[int, int]:
    with reaching_broker(settings.kafka):
        bounds = await topic_bounds(settings.kafka, GATEWAY_EVENTS.name)
    return {partition: end for partition, end in _ends(bounds).items() if partition < before}


def _ends(bounds: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    return {partition: end for partition, (_, end) in bounds.items()}


def _old(standing: Standing) -> dict[int, int]:
    return {p: offset for p, offset in standing.next_offsets.items() if p < standing.partitions}


def _counted(engine: Engine, before: int) -> dict[int, int]:
    return {p: each.next_offset for p, each in load_progress(engine).items() if p < before}
