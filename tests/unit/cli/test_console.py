"""Rows for people, and for programs."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import pytest

from services.cli.console import Output, format_time, print_rows

ROWS: list[dict[str, object]] = [
    {"meter": "calls", "quantity": Decimal("1234567.5"), "events": 1234567, "account": "user:" + "x" * 300},
    {"meter": "tokens", "quantity": Decimal("1E+3"), "events": 0, "account": None},
]


def test_a_piped_table_is_plain_and_a_line_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """No colour codes, nothing folded or cut, thousands grouped."""
    print_rows(ROWS, Output.TABLE, title="Usage")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    (line,) = [line for line in printed.splitlines() if "calls" in line]
    assert line.split() == ["calls", "1,234,567.5", "1,234,567", "user:" + "x" * 300]
    assert any(line.split() == ["tokens", "1,000", "0"] for line in printed.splitlines())


def test_json_keeps_quantities_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """Decimals are text without exponent; nothing becomes a float."""
    print_rows(ROWS, Output.JSON)
    found = json.loads(capsys.readouterr().out)
    assert [row["quantity"] for row in found] == ["1234567.5", "1000"]
    assert found[1]["account"] is None


def test_csv_has_a_header_and_ungrouped_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """What a spreadsheet reads."""
    print_rows(ROWS, Output.CSV)
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["meter"], row["quantity"], row["events"]) for row in found] == [
        ("calls", "1234567.5", "1234567"),
        ("tokens", "1000", "0"),
    ]


def test_nothing_is_said_or_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty table says so in words; JSON is an empty list; CSV is empty."""
    for output, expected in ((Output.TABLE, "Held: none\n"), (Output.JSON, "[]\n"), (Output.CSV, "")):
        print_rows([], output, title="Held", empty="none")
        assert capsys.readouterr().out == expected


def test_times_are_utc_seconds() -> None:
    """None and 0 are no time."""
    assert format_time(1_700_000_000_999) == "2023-11-14 22:13:20Z"
    assert (format_time(None), format_time(0)) == ("", "")
