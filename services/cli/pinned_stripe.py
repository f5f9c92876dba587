"""A command's conversation with Stripe, on the account and in the mode the ledger is pinned to.

Owns that check for commands about one customer. It refuses to know what is asked of Stripe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.cli.gateway import StripeGateway, key_mode
from services.cli.settings import StripeSettings
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import check_pins


@contextmanager
def pinned_stripe(engine: Engine, settings: StripeSettings) -> Iterator[StripeGateway]:
    """A gateway whose key belongs to this ledger. Raises StripeUnreachable, PinMismatch, LedgerNotReady."""
    if settings.api_key is not None:
        # Before the first call: a live key is not tried out on a test ledger.
        check_pins(engine, stripe_mode=key_mode(settings.api_key.get_secret_value()))
    with StripeGateway(settings) as stripe:
        check_pins(engine, stripe_account=stripe.account().account)
        yield stripe
