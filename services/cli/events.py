"""`tollgate events`: the log of events as JSON lines, since Arrow cannot be read with a generic console consumer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from services.cli.group import Group
from services.cli.log import StoredRecord, read_topic
from services.cli.moment import Moment
from services.cli.settings import CliSettings
from tollgate.contracts import amendments, ticks
from tollgate.contracts.events import UndecodableRecord, contract_of, decode_batch
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.runtime.settings import load_settings


@click.group(cls=Group)
def events() -> None:
    """Read the log of events."""


@events.command()
@click.option("-n", "--limit", type=int, default=None, help="Stop after this many events.")
@click.option("--from-beginning", is_flag=True, help="Start at the oldest record kept instead of the newest.")
@click.option("--no-follow", is_flag=True, help="End at the end of the log instead of waiting for more.")
@click.option("--account", help="Only this account, e.g. user:cus_123.")
@click.option("--ticks", "with_ticks", is_flag=True, help="Ticks too.")
def tail(
    limit: int | None, from_beginning: bool, no_follow: bool, account: str | None, with_ticks: bool
) -> None:
    """Print events as JSON lines, newest records as they come."""
    settings = load_settings(CliSettings)

    async def follow() -> None:
        left = limit
        records = read_topic(
            settings.kafka,
            GATEWAY_EVENTS.name,
            from_end=not from_beginning and not no_follow,
            follow=not no_follow,
        )
        # Closed here and not when the loop ends: a consumer left in the middle of a fetch leaks its connection.
        async with contextlib.aclosing(records):
            async for record in records:
                for line in describe_record(record, with_ticks=with_ticks):
                    if account is not None and line.get("account") != account:
                        continue
                    click.echo(json.dumps(line, separators=(",", ":"), default=str))
                    if left is not None:
                        left -= 1
                        if left <= 0:
                            return

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(follow())


@events.command()
@click.option("--id", "event_id", help="Only the event of this id, every copy of it.")
@click.option("--account", help="Only this account, e.g. user:cus_123.")
@click.option("--since", "since_ms", type=Moment(), help="Events that happened at this time or later (UTC).")
@click.option("--until", "until_ms", type=Moment(), help="Events that happened before this time.")
@click.option(
    "--from-archive",
    "archive_at",
    metavar="DIR",
    help="Look there (a directory, or a URL Arrow knows); in the log without it.",
)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=None, help="Stop after this many events.")
def find(
    event_id: str | None,
    account: str | None,
    since_ms: int | None,
    until_ms: int | None,
    archive_at: str | None,
    limit: int | None,
) -> None:
    """Print past events as JSON lines: what an account disputes, or one event to explain."""
    from services.cli.archived import Archive
    from services.cli.lookup import Wanted, find_events

    settings = load_settings(CliSettings)
    archive = None if archive_at is None else Archive.open(archive_at)
    wanted = Wanted(event_id, account, since_ms, until_ms)

    async def look() -> int:
        found = 0
        async with contextlib.aclosing(find_events(wanted, archive, settings.kafka)) as matches:
            async for event in matches:
                click.echo(json.dumps(event, separators=(",", ":"), default=str))
                found += 1
                if found == limit:
                    break
        return found

    if not asyncio.run(look()):
        raise click.ClickException("no such event")


def describe_record(record: StoredRecord, *, with_ticks: bool) -> Iterator[dict[str, Any]]:
    """One line per event of a record; a line that says so for what cannot be decoded."""
    place = {"partition": record.partition, "offset": record.offset}
    contract = contract_of(record.headers)
    if contract == ticks.CONTRACT:
        if with_ticks:
            tick = ticks.decode_tick(record.value)
            yield place | {
                "tick": tick.instance,
                "wall_ms": tick.wall_ms,
                "rows_acknowledged": tick.rows_acknowledged,
            }
        return
    if contract == amendments.CONTRACT:
        try:
            yield place | msgspec.to_builtins(amendments.decode_amendment(record.value))
        except ValueError as error:
            yield place | {"undecodable": str(error), "contract": contract}
        return
    try:
        rows = decode_batch(record.value).to_pylist()
    except UndecodableRecord as error:
        yield place | {"undecodable": str(error), "contract": contract}
        return
    for row, event in enumerate(rows):
        yield place | {"row": row} | {name: value for name, value in event.items() if value is not None}
