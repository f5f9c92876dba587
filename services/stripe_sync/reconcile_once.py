"""`python -m services.stripe_sync.reconcile_once`: reconcile chosen periods now, beside whoever leads.

Owns the arguments, the wiring and what is said on the way: one line on stdout for each period done, `DONE TOTAL`. What
was found is in the ledger, for whoever asked. It refuses to contain a rule, and it changes no posting.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys

from services.stripe_sync.book import ReconciliationLedger, Threads
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import CallFailed, StripeGateway
from services.stripe_sync.reconciler import Reconciler
from services.stripe_sync.settings import StripeSyncSettings
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.errors import LedgerError
from tollgate.ledger.init import check_pins
from tollgate.ledger.reconciliation_subjects import find_subjects
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings


async def reconcile_now(
    settings: StripeSyncSettings,
    engine: Engine,
    *,
    customer: str | None,
    meter: str | None,
    at_ms: int | None,
    since_ms: int | None,
) -> int:
    """Reconcile every period that fits; the exit code: 0, or 1 when Stripe or the ledger could not be asked at all."""
    clock = SystemClock()
    threads = Threads(settings.ledger.pool_size)
    stripe = settings.stripe
    gateway = StripeGateway(
        stripe.api_key.get_secret_value(),
        api_base=stripe.api_base,
        connect_timeout_seconds=stripe.connect_timeout_seconds,
        read_timeout_seconds=stripe.read_timeout_seconds,
    )
    try:
        account = await gateway.account()
        pinned = functools.partial(check_pins, engine, stripe_account=account, stripe_mode=stripe.mode)
        await threads.call(pinned)
        wanted = functools.partial(
            find_subjects, engine, customer=customer, meter=meter, at_ms=at_ms, since_ms=since_ms
        )
        subjects = await threads.call(wanted)
        reconciler = Reconciler(
            book=ReconciliationLedger(engine, threads),
            stripe=gateway,
            # The leader has a bucket of its own; a quarter beside it stays inside Stripe's limit.
            bucket=TokenBucket(settings.calls_per_second / 4, 1, clock.monotonic_seconds()),
            clock=clock,
            terms=settings.reconcile_terms,
            reads_per_day=settings.reconcile.reads_per_day,
            check_seconds=settings.reconcile.check_seconds,
            metrics=None,
        )
        for done, subject in enumerate(subjects, 1):
            # Somebody names a customer to know it for certain: then also what was never sent is asked for.
            await reconciler.reconcile(subject, always_ask=customer is not None)
            sys.stdout.write(f"{done} {len(subjects)}\n")
            sys.stdout.flush()
    except (CallFailed, LedgerError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        await gateway.close()
        threads.close()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Read the settings (exit code 2 with every mistake named), reconcile, end."""
    parser = argparse.ArgumentParser(
        prog="python -m services.stripe_sync.reconcile_once", description="Reconcile chosen periods now."
    )
    parser.add_argument("--customer", help="only this Stripe customer")
    parser.add_argument("--meter", help="only this meter")
    parser.add_argument("--at-ms", type=int, help="only periods this moment lies in (epoch milliseconds)")
    parser.add_argument("--since-ms", type=int, help="only periods that end after this moment")
    chosen = parser.parse_args(arguments)
    settings = load_settings(StripeSyncSettings)
    engine = open_ledger(
        settings.ledger.url.get_secret_value(),
        pool_size=settings.ledger.pool_size,
        statement_timeout_ms=settings.ledger.statement_timeout_ms,
    )
    try:
        return asyncio.run(
            reconcile_now(
                settings,
                engine,
                customer=chosen.customer,
                meter=chosen.meter,
                at_ms=chosen.at_ms,
                since_ms=chosen.since_ms,
            )
        )
    finally:
        engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
