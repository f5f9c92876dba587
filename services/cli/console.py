"""How commands speak: tables for people, JSON and CSV for programs.

Owns rendering only. Colours and boxes are for terminals; a pipe gets plain text.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 10_000
"""Characters: no cell of a piped table is ever folded, so a line is a row."""


class Output(StrEnum):
    """What a command prints."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def output_options(function: Any) -> Any:
    """Adds `--json` and `--csv` to a command, which receives `output: Output`."""
    function = click.option(
        "--csv", "output", flag_value=Output.CSV.value, type=Output, help="Print comma-separated values."
    )(function)
    function = click.option(
        "--json", "output", flag_value=Output.JSON.value, type=Output, help="Print JSON."
    )(function)
    return click.option(
        "--table",
        "output",
        flag_value=Output.TABLE.value,
        type=Output,
        default=Output.TABLE.value,
        help="Print a table (the default).",
    )(function)


def console(*, stderr: bool = False) -> Console:
    """A console that is wide enough for a table when it is piped, and plain then."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PIPE_WIDTH)


def format_time(time_ms: int | None) -> str:
    """A time for people: ISO 8601 in UTC, seconds; empty when there is none."""
    return "" if not time_ms else f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"


def _plain(value: object) -> object:
    return f"{value:f}" if isinstance(value, Decimal) else value


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal):
        return f"{value:,f}"
    return str(value)


def print_rows(
    rows: Sequence[Mapping[str, object]], output: Output, *, title: str = "", empty: str = "nothing"
) -> None:
    """Print rows that share their keys. Numbers are set right and grouped by thousands in tables only."""
    if output is Output.JSON:
        click.echo(
            json.dumps([{k: _plain(v) for k, v in row.items()} for row in rows], indent=2, default=str)
        )
        return
    if output is Output.CSV:
        if rows:
            writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: _plain(v) for k, v in row.items()} for row in rows)
        return
    if not rows:
        click.echo(f"{title}: {empty}" if title else empty)
        return
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name, value in rows[0].items():
        numeric = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console().print(table)
