"""`tollgate dead`: events that could not be counted: what they are, why, and sending them again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence

import click
import httpx

from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.group import Group
from services.cli.log import read_records, read_topic
from services.cli.settings import CliSettings
from tollgate.contracts.dead import DeadLetter, decode_dead_letter, encode_dead_letter
from tollgate.contracts.events import decode_batch
from tollgate.contracts.topics import GATEWAY_DEAD
from tollgate.metering.errors import DeadReason
from tollgate.runtime.settings import load_settings

Place = tuple[int, int]
"""(partition, offset) of a letter in gateway.dead."""


@click.group(cls=Group)
def dead() -> None:
    """List, show and replay events that could not be counted."""


async def _read_letters(
    settings: CliSettings, start: dict[int, int] | None = None
) -> dict[Place, DeadLetter]:
    """Letters by place, each event once: one the meter wrote again after a crash has the same key and reason."""
    letters: dict[Place, DeadLetter] = {}
    # A record has a letter for each reason its events died of, all under its one key.
    written: set[tuple[bytes, DeadReason]] = set()
    async for record in read_topic(settings.kafka, GATEWAY_DEAD.name, start=start):
        letter = decode_dead_letter(record.value)
        place = (record.partition, record.offset)
        if letter.topic and record.key is not None:
            if (record.key, letter.reason) in written:
                continue
            written.add((record.key, letter.reason))
        letters[place] = letter
    return letters


@dead.command(name="list")
@click.option(
    "--reason", type=click.Choice([reason.value for reason in DeadReason]), help="Only this reason."
)
@click.option("--account", help="Only this account.")
@click.option(
    "-n", "--limit", type=int, default=100, show_default=True, help="At most this many, newest last."
)
@output_options
def list_(reason: str | None, account: str | None, limit: int, output: Output) -> None:
    """List dead letters: where each is, why, whose, from where."""
    settings = load_settings(CliSettings)
    letters = asyncio.run(_read_letters(settings))
    rows = [
        {
            "letter": f"{partition}:{offset}",
            "reason": letter.reason.value,
            "rows": letter.rows,
            "source": letter.source,
            "account": letter.account,
            "event_time": format_time(letter.time_ms),
            "taken_in": format_time(letter.ingest_ms),
            "came_from": f"{letter.topic}/{letter.partition}/{letter.offset}" if letter.topic else "ingest",
            "detail": letter.detail,
        }
        for (partition, offset), letter in letters.items()
        if (reason is None or letter.reason == reason) and (account is None or letter.account == account)
    ]
    print_rows(rows[-limit:], output, title="Dead letters", empty="none")


def _parse_place(text: str) -> Place:
    try:
        partition, offset = text.split(":")
        return int(partition), int(offset)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not PARTITION:OFFSET as `dead list` prints it") from None


async def _read_some(settings: CliSettings, places: Sequence[Place]) -> dict[Place, DeadLetter]:
    """The letters at these places. Raises ClickException naming every place that holds none any more."""
    found: dict[Place, DeadLetter] = {}
    # One record of a partition at a time: as many rounds as a partition has letters wanted.
    left = dict.fromkeys(places)
    while left:
        round_: dict[int, int] = {}
        for partition, offset in left:
            round_.setdefault(partition, offset)
        records = await read_records(settings.kafka, GATEWAY_DEAD.name, round_)
        for place in round_.items():
            del left[place]
            if place[0] in records:
                found[place] = decode_dead_letter(records[place[0]].value)
    missing = [f"{partition}:{offset}" for partition, offset in places if (partition, offset) not in found]
    if missing:
        raise click.ClickException(f"no dead letter at {', '.join(missing)}; letters are kept 35 days")
    return {place: found[place] for place in places}


@dead.command()
@click.argument("letter")
def show(letter: str) -> None:
    """Show one LETTER (PARTITION:OFFSET), its bytes included."""
    settings = load_settings(CliSettings)
    place = _parse_place(letter)
    found = asyncio.run(_read_some(settings, [place]))[place]
    click.echo(f"reason    {found.reason}\ndetail    {found.detail}\nsource    {found.source}")
    click.echo(f"taken in  {format_time(found.ingest_ms)}\nrows      {found.rows}\nformat    {found.format}")
    click.echo(_payload_text(found))


def _payload_text(letter: DeadLetter) -> str:
    if letter.format == "events/1":
        return json.dumps(decode_batch(letter.payload).to_pylist(), indent=2, default=str)
    try:
        return json.dumps(json.loads(letter.payload), indent=2)
    except ValueError:
        return repr(letter.payload)


@dead.command()
@click.argument("letters", nargs=-1)
@click.option(
    "--reason", type=click.Choice([reason.value for reason in DeadReason]), help="All of this reason."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def replay(letters: tuple[str, ...], reason: str | None, yes: bool) -> None:
    """Send LETTERS (PARTITION:OFFSET …), or all of a --reason, through ingest again.

    An event that has been counted meanwhile is a duplicate and changes nothing. A late event is counted however old
    it is: that is what this command is for.
    """
    settings = load_settings(CliSettings)
    if bool(letters) == (reason is not None):
        raise click.UsageError("name letters, or one --reason")
    if settings.replay_token is None:
        raise click.ClickException(
            "set TOLLGATE_REPLAY_TOKEN (make one: tollgate tokens create operator --scope replay)"
        )
    if letters:
        found = asyncio.run(_read_some(settings, [_parse_place(text) for text in letters]))
    else:
        everything = asyncio.run(_read_letters(settings))
        found = {place: letter for place, letter in everything.items() if letter.reason == reason}
    if not found:
        raise click.ClickException("nothing to replay")
    events = sum(letter.rows for letter in found.values())
    if not yes:
        click.confirm(
            f"Replay {len(found)} letters ({events} events) through {settings.ingest_url}?", abort=True
        )
    if not _send_again(settings, settings.replay_token.get_secret_value(), found):
        raise SystemExit(1)


def _send_again(settings: CliSettings, token: str, letters: Mapping[Place, DeadLetter]) -> bool:
    """Post each letter to ingest, and say what became of it; True when all were taken."""
    refused = 0
    with httpx.Client(
        base_url=settings.ingest_url, headers={"authorization": f"Bearer {token}"}, timeout=30.0
    ) as client:
        for sent, ((partition, offset), letter) in enumerate(letters.items()):
            try:
                answer = client.post("/v1/replay", content=encode_dead_letter(letter))
            except httpx.TransportError as error:
                raise click.ClickException(
                    f"ingest at {settings.ingest_url} does not answer ({type(error).__name__}); "
                    f"{sent - refused} letters replayed, {refused} refused, the rest not tried; "
                    "replaying all of them again counts none twice"
                ) from None
            if not answer.is_success:
                refused += 1
                click.echo(f"{partition}:{offset} refused: {answer.status_code} {answer.text}", err=True)
    click.echo(f"{len(letters) - refused} letters replayed, {refused} refused")
    return not refused
