"""`python -m services.archive`: reads the settings and archives until it is told to stop."""

from __future__ import annotations

import logging
import sys
from functools import partial

from services.archive.service import SERVICE, run_archive
from services.archive.settings import ArchiveSettings
from tollgate.runtime.logging import configure_logging
from tollgate.runtime.settings import load_settings
from tollgate.runtime.shutdown import run_service


def main() -> int:
    """The process' exit code: 0 after an orderly stop, 1 after a failure, 2 for settings that cannot be."""
    settings = load_settings(ArchiveSettings)
    configure_logging(SERVICE, settings.log, damped=("aiokafka",))
    # Its info lines tell of internals, a dozen a rebalance.
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    return run_service(partial(run_archive, settings), settings.shutdown_seconds)


if __name__ == "__main__":
    sys.exit(main())
