"""Stripe as the operators' commands see it: who the key belongs to, and which meters exist.

Owns those two questions. It refuses to change anything at Stripe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import stripe

from services.cli.settings import StripeSettings

TIMEOUT_SECONDS = 10.0


class StripeUnreachable(Exception):
    """Stripe did not answer, or refused the key; the message says which."""


@dataclass(frozen=True, slots=True)
class StripeAccount:
    """What a key opens."""

    account: str
    mode: str
    """`test` or `live`, by the key's own prefix."""


def key_mode(api_key: str) -> str:
    """`live` or `test`, as the key's prefix says."""
    return "live" if "_live_" in api_key else "test"


class StripeGateway:
    """Two read-only questions to Stripe. Raises StripeUnreachable when there is no answer. A context manager."""

    def __init__(self, settings: StripeSettings) -> None:
        if settings.api_key is None:
            raise StripeUnreachable("no key: set STRIPE_API_KEY")
        self._api_key = settings.api_key.get_secret_value()
        self._http = stripe.HTTPXClient(timeout=TIMEOUT_SECONDS, allow_sync_methods=True)
        self._client = stripe.StripeClient(
            self._api_key,
            base_addresses={"api": settings.api_base} if settings.api_base else {},
            http_client=self._http,
            max_network_retries=2,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()  # type: ignore[no-untyped-call]

    def account(self) -> StripeAccount:
        """The account the key belongs to."""
        try:
            account = self._client.v1.accounts.retrieve_current()
        except stripe.StripeError as error:
            raise StripeUnreachable(_say(error)) from None
        return StripeAccount(account.id, key_mode(self._api_key))

    def meters(self) -> dict[str, str]:
        """Billing Meters by event_name, with their status (active, inactive)."""
        try:
            meters = self._client.v1.billing.meters.list({"limit": 100}).auto_paging_iter()
            found: dict[str, str] = {}
            for meter in meters:
                # One event_name may have had several meters; the active one is what counts.
                if found.get(meter.event_name) != "active":
                    found[meter.event_name] = meter.status
        except stripe.StripeError as error:
            raise StripeUnreachable(_say(error)) from None
        return found


def _say(error: stripe.StripeError) -> str:
    """One line, whatever the library has to say."""
    if isinstance(error, stripe.APIConnectionError):
        return "no answer; check the network, or TOLLGATE_STRIPE__API_BASE"
    status = f"{error.http_status} " if error.http_status else ""
    text = f"{status}{error.user_message or str(error) or type(error).__name__}"
    return " ".join(text.split())
