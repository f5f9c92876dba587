"""A file of meters as commands read it.

Owns ending a command with every problem of the file. It refuses to know what the meters are for.
"""

from __future__ import annotations

from pathlib import Path

import click

from tollgate.metering.definition import MeterSet, MeterVersion
from tollgate.metering.errors import InvalidMeter
from tollgate.metering.meter import Meter, parse_meters


def parse_file(path: Path) -> tuple[Meter, ...]:
    """The meters of a file. Raises SystemExit(1) after printing every problem."""
    try:
        return parse_meters(path.read_text(), str(path))
    except InvalidMeter as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(1) from None


def read_meters(path: Path) -> MeterSet:
    """The same as a set that counts all of time, with numbers of its own. Raises SystemExit(1)."""
    return MeterSet(
        version=0,
        meters=tuple(
            MeterVersion(meter_id=number, meter=meter, from_ms=0, to_ms=None)
            for number, meter in enumerate(parse_file(path), start=1)
        ),
    )
