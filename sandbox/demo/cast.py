"""Who the demo bills: three companies, each known to the gateway in another way.

Owns their names and what is created at Stripe for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.shop import Shop, Shopper
from sandbox.traffic.calls import Identity

LOOKUP_KEYS = ("tollgate_api_calls", "tollgate_chat_tokens", "tollgate_egress_bytes")
"""Of the prices that `meters apply` makes of meters.yaml."""

DAY_SECONDS = 86_400


def yesterday_s(now_s: int) -> int:
    """Midnight UTC at yesterday's start: when the demo's subscriptions begin, so that all its calls lie within them."""
    return now_s // DAY_SECONDS * DAY_SECONDS - DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Cast:
    """The customers, and how the gateway names them."""

    shoppers: tuple[Shopper, ...]
    identities: tuple[Identity, ...]

    def name_of(self, customer: str) -> str:
        """The company behind a Stripe customer id."""
        return next((s.name for s in self.shoppers if s.customer == customer), customer)


def hire_cast(shop: Shop) -> Cast:
    """Create three customers with subscriptions to every price, which begin at Stripe's now."""
    prices = shop.find_prices(LOOKUP_KEYS)
    shoppers = tuple(
        shop.sign_up(name, email, prices)
        for name, email in (
            ("Acme", "billing@acme.example"),
            ("Globex", "billing@globex.example"),
            ("Initech", "billing@initech.example"),
        )
    )
    acme, globex, initech = shoppers
    identities = (
        # The gateway's consumer carries the Stripe customer id as its custom_id.
        Identity(customer=acme.customer, user=acme.customer),
        # The gateway knows an e-mail address.
        Identity(customer=globex.customer, user=globex.email),
        # Another consumer of the same customer: two accounts, one bill.
        Identity(customer=initech.customer, user=initech.customer),
        Identity(customer=initech.customer, user=initech.email),
    )
    return Cast(shoppers, identities)
