"""A moment as operators write it.

Owns the one parameter type for times. It refuses to know what the moment is for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click


def parse_moment_ms(text: str) -> int:
    """An ISO 8601 date or time, UTC when it names no zone, as epoch milliseconds. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


class Moment(click.ParamType):
    """An ISO 8601 time, UTC when it names no zone; becomes epoch milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_moment_ms(str(value))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not an ISO 8601 time such as 2026-11-22T14:00", param, ctx)
