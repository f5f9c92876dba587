"""`tollgate tokens`: what gateways authenticate with. A token is shown once; the ledger keeps its hash."""

from __future__ import annotations

import click

from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.group import Group
from services.cli.ledger import open_book
from services.cli.settings import CliSettings
from tollgate.ledger.sources import create_source, list_sources, revoke_source
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings


@click.group(cls=Group)
def tokens() -> None:
    """Create, list and revoke the tokens gateways send with."""


@tokens.command()
@click.argument("source")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["write", "replay"]),
    default=["write"],
    show_default=True,
    help="write: send events. replay: send dead letters again.",
)
def create(source: str, scopes: tuple[str, ...]) -> None:
    """Make a token for SOURCE and print it, this once.

    A source may have several tokens, so that one can be rotated: make the new one, change the gateway, revoke the old.
    """
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    try:
        click.echo(create_source(engine, source, scopes, SystemClock().now_ms()))
        click.echo("Shown this once. A running ingest takes it within seconds.", err=True)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@tokens.command(name="list")
@output_options
def list_(output: Output) -> None:
    """List tokens: never the secrets."""
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    rows = [
        {
            "source": token.name,
            "token": f"tg_{token.token_id}_…",
            "scopes": " ".join(sorted(token.scopes)),
            "created": format_time(token.created_ms),
            "revoked": format_time(token.revoked_ms),
        }
        for token in list_sources(engine)
    ]
    print_rows(rows, output, title="Tokens", empty="none yet; make one with `tollgate tokens create SOURCE`")


@tokens.command()
@click.argument("source")
@click.option(
    "--token", "token_id", help="Only the token with this public part (between tg_ and the second _)."
)
def revoke(source: str, token_id: str | None) -> None:
    """Revoke the tokens of SOURCE, or one of them. Ingest refuses them within seconds."""
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    bare = token_id.removeprefix("tg_").split("_")[0] if token_id else None
    revoked = revoke_source(engine, source, SystemClock().now_ms(), bare)
    if not revoked:
        raise click.ClickException(f"{source} has no such live token; `tollgate tokens list` shows them")
    click.echo(f"revoked {revoked}")
