"""`tollgate run <service>`: one service in the foreground, as a supervisor would start it."""

from __future__ import annotations

import os
import sys

import click

SERVICES = {
    "ingest": "takes gateways' log events in (HTTP, port 8600)",
    "meter": "counts them (Faust worker, metrics on port 8640)",
    "stripe_sync": "posts usage to Stripe (metrics on port 8650)",
    "webhooks": "keeps customers in step with Stripe (HTTP, port 8610)",
    "archive": "keeps the log of events as Parquet files (metrics on port 8660)",
}


@click.command()
@click.argument("service", type=click.Choice(list(SERVICES)))
def run(service: str) -> None:
    """Run SERVICE in the foreground until SIGTERM.

    \b
    ingest       takes gateways' log events in (HTTP, port 8600)
    meter        counts them (Faust worker, metrics on port 8640)
    stripe_sync  posts usage to Stripe (metrics on port 8650)
    webhooks     keeps customers in step with Stripe (HTTP, port 8610)
    archive      keeps the log of events as Parquet files (metrics on port 8660)
    """
    # The service becomes this process: signals and exit codes are its own.
    os.execv(sys.executable, [sys.executable, "-m", f"services.{service}"])  # noqa: S606
