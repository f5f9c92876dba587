"""`tollgate`: the command line. Owns the list of commands and how errors end; each command is a file beside this one.

Commands are imported when they are called, so that `tollgate --help` answers at once.
"""

from __future__ import annotations

import importlib

import click

from services.cli.group import RootGroup
from tollgate import __version__

_COMMANDS = {
    # name: (module, attribute, short help)
    "init": ("init", "init", "Create topics and schema, pin what belongs together. Safe to run again."),
    "run": ("run", "run", "Run one service in the foreground."),
    "demo": ("demo", "demo", "See it work: 100,000 events from a gateway's log to Stripe usage."),
    "doctor": ("doctor", "doctor", "Check broker, topics, ledger, pins, Stripe and meters; say what to do."),
    "meters": ("meters", "meters", "Apply, list and explain meters."),
    "stripe": (
        "stripe_connect",
        "stripe",
        "Tie a Stripe account to this installation: webhooks, secrets, scopes.",
    ),
    "tokens": ("tokens", "tokens", "Create, list and revoke the tokens gateways send with."),
    "events": ("events", "events", "Read the log of events."),
    "amend": ("amend", "amend", "Correct what was counted, with a reason, on the log like any event."),
    "usage": ("usage", "usage", "Show what has been counted."),
    "postings": ("postings", "postings", "Show, park and resume what goes to Stripe."),
    "held": ("held", "held", "Show usage that is not posted, and why."),
    "dead": ("dead", "dead", "List, show and replay events that could not be counted."),
    "sync": ("sync", "sync", "Pause, resume or hurry the posting to Stripe."),
    "customers": ("customers", "customers", "Show and import Stripe customers and their accounts."),
    "preview": ("preview", "preview", "Show a customer's coming invoices, next to Stripe's own preview."),
    "reconcile": (
        "reconcile",
        "reconcile",
        "Compare what was counted, posted, held by Stripe and invoiced.",
    ),
    "replay": ("replay", "replay", "Count archive or log again with any meters, beside what is billed."),
    "verify": ("verify", "verify", "Prove that every accepted event ended somewhere known."),
    "cutover": ("cutover", "cutover", "Go over to more partitions of the log. Safe to run again."),
    "maintain": ("maintain", "maintain_command", "Remove what has been kept long enough; keep tables small."),
}


class _LazyGroup(RootGroup):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[name]
        command = getattr(importlib.import_module(f"services.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, _, help_) in _COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tollgate")
def cli() -> None:
    """Tollgate turns a gateway's log into money.

    Every event is counted once against billing meters, every unit is posted to Stripe once. Settings come from
    TOLLGATE_… variables; docs/configuration.md lists them.
    """


def main() -> None:
    """Entry point of the `tollgate` script. Exit codes: 0 done, 1 it failed or found something, 2 wrong use."""
    cli.main(prog_name="tollgate")


if __name__ == "__main__":
    main()
