"""`tollgate replay`: what meters would count, or would have counted, over archive or log; beside what is billed.

Owns the command and what it prints. It writes nothing but the file `--out` names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import polars as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.archived import Archive
from services.cli.console import Output, console, format_time, output_options, print_rows
from services.cli.generations import load_generations
from services.cli.ledger import open_book
from services.cli.meter_file import read_meters
from services.cli.moment import Moment
from services.cli.replay_live import Comparison, compare_live, shadow_rows
from services.cli.replay_source import Source
from services.cli.settings import CliSettings
from services.cli.shadow import Shadow, names_of
from services.cli.stretch import NothingHeld, Stretch, tell_caveats
from tollgate.ledger.catalogue import load_every_meter, load_meter_set
from tollgate.ledger.counted import Counted, load_counted
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import read_pins, read_rules
from tollgate.metering.definition import Meter, MeterSet
from tollgate.runtime.settings import load_settings

EXIT_DIFFERS = 3


@dataclass(frozen=True, slots=True)
class _Bounds:
    """The windows asked for: those that begin at `since_ms` or later and end by `until_ms`."""

    since_ms: int | None
    until_ms: int | None


@click.command()
@click.option(
    "--meters",
    "meters_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Count with the meters of this file; with those in force without it.",
)
@click.option("--meter", "name", help="Only this meter.")
@click.option(
    "--from-archive",
    "archive_at",
    metavar="DIR",
    help="Read this archive: a directory, or a URL Arrow knows.",
)
@click.option(
    "--from-log",
    is_flag=True,
    help="Read the log: the default; with --from-archive, from where the archive ends.",
)
@click.option("--since", "since_ms", type=Moment(), help="Windows that begin at this time or later (UTC).")
@click.option("--until", "until_ms", type=Moment(), help="Windows that end by this time.")
@click.option(
    "--against", type=click.Choice(["live"]), help="Print only what differs from the ledger's usage."
)
@click.option(
    "--exit-code", is_flag=True, help=f"With --against: end with {EXIT_DIFFERS} when something differs."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the usage to this Parquet file.",
)
@output_options
def replay(
    meters_path: Path | None,
    name: str | None,
    archive_at: str | None,
    from_log: bool,
    since_ms: int | None,
    until_ms: int | None,
    against: str | None,
    exit_code: bool,
    out: Path | None,
    output: Output,
) -> None:
    """Count a stretch of the past again, with any meters, and touch nothing that is billed.

    The fold is the meter's own, by the ledger's rules of lateness. Only windows that lie wholly within --since and
    --until, in event time, are shown. Reading begins earlier, so that every id is known that could make an event of
    theirs a duplicate; what no source holds any more is said.

    With `--against live` each row is held against the ledger's of the same meter name, account, window and dimensions, as
    far as the ledger has counted. Rows the ledger has gone on changing meanwhile are not compared, and counted.

    \b
    Exit codes: 0 done, 1 it failed, 2 wrong use, 3 with --exit-code: something differs.
    """
    if exit_code and against is None:
        raise click.UsageError("--exit-code goes with --against live")
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    meters = _choose(read_meters(meters_path) if meters_path else None, engine, name)
    archive = None if archive_at is None else Archive.open(archive_at)
    if archive is not None:
        archive.check_belongs(read_pins(engine))
    source = Source(archive, settings.kafka if from_log or archive is None else None)
    counted = load_counted(engine) if against else None
    bounds = _Bounds(since_ms, until_ms)
    try:
        shadow, stretches = asyncio.run(_count(engine, source, meters, bounds, counted))
    except NothingHeld as error:
        raise click.ClickException(str(error)) from None
    for caveat in tell_caveats(stretches, since_ms):
        click.secho(f"note: {caveat}", err=True)
    names = names_of(meters)
    usage = shadow.usage()
    if out is not None:
        _write(usage, names, out)
    if counted is None:
        _print_usage(usage, names, output)
        return
    live = {
        meter_id: each
        for meter_id, each in load_every_meter(engine).items()
        if each.name in set(names.values())
    }
    live_names = {meter_id: each.name for meter_id, each in live.items()}
    for each in sorted(set(names.values()) - set(live_names.values())):
        click.secho(f"note: the ledger counts no meter {each}", err=True)
    found = compare_live(
        {key: numbers for key, numbers in shadow_rows(usage, names).items() if key[1] in live_names.values()},
        counted,
        live_names,
        stretches,
        _kept_live(live, bounds, stretches),
    )
    _print_comparison(found, output)
    if exit_code and found.differences:
        raise SystemExit(EXIT_DIFFERS)


def _choose(declared: MeterSet | None, engine: Engine, name: str | None) -> MeterSet:
    meters = declared or load_meter_set(engine)
    if name is None:
        return meters
    chosen = tuple(version for version in meters.meters if version.meter.name == name)
    if not chosen:
        known = ", ".join(sorted({version.meter.name for version in meters.meters})) or "none"
        raise click.UsageError(f"there is no meter {name}; there are {known}")
    return MeterSet(version=meters.version, meters=chosen)


async def _count(
    engine: Engine, source: Source, meters: MeterSet, bounds: _Bounds, counted: Counted | None
) -> tuple[Shadow, Mapping[int, Stretch]]:
    """Read and fold, saying how fast."""
    rules = read_rules(engine)
    stretches = await source.plan(
        rules,
        since_ms=bounds.since_ms,
        until_ms=bounds.until_ms,
        counted=None if counted is None else counted.next_offsets,
    )
    shadow = Shadow(meters, rules, _keep(meters, bounds, stretches))
    terminal = console(stderr=True)
    columns = (
        TextColumn("Replaying"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    began = time.perf_counter()

    def speed() -> str:
        seconds = max(time.perf_counter() - began, 1e-6)
        return f"{shadow.events:,} events in {seconds:.1f} s, {shadow.events / seconds:,.0f} events/s"

    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as bar:
        task = bar.add_task("records", total=sum(each.records for each in stretches.values()), speed="")
        await source.feed(
            stretches,
            shadow,
            lambda records: bar.update(task, advance=records, speed=speed()),
            load_generations(engine, stretches),
        )
    first = min((each.start for each in stretches.values()), default=0)
    click.echo(
        f"replayed {speed()}, from {len(stretches)} partitions"
        + (f" (from offset {first})" if first else ""),
        err=True,
    )
    return shadow, stretches


def _keep(
    meters: MeterSet, bounds: _Bounds, stretches: Mapping[int, Stretch]
) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """What keeps the rows of whole windows."""
    sizes = {version.meter_id: version.meter.window.size_ms for version in meters.meters}
    whole = {p: each.whole_from_ms for p, each in stretches.items() if each.whole_from_ms is not None}
    start = pl.col("window_start_ms")
    conditions = []
    if bounds.since_ms is not None:
        conditions.append(start >= bounds.since_ms)
    if bounds.until_ms is not None:
        size = pl.col("meter_id").replace_strict(sizes, return_dtype=pl.Int64)
        conditions.append(start + size <= bounds.until_ms)
    if whole:
        conditions.append(
            start >= pl.col("partition").replace_strict(whole, default=-(2**63), return_dtype=pl.Int64)
        )
    return lambda rows: rows.filter(*conditions) if conditions else rows


def _kept_live(
    live: Mapping[int, Meter], bounds: _Bounds, stretches: Mapping[int, Stretch]
) -> Callable[[int, int, int], bool]:
    """The same for the ledger's rows."""
    sizes = {meter_id: meter.window.size_ms for meter_id, meter in live.items()}

    def kept(partition: int, meter_id: int, window_start_ms: int) -> bool:
        whole = stretches[partition].whole_from_ms
        return (
            (bounds.since_ms is None or window_start_ms >= bounds.since_ms)
            and (bounds.until_ms is None or window_start_ms + sizes[meter_id] <= bounds.until_ms)
            and (whole is None or window_start_ms >= whole)
        )

    return kept


