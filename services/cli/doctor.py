"""`tollgate doctor`: is everything there that has to be, does it belong together, and what to do where not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click

from services.cli.archived import Archive
from services.cli.console import Output, output_options, print_rows
from services.cli.gateway import StripeGateway, StripeUnreachable
from services.cli.ledger import open_book
from services.cli.log import BrokerUnreachable, reaching_broker
from services.cli.settings import CliSettings
from tollgate.contracts.archive import NotAnArchive
from tollgate.contracts.events import derive_seed, seed_fingerprint
from tollgate.contracts.topics import GATEWAY_EVENTS, TOPICS
from tollgate.ledger.catalogue import load_meter_set
from tollgate.ledger.controls import load_controls
from tollgate.ledger.engine import Engine, check_durability
from tollgate.ledger.errors import LedgerError, LedgerUnavailable, PinMismatch
from tollgate.ledger.init import check_pins, read_pins
from tollgate.ledger.postings import held_summary
from tollgate.ledger.sources import load_sources
from tollgate.runtime.kafka import ClusterUnidentified, cluster_id, topic_bounds, topic_partitions
from tollgate.runtime.settings import load_settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: whether it is good, what was seen, and what to do where it is not."""

    check: str
    good: bool
    seen: str
    do: str = ""


@click.command()
@output_options
def doctor(output: Output) -> None:
    """Check broker, topics, ledger, pins, Stripe and meters, and say what to do. Exits 1 when something is wrong."""
    settings = load_settings(CliSettings)
    findings = [
        *_check_kafka(settings),
        *_check_ledger(settings),
        *_check_archive(settings),
        *_check_stripe(settings),
    ]
    rows: list[dict[str, object]] = [
        {
            "check": finding.check,
            "result": "good" if finding.good else "WRONG",
            "seen": finding.seen,
            "what_to_do": finding.do,
        }
        for finding in findings
    ]
    print_rows(rows, output, title="Doctor")
    if not all(finding.good for finding in findings):
        raise SystemExit(1)


def _check_kafka(settings: CliSettings) -> Iterator[Finding]:
    async def ask() -> tuple[str, dict[str, int | None]]:
        cluster = await cluster_id(settings.kafka)
        counts = {topic.name: await topic_partitions(settings.kafka, topic.name) for topic in TOPICS}
        return cluster, counts

    try:
        with reaching_broker(settings.kafka):
            cluster, counts = asyncio.run(ask())
    except (BrokerUnreachable, ClusterUnidentified) as error:
        yield Finding(
            "Kafka",
            good=False,
            seen=str(error).partition("; ")[0],
            do="start the broker, or set TOLLGATE_KAFKA__BOOTSTRAP_SERVERS",
        )
        return
    yield Finding("Kafka", good=True, seen=f"cluster {cluster} at {settings.kafka.bootstrap_servers}")
    missing = [name for name, count in counts.items() if count is None]
    seen = ", ".join(f"{name} {count}" for name, count in counts.items() if count is not None)
    yield Finding(
        "topics",
        good=not missing,
        seen=f"{seen} partitions" if not missing else f"missing: {', '.join(missing)}",
        do="run `tollgate init`" if missing else "",
    )
    yield from _check_pins(settings, cluster, counts[GATEWAY_EVENTS.name])


def _check_pins(settings: CliSettings, cluster: str, partitions: int | None) -> Iterator[Finding]:
    expected: dict[str, str | int] = {
        "kafka_cluster_id": cluster,
        "events_topic": settings.kafka.topic_name(GATEWAY_EVENTS.name),
        "accept_age_hours": settings.rules.accept_age_hours,
        "future_seconds": settings.rules.future_seconds,
    }
    if partitions is not None:
        expected["partitions"] = partitions
    if settings.id_seed is not None:
        expected["id_seed_fingerprint"] = seed_fingerprint(derive_seed(settings.id_seed.get_secret_value()))
    try:
        pins = check_pins(open_book(settings), **expected)
    except PinMismatch as error:
        yield Finding(
            "pins",
            good=False,
            seen=str(error),
            do="use the ledger, cluster, topic prefix, id seed and rules that belong together",
        )
        return
    except LedgerError:
        # The check of the ledger itself says what is the matter.
        return
    yield Finding(
        "pins", good=True, seen=f"ledger {pins.ledger_id}, Stripe {pins.stripe_account} {pins.stripe_mode}"
    )


def _check_ledger(settings: CliSettings) -> Iterator[Finding]:
    checks: tuple[Callable[[Engine], Finding], ...] = (_durability, _meters, _tokens, _controls, _holds)
    try:
        engine = open_book(settings)
        for check in checks:
            yield check(engine)
    except LedgerUnavailable as error:
        yield Finding(
            "ledger", good=False, seen=str(error), do="start the database, or check TOLLGATE_LEDGER__URL"
        )
    except LedgerError as error:
        yield Finding(
            "ledger", good=False, seen=str(error), do="check TOLLGATE_LEDGER__URL, then run `tollgate init`"
        )


