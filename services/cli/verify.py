"""`tollgate verify`: the law in numbers, from the ledger, from the log, and by counting the log again."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field

import click

from services.cli.ledger import open_book
from services.cli.log import NoSuchTopic, reaching_broker, read_records
from services.cli.settings import CliSettings
from tollgate.contracts.events import record_fingerprint
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import read_pins
from tollgate.ledger.postings import held_summary, posting_summary
from tollgate.ledger.progress import PartitionProgress, load_progress
from tollgate.ledger.verify import verify_ledger
from tollgate.runtime.kafka import topic_bounds
from tollgate.runtime.settings import load_settings

OUTCOMES = ("counted", "unmatched", "duplicate", "late", "dead")


@dataclass(slots=True)
class Findings:
    """What was looked at, in words and numbers, and what does not hold."""

    facts: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    """What could not be looked at, and so is neither right nor wrong."""


@click.command()
@click.option(
    "--refold", is_flag=True, help="Read the log again and count it with independent code. Slow, thorough."
)
@click.option(
    "--from-archive",
    "archive_at",
    metavar="DIR",
    help="With --refold: read this archive (a directory, or a URL Arrow knows), and the log from where it ends.",
)
@click.option("--no-log", is_flag=True, help="Only the ledger: do not ask Kafka.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(refold: bool, archive_at: str | None, no_log: bool, as_json: bool) -> None:
    """Prove that every accepted event ended somewhere known. Exits 1 when anything does not add up.

    \b
    1  received = counted + unmatched + duplicate + late + dead, per partition;
       and what each ingest instance had acknowledged has been received
    2  totals in progress = the sum of the usage rows, per partition and meter
    3  postings form chains without a gap; usage that is not posted is held or not yet due
    The log must reach what was counted, and its last counted record must be the one that was counted.
    """
    if refold and no_log:
        raise click.UsageError("--refold reads the log; leave out --no-log")
    if archive_at is not None and not refold:
        raise click.UsageError("--from-archive goes with --refold")
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    findings = Findings()
    try:
        _check_ledger(engine, findings)
        if not no_log:
            asyncio.run(_check_log(settings, load_progress(engine, None), findings))
        if refold:
            from services.cli.archived import Archive
            from services.cli.refold import compare_recount

            archive = None if archive_at is None else Archive.open(archive_at)
            if archive is not None:
                archive.check_belongs(read_pins(engine))
            asyncio.run(compare_recount(settings, engine, findings, archive))
    except NoSuchTopic as error:
        findings.violations.append(str(error))
    if as_json:
        click.echo(json.dumps(asdict(findings), indent=2))
    else:
        for fact in findings.facts:
            click.echo(fact)
        for violation in findings.violations:
            click.secho(f"VIOLATED  {violation}", fg="red", err=True)
        for gap in findings.unproven:
            click.secho(f"NOT PROVEN  {gap}", fg="yellow", err=True)
        click.echo(_verdict(findings))
    if findings.violations:
        raise SystemExit(1)


def _verdict(findings: Findings) -> str:
    if findings.violations:
        return f"{len(findings.violations)} violations."
    if findings.unproven:
        return (
            f"The law holds where it could be looked at; {len(findings.unproven)} partitions are not proven."
        )
    return "The law holds."


def _check_ledger(engine: Engine, findings: Findings) -> None:
    findings.violations += [str(violation) for violation in verify_ledger(engine)]
    rows = list(load_progress(engine, None).values())
    sums = {name: sum(getattr(row, name) for row in rows) for name in ("received", *OUTCOMES)}
    spelled = " + ".join(f"{name} {sums[name]:,}" for name in OUTCOMES)
    findings.facts.append(
        f"Law 1  received {sums['received']:,} = {spelled}, on each of {len(rows)} partitions"
    )
    findings.facts.append("       and each ingest instance's acknowledged rows have been received")
    findings.facts.append(
        "Law 2  totals in progress = the sum of the usage rows, for each partition and meter"
    )
    states = posting_summary(engine)
    postings = ", ".join(f"{entry.postings:,} {entry.state.value}" for entry in states) or "none"
    findings.facts.append(f"Law 3  posting chains without a gap: {postings}")
    held = ", ".join(f"{count:,} {reason.value}" for reason, count in held_summary(engine).items()) or "none"
    findings.facts.append(f"       held: {held}")


async def _check_log(
    settings: CliSettings, progress: dict[int, PartitionProgress], findings: Findings
) -> None:
    """The log reaches what was counted, and ends there with the record that was counted."""
    with reaching_broker(settings.kafka):
        bounds = await topic_bounds(settings.kafka, GATEWAY_EVENTS.name)
    wanted: dict[int, int] = {}
    for partition, row in sorted(progress.items()):
        if partition not in bounds:
            findings.violations.append(f"log: partition {partition} is counted and not on the broker")
            continue
        begin, end = bounds[partition]
        if end < row.next_offset:
            findings.violations.append(
                f"log: partition {partition} ends at {end}, but everything below {row.next_offset} was counted: "
                "the log lost its tail"
            )
        elif row.next_offset and not row.fingerprint:
            findings.violations.append(
                f"log: partition {partition}: progress is at {row.next_offset} and names no last record"
            )
        elif begin < row.next_offset:
            wanted[partition] = row.next_offset - 1
    records = await read_records(settings.kafka, GATEWAY_EVENTS.name, wanted) if wanted else {}
    for partition, last in wanted.items():
        record = records.get(partition)
        if record is None:
            findings.violations.append(
                f"log: partition {partition}: record {last}, the last one counted, is not there"
            )
        elif record_fingerprint(record.offset, record.value) != progress[partition].fingerprint:
            findings.violations.append(
                f"log: partition {partition}: record {last} is not the one that was counted; is this another "
                "topic, or was progress changed?"
            )
    findings.facts.append(
        f"Log    looked at on {len(progress)} partitions; the last counted record compared on {len(wanted)}"
    )
