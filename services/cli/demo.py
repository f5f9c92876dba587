"""`tollgate demo`: hands over to the sandbox, which talks to the services from outside only."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import click


@click.command()
@click.option(
    "--events", type=click.IntRange(100), default=100_000, show_default=True, help="How many to send."
)
@click.option(
    "--seed", type=int, default=2026, show_default=True, help="The same seed sends the same events."
)
@click.option(
    "--broker",
    type=click.Choice(["embedded", "kafka"]),
    default="embedded",
    show_default=True,
    help="embedded: in memory, nothing to install. kafka: Apache Kafka from Maven jars (Java 17, mvn).",
)
@click.option(
    "--meters",
    "meters_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("meters.yaml"),
    show_default=True,
    help="The meters to apply; the truth is told for the repository's own five.",
)
@click.option("--keep", is_flag=True, help="Stay up at the end; Ctrl-C stops everything.")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="Where logs and the ledger go."
)
def demo(events: int, seed: int, broker: str, meters_path: Path, keep: bool, directory: Path | None) -> None:
    """See it work: events from a gateway's log become usage on Stripe customers, exactly.

    Starts every service as a process of its own, with an embedded broker, an SQLite ledger and a stand-in for Stripe,
    unless KAFKA_BOOTSTRAP_SERVERS or DATABASE_URL name real ones. While events flow, the meter and then stripe_sync
    are killed with SIGKILL and started again. Exits 1 when any number is off. Leaves no process behind.
    """
    from sandbox.child import PartFailed, PartUnavailable
    from sandbox.demo.parts import demo_parts
    from sandbox.demo.stay import stay_up
    from sandbox.demo.story import Story, tell
    from services.cli.console import console as new_console

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # As Ctrl-C: by default SIGTERM would skip every clean-up and leave the processes running.
    signal.signal(signal.SIGTERM, interrupt)
    console = new_console()
    with tempfile.TemporaryDirectory(prefix="tollgate-demo-") as temporary:
        place = directory or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        story = Story(events=events, seed=seed, meters_path=meters_path, directory=place, console=console)
        try:
            with demo_parts(place, broker=broker, say=console.print) as parts:
                good = tell(story, parts, linger=stay_up(console) if keep else None)
        except (PartFailed, PartUnavailable) as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            console.print("stopped")
            sys.exit(130)
    if not good:
        console.print("[bold red]Something is off: see above.[/]")
        sys.exit(1)
    console.print("[bold green]Every event ended somewhere known; Stripe holds what the ledger holds.[/]")
