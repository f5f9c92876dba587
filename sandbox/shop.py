"""A small shop at Stripe: customers with subscriptions on prices that are for sale, over Stripe's HTTP API.

Owns the handful of calls a demo or a test needs to have somebody to bill. It refuses to know Tollgate, and who made
the prices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    def find_prices(self, lookup_keys: Sequence[str]) -> list[str]:
        """The ids of the prices of these lookup keys, in their order. Raises KeyError for one that is not for sale."""
        answer = self._client.get("/v1/prices", params={"lookup_keys[]": list(lookup_keys), "limit": 100})
        answer.raise_for_status()
        found = {str(price["lookup_key"]): str(price["id"]) for price in answer.json()["data"]}
        return [found[key] for key in lookup_keys]

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
