"""The ledger as commands open it: only one that is there, and closed when the command ends.

Owns that opening. It refuses to know what is read from it.
"""

from __future__ import annotations

from pathlib import Path

import click

from services.cli.group import WrongSettings
from services.cli.settings import CliSettings
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.errors import LedgerNotReady


def open_book(settings: CliSettings, *, create: bool = False) -> Engine:
    """The ledger of `settings`, closed with the running command.

    Connects on first use. A SQLite file that is not there is made with `create` alone: an empty one would look like
    a ledger. Raises LedgerNotReady without it, WrongSettings for a URL that names no ledger.
    """
    try:
        engine = open_ledger(settings.ledger.url.get_secret_value())
    except Exception:
        # The error may hold the URL, and the URL a password.
        raise WrongSettings(
            "TOLLGATE_LEDGER__URL or DATABASE_URL: neither postgresql://user:password@host/name nor sqlite:///file"
        ) from None
    click.get_current_context().call_on_close(engine.dispose)
    if engine.dialect.name == "sqlite":
        path = Path(engine.url.database or "")
        if not create and not path.exists():
            raise LedgerNotReady(f"there is no ledger at {path}; run `tollgate init`")
        if create and not path.absolute().parent.is_dir():
            raise WrongSettings(
                f"TOLLGATE_LEDGER__URL or DATABASE_URL: no directory {path.absolute().parent}"
            )
    return engine