def _named(usage: pl.DataFrame, names: Mapping[int, str]) -> pl.DataFrame:
    """Usage for people and files: by name, partitions apart, sorted."""
    return usage.select(
        pl.col("meter_id").replace_strict(names, return_dtype=pl.String).alias("meter"),
        "account",
        "window_start_ms",
        "dimensions",
        "quantity",
        "events",
        "unvalued",
        "latest_event_ms",
        "partition",
    ).sort("meter", "window_start_ms", "account", "dimensions")


def _write(usage: pl.DataFrame, names: Mapping[int, str], out: Path) -> None:
    try:
        _named(usage, names).write_parquet(out)
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error}") from None
    click.echo(f"wrote {len(usage):,} usage rows to {out}", err=True)


def _print_usage(usage: pl.DataFrame, names: Mapping[int, str], output: Output) -> None:
    rows: list[Mapping[str, object]] = [
        {
            "meter": row["meter"],
            "account": row["account"],
            "window": format_time(row["window_start_ms"]),
            "dimensions": row["dimensions"],
            "quantity": row["quantity"].normalize() + 0,
            "events": row["events"],
            "unvalued": row["unvalued"],
        }
        for row in _named(usage, names).iter_rows(named=True)
    ]
    print_rows(rows, output, title="Shadow usage", empty="nothing counted")


def _print_comparison(found: Comparison, output: Output) -> None:
    rows: list[Mapping[str, object]] = [
        {
            "meter": difference.key[1],
            "account": difference.key[3],
            "window": format_time(difference.key[2]),
            "dimensions": difference.key[4],
            "live": difference.live.quantity.normalize() + 0,
            "shadow": difference.shadow.quantity.normalize() + 0,
            "difference": difference.quantity.normalize() + 0,
            "live_events": difference.live.events,
            "shadow_events": difference.shadow.events,
        }
        for difference in found.differences
    ]
    print_rows(rows, output, title="Differences from live", empty="none")
    said = f"{found.agreed:,} usage rows agree with the ledger, {len(found.differences):,} differ"
    if found.still_open:
        said += f"; {found.still_open:,} were changed by records past the replay and are not compared"
    if found.removed:
        said += f"; {found.removed:,} are of windows the ledger has removed for their age"
    click.echo(said, err=True)
