"""A small shop at Stripe: meters, prices, customers with subscriptions, made over Stripe's HTTP API.

Owns the handful of calls a demo or a test needs to have somebody to bill. It refuses to know Tollgate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx


@dataclass(frozen=True, slots=True)
class Shopper:
    """A customer with one subscription over every metered price."""

    customer: str
    subscription: str
    name: str
    email: str


class Shop:
    """Talks to one Stripe account (or the stand-in). Raises httpx.HTTPStatusError when a call is refused."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._client = httpx.Client(
            base_url=base_url,
            headers={"authorization": f"Bearer {api_key}"},
            timeout=10.0,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def create_meter(self, event_name: str, display_name: str) -> str:
        """A Billing Meter that sums; returns its id."""
        return str(
            self._post(
                "/v1/billing/meters",
                {
                    "display_name": display_name,
                    "event_name": event_name,
                    "default_aggregation": {"formula": "sum"},
                },
            )["id"]
        )

    def create_price(self, meter: str, product_name: str, unit_amount_decimal: str) -> str:
        """A metered monthly price in US dollars on a product of its own; returns its id."""
        product = self._post("/v1/products", {"name": product_name})["id"]
        return str(
            self._post(
                "/v1/prices",
                {
                    "product": product,
                    "currency": "usd",
                    "unit_amount_decimal": unit_amount_decimal,
                    "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
                },
            )["id"]
        )

    def sign_up(self, name: str, email: str, prices: list[str]) -> Shopper:
        """A customer with one subscription over `prices`, whose first period begins at Stripe's now."""
        customer = str(self._post("/v1/customers", {"name": name, "email": email})["id"])
        items = {str(number): {"price": price} for number, price in enumerate(prices)}
        subscription = str(self._post("/v1/subscriptions", {"customer": customer, "items": items})["id"])
        return Shopper(customer=customer, subscription=subscription, name=name, email=email)

    def change_email(self, shopper: Shopper, email: str) -> None:
        """Give a customer another e-mail address."""
        self._post(f"/v1/customers/{shopper.customer}", {"email": email})

    def register_webhooks(self, url: str) -> str:
        """Have every event sent to `url`; returns the signing secret, which Stripe shows only now."""
        return str(self._post("/v1/webhook_endpoints", {"url": url, "enabled_events": {"0": "*"}})["secret"])

    def _post(self, path: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._client.post(path, data=dict(_flatten(parameters)))
        answer.raise_for_status()
        document = answer.json()
        assert isinstance(document, dict)
        return document


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in parameters.items():
        key = f"{prefix}[{name}]" if prefix else name
        if isinstance(value, Mapping):
            yield from _flatten(value, key)
        else:
            yield key, str(value)