def _durability(engine: Engine) -> Finding:
    problems = check_durability(engine)
    return Finding(
        "durability",
        good=not problems,
        seen="; ".join(problems) or f"{engine.dialect.name} keeps what it has committed",
        do="turn these settings on: a power cut would lose committed counts" if problems else "",
    )


def _meters(engine: Engine) -> Finding:
    names = sorted({version.meter.name for version in load_meter_set(engine).meters})
    return Finding(
        "meters",
        good=bool(names),
        seen=", ".join(names) or "none",
        do="" if names else "run `tollgate meters apply meters.yaml`",
    )


def _tokens(engine: Engine) -> Finding:
    names = sorted({source.name for source in load_sources(engine)})
    return Finding(
        "tokens",
        good=bool(names),
        seen=", ".join(names) or "none",
        do="" if names else "run `tollgate tokens create SOURCE`, and give it to the gateway",
    )


def _controls(engine: Engine) -> Finding:
    controls = load_controls(engine)
    halted = {
        name: value for name, value in controls.items() if name == "paused" or name.startswith("halted:")
    }
    return Finding(
        "sending",
        good=not halted,
        seen="; ".join(f"{name}: {value}" for name, value in halted.items()) or "not paused, no meter halted",
        do="`tollgate sync resume`, or mend the meter at Stripe" if halted else "",
    )


def _holds(engine: Engine) -> Finding:
    held = {
        reason.value: count for reason, count in held_summary(engine).items() if reason.value != "in_flight"
    }
    return Finding(
        "held usage",
        good=True,
        seen=", ".join(f"{count} {reason}" for reason, count in held.items()) or "none",
        do="`tollgate held` says whose and why" if held else "",
    )


def _check_archive(settings: CliSettings) -> Iterator[Finding]:
    """Only where the settings name one: an installation may have none."""
    if settings.archive.directory is None:
        return
    try:
        archive = Archive.open(settings.archive.directory)
        archive.check_belongs(read_pins(open_book(settings)))
        with reaching_broker(settings.kafka):
            bounds = asyncio.run(topic_bounds(settings.kafka, GATEWAY_EVENTS.name))
    except NotAnArchive as error:
        yield Finding(
            "archive",
            good=False,
            seen=str(error),
            do="start `tollgate run archive`, or check TOLLGATE_ARCHIVE__DIRECTORY",
        )
        return
    except (BrokerUnreachable, LedgerError):
        # The checks of broker and ledger say what is the matter.
        return
    reached = {partition: end for partition, (_, end) in archive.bounds.items()}
    lost = {
        partition: begin - reached[partition]
        for partition, (begin, _) in bounds.items()
        if partition in reached and begin > reached[partition]
    }
    behind = sum(end - reached.get(partition, begin) for partition, (begin, end) in bounds.items())
    files = sum(map(len, archive.files.values()))
    yield Finding(
        "archive",
        good=not lost,
        seen=f"{files:,} files of {len(archive.files)} partitions, {max(behind, 0):,} records not in one yet"
        + "".join(
            f"; partition {p}: {count:,} deleted before they were archived" for p, count in lost.items()
        ),
        do="begin a new directory, and keep this one: what the log has deleted cannot be archived"
        if lost
        else "",
    )


def _check_stripe(settings: CliSettings) -> Iterator[Finding]:
    try:
        with StripeGateway(settings.stripe) as gateway:
            account = gateway.account()
            meters = gateway.meters()
    except StripeUnreachable as error:
        yield Finding("Stripe", good=False, seen=str(error), do="check STRIPE_API_KEY and the network")
        return
    yield Finding("Stripe", good=True, seen=f"account {account.account}, {account.mode} mode")
    try:
        engine = open_book(settings)
        check_pins(engine, stripe_account=account.account, stripe_mode=account.mode)
        wanted = sorted(
            version.meter.stripe.event_name
            for version in load_meter_set(engine).meters
            if version.meter.stripe is not None and version.meter.stripe.send == "live"
        )
    except PinMismatch as error:
        yield Finding("Stripe account", good=False, seen=str(error), do="use the key this ledger belongs to")
        return
    except LedgerError:
        return
    absent = [name for name in wanted if meters.get(name) != "active"]
    yield Finding(
        "Stripe meters",
        good=not absent,
        seen=", ".join(f"{name} {meters.get(name, 'absent')}" for name in wanted) or "no meter is sent live",
        do=f"run `tollgate meters apply --plan`: it says what {', '.join(absent)} lacks" if absent else "",
    )
