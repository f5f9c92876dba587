"""Logs: one structured stream to stdout, from our own code and from every library.

Owns the set-up: the shape of a line, levels, colours, and the damping of libraries that repeat themselves. It
refuses to know what is logged. Called once, by `__main__`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tollgate.runtime.clock import Clock, SystemClock
from tollgate.runtime.settings import LogSettings

REPEAT_SECONDS = 10.0
"""While a broker is down aiokafka writes 65 lines a second and worker; one of a kind in this time tells as much."""

TALKATIVE = ("aiokafka", "alembic", "httpx", "stripe", "uvicorn")
"""Libraries that are heard from warnings on, unless the level is debug."""

_KINDS_MAX = 1024


def configure_logging(
    service: str,
    settings: LogSettings,
    *,
    stream: TextIO | None = None,
    clock: Clock | None = None,
    damped: Sequence[str] = ("aiokafka",),
) -> None:
    """Send every log line of this process to stdout (or `stream`), named after `service`.

    On a terminal, text; otherwise one JSON object a line. Libraries' lines take the same shape. Loggers named in
    `damped`, and those below them, write one line of a kind per `REPEAT_SECONDS`; the next of the kind carries
    `suppressed`, the number left out before it. Replaces any earlier set-up.
    """
    stream = stream or sys.stdout
    terminal = stream.isatty()
    console = settings.format == "console" or (settings.format == "auto" and terminal)

    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_service,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderers: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=terminal and not settings.no_color)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=["suppressed"])],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    # On the handler: a filter on a logger does not see the lines of the loggers below it.
    handler.addFilter(RepeatFilter(damped, REPEAT_SECONDS, clock or SystemClock()))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    # What these say below a warning repeats what services say themselves, a line or three a call.
    for talkative in TALKATIVE:
        logging.getLogger(talkative).setLevel(
            logging.NOTSET if settings.level == "debug" else logging.WARNING
        )
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class RepeatFilter(logging.Filter):
    """Lets one line of a kind through per period, with a count of those it held back.

    A kind is logger, level and the unformatted message: lines that differ in their arguments alone are one kind.
    """

    def __init__(self, loggers: Sequence[str], period_seconds: float, clock: Clock) -> None:
        super().__init__()
        self._loggers = tuple(loggers)
        self._period_seconds = period_seconds
        self._clock = clock
        self._passed: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(record.name == name or record.name.startswith(name + ".") for name in self._loggers):
            return True
        kind = (record.name, record.levelno, str(record.msg))
        now = self._clock.monotonic_seconds()
        last = self._passed.get(kind)
        if last is not None and now - last[0] < self._period_seconds:
            self._passed[kind] = (last[0], last[1] + 1)
            return False
        if last is not None and last[1]:
            record.suppressed = last[1]
        # Moved to the end, so that the first key is the kind silent for longest and memory stays bounded.
        self._passed.pop(kind, None)
        if len(self._passed) >= _KINDS_MAX:
            del self._passed[next(iter(self._passed))]
        self._passed[kind] = (now, 0)
        return True


def bound_logger(name: str, **context: Any) -> structlog.stdlib.BoundLogger:
    """A logger with `context` on every line. Safe to make at import: it takes its shape when it is used."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name, **context)
    return logger
