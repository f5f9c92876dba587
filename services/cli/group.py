"""How commands end when they cannot do what was asked: one clear line, and an exit code that can be relied upon.

Owns the group that suggests the nearest command, and the translation of what commands raise into what people read.
It refuses to know any command.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


class WrongSettings(click.ClickException):
    """A setting that only shows to be wrong when it is used. Exit code 2, as for all settings errors."""

    exit_code = 2


class Group(click.Group):
    """A group that says which command may have been meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near and near[0] not in error.message:
                error.message += f" Did you mean {near[0]!r}?"
            raise


class RootGroup(Group):
    """The outermost group: nothing that an operator can mend leaves it as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _quiet_client():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            explained = explain(error)
            if explained is None:
                raise
            raise click.ClickException(explained) from error


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Kafka's client logs every refused connection; the command says once what that means."""
    logger = logging.getLogger("aiokafka")
    before = logger.propagate
    handler = logging.NullHandler()
    # A handler of its own, or Python's last resort would print what does not propagate.
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Clients log every refused connection; the command says once what that means."""
    logger, handler = logging.getLogger(name), logging.NullHandler()
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagated
        logger.removeHandler(handler)


def explain(error: Exception) -> str | None:
    """What an operator should read instead of this error; None for one that is a bug."""
    # Imported on failure alone, so that commands start at once.
    from services.cli.log import BrokerUnreachable, LogStalled, NoSuchTopic
    from tollgate.contracts.archive import NotAnArchive
    from tollgate.ledger.errors import (
        CommitUnknown,
        LedgerError,
        LedgerNotReady,
        LedgerRefused,
        LedgerUnavailable,
        PinMismatch,
    )

    if isinstance(
        error, NoSuchTopic | LogStalled | BrokerUnreachable | LedgerNotReady | PinMismatch | NotAnArchive
    ):
        return str(error)
    if isinstance(error, LedgerUnavailable):
        return f"the ledger cannot be reached: {error}"
    if isinstance(error, LedgerRefused):
        return f"the ledger refused: {error} (has `tollgate init` been run since the last upgrade?)"
    if isinstance(error, CommitUnknown):
        return f"the connection to the ledger was lost; look whether it was done, then try again: {error}"
    return str(error) if isinstance(error, LedgerError) else None
