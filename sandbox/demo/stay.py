"""`make demo KEEP=1`: what to try while everything stays up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

from rich.console import Console

from sandbox.stack import Stack


def stay_up(console: Console) -> Callable[[Stack, str], None]:
    """Prints addresses, a token and something to try, then waits for Ctrl-C or SIGTERM."""

    def linger(stack: Stack, token: str) -> None:
        console.print("\n[bold]Still up.[/] Ctrl-C stops everything.")
        for name in stack.ports:
            console.print(f"  {name:<12} {stack.url(name)}  (/readyz, /metrics)")
        console.print(f"  {'stripe':<12} {stack.settings.stripe_url}  (/_totals, /_meter_events, /_faults)")
        console.print(f"\nToken for gateways: {token}\nTry:")
        console.print(
            f"  curl -sS {stack.url('ingest')}/v1/logs/kong -H 'Authorization: Bearer {token}' \\\n"
            '    -H \'Content-Type: application/json\' -d \'{"request":{"id":"\'$(date +%s)\'"},'
            '"response":{"status":200},"consumer":{"custom_id":"cus_try"},'
            "\"started_at\":'$(date +%s)'000}'",
            soft_wrap=True,
        )
        console.print("  and with this environment, `tollgate usage`, `tollgate held`, `tollgate verify`:")
        for key, value in sorted(stack.environment().items()):
            if key.startswith(("TOLLGATE_", "STRIPE_")) and value:
                console.print(f"    export {key}='{value}'", soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.sigwait({signal.SIGINT, signal.SIGTERM})

    return linger
