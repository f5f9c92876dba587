"""`python -m services.meter`: reads the settings and runs the meter until it is told to stop."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial


def main() -> int:
    """The process' exit code: 0 after an orderly stop, 1 after a failure, 2 for settings that cannot be."""
    # Before Polars is imported: the fold has one thread of its own, and the rest of the machine its other work.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from services.meter.service import run_meter
    from services.meter.settings import MeterSettings
    from tollgate.runtime.logging import configure_logging
    from tollgate.runtime.settings import load_settings
    from tollgate.runtime.shutdown import run_service

    settings = load_settings(MeterSettings)
    configure_logging("meter", settings.log, damped=("aiokafka", "faust", "mode"))
    # Their info lines tell of internals, a dozen a rebalance.
    for name in ("faust", "mode", "aiokafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return run_service(partial(run_meter, settings), settings.shutdown_seconds)


if __name__ == "__main__":
    sys.exit(main())
