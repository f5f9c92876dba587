"""`tollgate tokens`: what gateways authenticate with. A token is shown once; the ledger keeps its hash."""

from __future__ import annotations

import click

from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.settings import CliSettings
from tollgate.ledger.catalogue import create_source, list_sources, revoke_source
from tollgate.ledger.engine import open_ledger
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings


@click.group()
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
    engine = open_ledger(settings.ledger.url.get_secret_value())
    click.echo(create_source(engine, source, scopes, SystemClock().now_ms()))


@tokens.command(name="list")
@output_options
def list_(output: Output) -> None:
    """List tokens: never the secrets."""
    settings = load_settings(CliSettings)
    engine = open_ledger(settings.ledger.url.get_secret_value())
    rows = [
        {
            "source": token.name,
            "token": f"tg_{token.token_id}_…",
            "scopes": " ".join(token.scopes),
            "created": format_time(token.created_ms),
            "revoked": format_time(token.revoked_ms),
        }
        for token in list_sources(engine)
    ]
    print_rows(rows, output, title="Tokens", empty="none yet; make one with `tollgate tokens create SOURCE`")


@tokens.command()
@click.argument("token_id")
def revoke(token_id: str) -> None:
    """Revoke the token with TOKEN_ID (the part between tg_ and the second _). Ingest refuses it within seconds."""
    settings = load_settings(CliSettings)
    engine = open_ledger(settings.ledger.url.get_secret_value())
    bare = token_id.removeprefix("tg_").split("_")[0]
    if not revoke_source(engine, bare, SystemClock().now_ms()):
        raise click.ClickException(f"no live token {bare}; `tollgate tokens list` shows them")
    click.echo(f"revoked {bare}")
