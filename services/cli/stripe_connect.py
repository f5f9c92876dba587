"""`tollgate stripe`: tie a Stripe account to this installation.

Owns the order of `connect` and where secrets go. It refuses to know what a destination is made of (`destinations`).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import click

from services.cli.destinations import CannotConnect, Kind, Registered, register
from services.cli.gateway import StripeGateway, StripeUnreachable, key_mode
from services.cli.group import Group
from services.cli.key_scopes import READS, WRITES, missing_scopes
from services.cli.ledger import open_book
from services.cli.secret_file import check_private, read_secrets, write_secrets
from services.cli.settings import CliSettings
from tollgate.ledger.init import check_pins
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings

PATH = "/stripe/webhooks"
"""Where the webhooks service listens."""
VARIABLES = {Kind.CLASSIC: "TOLLGATE_STRIPE__WEBHOOK_SECRETS", Kind.THIN: "TOLLGATE_STRIPE__THIN_SECRETS"}


@click.group(cls=Group)
def stripe() -> None:
    """Tie a Stripe account to this installation."""


@stripe.command()
@click.option("--url", required=True, help=f"Where Stripe reaches the webhooks service: https://…{PATH}.")
@click.option(
    "--secret-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the signing secrets in this env file (mode 0600) instead of printing them.",
)
@click.option(
    "--renew",
    is_flag=True,
    help="Make new destinations in place of those there are: new secrets, today's API version.",
)
def connect(url: str, secret_file: Path | None, renew: bool) -> None:
    """Have Stripe tell the webhooks service what happens, and check what the key may do.

    Registers one webhook endpoint (customers, subscriptions, invoices, Billing Meters, prices, products; pinned API
    version) and one event destination (usage that Stripe refuses later). Their signing secrets are shown by Stripe
    only now: they are written to --secret-file, or printed once. Connecting again changes nothing.

    \b
    Exit codes: 0 connected, 1 refused, or a scope is missing, 2 wrong use.
    """
    settings = load_settings(CliSettings)
    if settings.stripe.api_key is None:
        raise click.ClickException("Stripe: no key: set STRIPE_API_KEY")
    mode = key_mode(settings.stripe.api_key.get_secret_value())
    _check_url(url, mode)
    problem = check_private(secret_file) if secret_file is not None else None
    if problem is not None:
        raise click.UsageError(f"--secret-file: {problem}")
    engine = open_book(settings)
    check_pins(engine, stripe_mode=mode)
    try:
        with StripeGateway(settings.stripe) as gateway:
            account = gateway.account()
            pins = check_pins(engine, stripe_account=account.account)
            click.echo(f"Stripe  account {account.account}, {account.mode} mode")
            for kind in Kind:
                _connect(gateway, kind, url, pins.ledger_id, secret_file, renew=renew)
            complete = _report_scopes(gateway)
    except StripeUnreachable as error:
        raise click.ClickException(f"Stripe: {error}; connect again to go on") from None
    except CannotConnect as error:
        raise click.ClickException(str(error)) from None
    if not complete:
        raise SystemExit(1)


def _check_url(url: str, mode: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.UsageError(f"--url: {url!r} is no address like https://example.com{PATH}")
    if parts.scheme == "http" and mode == "live":
        raise click.UsageError("--url: Stripe sends live events to https only")
    if parts.path.rstrip("/") != PATH:
        click.echo(
            f"warning: the webhooks service listens at {PATH}, the address ends in {parts.path!r}", err=True
        )


def _connect(
    gateway: StripeGateway, kind: Kind, url: str, ledger_id: str, secret_file: Path | None, *, renew: bool
) -> None:
    variable = VARIABLES[kind]
    kept = secret_file is not None and bool(read_secrets(secret_file).get(variable))

    def keep(secret: str) -> None:
        if secret_file is not None:
            write_secrets(secret_file, {variable: secret})

    registered = register(
        gateway,
        kind,
        url,
        ledger_id,
        have_secret=kept,
        renew=renew,
        now_s=SystemClock().now_ms() // 1000,
        keep_secret=keep,
    )
    if registered.secret is not None:
        keep(registered.secret)
    for line in _describe(registered, variable, secret_file, kept=kept):
        click.echo(line)


def _describe(registered: Registered, variable: str, secret_file: Path | None, *, kept: bool) -> list[str]:
    lines = [f"  {registered.kind:<18}{registered.destination_id}  {registered.did}"]
    if registered.secret is not None and secret_file is None:
        lines += [
            "    shown this once; the webhooks service needs it:",
            f"    {variable}={registered.secret}",
        ]
    elif registered.secret is not None:
        lines.append(f"    {variable} is in {secret_file}; restart the webhooks service with it")
    elif kept:
        lines.append(f"    {variable} is in {secret_file}")
    else:
        lines.append("    its secret was shown when it was made; lost? --renew makes another in its place")
    return lines


def _report_scopes(gateway: StripeGateway) -> bool:
    """Say which scopes the key lacks; whether it lacks none."""
    missing = missing_scopes(gateway)
    click.echo(f"Key     {len(READS) - len(missing)} of {len(READS)} reads allowed")
    for scope in missing:
        click.echo(f"  missing: {scope.name}, needed by {', '.join(scope.services)}")
    for name, service in WRITES:
        click.echo(f"  not proven, since only a write would show it: {name}, needed by {service}")
    return not missing
