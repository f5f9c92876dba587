"""Logs: one shape for everybody's lines, and a repeated line told once with a count."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from tollgate.runtime.clock import ManualClock
from tollgate.runtime.logging import RepeatFilter, configure_logging
from tollgate.runtime.settings import LogSettings


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    uvicorn_level = logging.getLogger("uvicorn").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn").setLevel(uvicorn_level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_libraries_lines_have_one_shape() -> None:
    """Off a terminal every line is one JSON object with service, level, logger and time."""
    stream = io.StringIO()
    configure_logging("gate", LogSettings(), stream=stream)
    structlog.get_logger("tollgate.gate").info("batch.committed", offset=7)
    logging.getLogger("some.library").warning("lost %s", "it")
    ours, theirs = lines(stream)
    assert (ours["event"], ours["offset"], ours["level"]) == ("batch.committed", 7, "info")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("lost it", "warning", "some.library")
    for line in (ours, theirs):
        assert line["service"] == "gate"
        assert line["timestamp"].endswith("Z")


def test_exceptions_stay_on_one_line() -> None:
    """A traceback is a field of the line, from our code and from libraries."""
    stream = io.StringIO()
    configure_logging("gate", LogSettings(), stream=stream)
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger("a").exception("service.failed")
        logging.getLogger("b").exception("failed")
    assert ["ValueError: boom" in line["exception"] for line in lines(stream)] == [True, True]


def test_level_holds_for_everybody() -> None:
    """Lines below the chosen level are not written, and the level's name may be in capitals."""
    stream = io.StringIO()
    configure_logging("gate", LogSettings.model_validate({"level": "WARNING"}), stream=stream)
    structlog.get_logger("a").info("not.written")
    logging.getLogger("b").info("not written")
    structlog.get_logger("a").warning("is.written")
    assert [line["event"] for line in lines(stream)] == ["is.written"]


def test_terminal_gets_text_and_colours_unless_refused() -> None:
    """A terminal gets coloured text, no colours with NO_COLOR, and never colours in a pipe."""

    def written(stream: io.StringIO, settings: LogSettings) -> str:
        configure_logging("gate", settings, stream=stream)
        structlog.get_logger("a").info("batch.committed")
        return stream.getvalue()

    assert "\x1b[" in written(Terminal(), LogSettings())
    plain = written(Terminal(), LogSettings(no_color="1"))
    assert "batch.committed" in plain
    assert "\x1b[" not in plain
    assert "\x1b[" not in written(io.StringIO(), LogSettings(format="console"))
    assert json.loads(written(Terminal(), LogSettings(format="json")))["event"] == "batch.committed"


def test_outage_is_one_line_of_a_kind_with_a_count() -> None:
    """A thousand equal errors of aiokafka are one line, and the next after ten seconds says how many were not told."""
    stream, clock = io.StringIO(), ManualClock()
    configure_logging("gate", LogSettings(), stream=stream, clock=clock)
    broken = logging.getLogger("aiokafka.conn")
    for number in range(1_000):
        broken.error("cannot connect to %s", number)
        logging.getLogger("aiokafka").warning("retrying")
        clock.advance_ms(5)
    assert [line["event"] for line in lines(stream)] == ["cannot connect to 0", "retrying"]
    clock.advance_ms(5_000)
    broken.error("cannot connect to %s", "again")
    assert lines(stream)[-1]["event"] == "cannot connect to again"
    assert lines(stream)[-1]["suppressed"] == 999
    clock.advance_ms(10_000)
    broken.error("cannot connect to %s", "later")
    assert "suppressed" not in lines(stream)[-1]


def test_other_loggers_are_never_damped() -> None:
    """Our own lines, and a library whose name only begins alike, are all written."""
    stream = io.StringIO()
    configure_logging("gate", LogSettings(), stream=stream, clock=ManualClock())
    for _ in range(3):
        structlog.get_logger("tollgate").error("posting.rejected")
        logging.getLogger("aiokafkaesque").error("same")
    assert len(lines(stream)) == 6


def test_kinds_do_not_pile_up() -> None:
    """However many kinds of line there are, the filter remembers a bounded number."""
    clock = ManualClock()
    damping = RepeatFilter(["noisy"], 10, clock)
    for number in range(5_000):
        assert damping.filter(
            logging.makeLogRecord({"name": "noisy", "levelno": 40, "msg": f"kind {number}"})
        )
    assert len(damping._passed) == 1_024
