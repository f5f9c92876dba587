"""Stripe as the operators' commands see it: reads, and writes that can be repeated.

Owns the conversation (plain JSON in, plain JSON out), its errors, and that nothing is made twice. It refuses to know
what any object means: `catalogue_stripe` and `destinations` do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import stripe

from services.cli.settings import StripeSettings

API_VERSION = "2026-10-28.endive"
"""What the services read and the webhook destinations are made with. Moves with the pinned client."""

TIMEOUT_SECONDS = 10.0
_V1_PAGE, _V2_PAGE = 100, 20
"""The most v1 gives at once; what v2 gives by itself, since its most is not documented for every list."""
_GENERATIONS_MAX = 4
"""How often an idempotency key is given up for its next one before a person is asked."""
_IN_FLIGHT_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""After the client's own attempts, a second's worth: Stripe gives up on a call long before these are over."""

Json = Mapping[str, Any]


class StripeUnreachable(Exception):
    """Stripe did not answer, or refused; the message says which."""


class StripeForbidden(StripeUnreachable):
    """The key is good, but not for this."""


@dataclass(frozen=True, slots=True)
class StripeAccount:
    """What a key opens."""

    account: str
    mode: str
    """`test` or `live`, by the key's own prefix."""


def key_mode(api_key: str) -> str:
    """`live` or `test`, as the key's prefix says."""
    return "live" if "_live_" in api_key else "test"


def idempotency_key(noun: str, params: Json, *seeds: str | None) -> str:
    """The key that the same wish has in every process: made of what is asked for and of what it was planned from."""
    text = json.dumps([noun, params, seeds], sort_keys=True, separators=(",", ":"))
    return f"tollgate-{noun}-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


class StripeGateway:
    """A conversation with Stripe. Every method raises StripeUnreachable when there is no answer, or a refusal.

    A context manager. Connection errors, 409 and 5xx are tried three times in all, under one idempotency key.
    """

    def __init__(self, settings: StripeSettings) -> None:
        if settings.api_key is None:
            raise StripeUnreachable("no key: set STRIPE_API_KEY")
        self._api_key = settings.api_key.get_secret_value()
        self._http = stripe.HTTPXClient(timeout=TIMEOUT_SECONDS, allow_sync_methods=True)
        self._client = stripe.StripeClient(
            self._api_key,
            stripe_version=API_VERSION,
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
        return StripeAccount(str(self._ask("get", "/v1/account")["id"]), key_mode(self._api_key))

    def meters(self) -> dict[str, str]:
        """Billing Meters by event_name, with their status (active, inactive)."""
        found: dict[str, str] = {}
        for meter in self.list_all("/v1/billing/meters"):
            # One event_name may have had several meters; the active one is what counts.
            if found.get(meter["event_name"]) != "active":
                found[meter["event_name"]] = meter["status"]
        return found

    # --------------------------------------------------------------------------------------- reading

    def list_all(self, path: str, **params: Any) -> list[Json]:
        """Every object of a list, over all its pages."""
        found: list[Json] = []
        asked: dict[str, Any] = {"limit": _V2_PAGE if path.startswith("/v2/") else _V1_PAGE, **params}
        while True:
            page = self._ask("get", path, **asked)
            found += page["data"]
            if page.get("next_page_url"):  # v2
                path, asked = str(page["next_page_url"]), {}
            elif page.get("has_more") and page["data"]:
                asked["starting_after"] = page["data"][-1]["id"]
            else:
                return found

    def first_page(self, path: str, **params: Any) -> tuple[list[Json], bool]:
        """At most a hundred objects of a list, and whether there are more."""
        page = self._ask("get", path, limit=_V1_PAGE, **params)
        return list(page["data"]), bool(page.get("has_more"))

    def retrieve(self, path: str, **params: Any) -> Json:
        """The object at `path`."""
        return self._ask("get", path, **params)

    def preview_invoice(self, subscription_id: str) -> Json:
        """A subscription's coming invoice by what Stripe knows now, with all its lines. Nothing is made."""
        invoice = self._ask("post", "/v1/invoices/create_preview", subscription=subscription_id)
        if invoice["lines"].get("has_more"):
            # Ten are embedded: without the others, usage that is there would be missing.
            lines = self.list_all(f"/v1/invoices/{invoice['id']}/lines")
            invoice = {**invoice, "lines": {**invoice["lines"], "data": lines, "has_more": False}}
        return invoice

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`, and it has not been deleted."""
        try:
            return not self._raw("get", path).data.get("deleted")
        except stripe.StripeError as error:
            if error.http_status == 404:
                return False
            raise _translate(error) from None

    def may_read(self, path: str, **params: Any) -> bool:
        """Whether the key's scopes allow this read. An object that is not there may be read all the same."""
        try:
            self._raw("get", path, **params)
        except stripe.StripeError as error:
            if error.http_status == 403:
                return False
            if error.http_status not in (400, 404):
                raise _translate(error) from None
        return True

    # --------------------------------------------------------------------------------------- writing

    def create_once(
        self,
        path: str,
        params: Json,
        key: str,
        find: Callable[[], Json | None] = lambda: None,
    ) -> Json:
        """Make an object that no other process, now or before, makes a second time under the same `key`.

        Stripe answers a repeated key with its first answer, for a day or more. That answer may be of an object that
        has been deleted since, or a failure it has kept; then `find` says whether the object is there, and only if
        it is not does the next key have a turn.
        """
        for generation in range(1, _GENERATIONS_MAX + 1):
            own = key if generation == 1 else f"{key}-{generation}"
            try:
                answer = self._post_settled(path, params, own)
            except stripe.StripeError as error:
                if (error.http_status or 0) < 500 or not _replayed(error.headers):
                    raise _translate(error) from None
                found = find()
                if found is not None:
                    return found
                continue
            made: Json = answer.data
            if not _replayed(answer.headers) or self.exists(f"{path}/{made['id']}"):
                return made
        raise StripeUnreachable(
            f"POST {path} is answered with what it was answered before; try again in a day"
        )

    def _post_settled(self, path: str, params: Json, key: str) -> Any:
        """POST, and where the same key is still in flight, of a process that is gone, wait for what comes of it."""
        for pause_seconds in _IN_FLIGHT_PAUSES_SECONDS:
            try:
                return self._raw("post", path, idempotency_key=key, **params)
            except stripe.StripeError as error:
                if error.http_status != 409:
                    raise
            time.sleep(pause_seconds)
        return self._raw("post", path, idempotency_key=key, **params)

    def update(self, path: str, **params: Any) -> Json:
        """Change an object to what it may already be."""
        return self._ask("post", path, **params)

    def cancel_subscription(self, subscription_id: str, *, invoice_now: bool) -> Json:
        """End a subscription now, with a last invoice of its usage or without."""
        return self._ask("delete", f"/v1/subscriptions/{subscription_id}", invoice_now=invoice_now)

    def delete(self, path: str) -> None:
        """Delete an object; one that is gone already is no error."""
        try:
            self._raw("delete", path)
        except stripe.StripeError as error:
            if error.http_status != 404:
                raise _translate(error) from None

    def _ask(self, method: str, path: str, **params: Any) -> Json:
        try:
            data: Json = self._raw(method, path, **params).data
        except stripe.StripeError as error:
            raise _translate(error) from None
        return data

    def _raw(self, method: str, path: str, **params: Any) -> Any:
        return self._client.raw_request(method, path, **params)


def _replayed(headers: Any) -> bool:
    return any(
        str(name).lower() == "idempotent-replayed" and value == "true"
        for name, value in (headers or {}).items()
    )


def _translate(error: stripe.StripeError) -> StripeUnreachable:
    return (StripeForbidden if error.http_status == 403 else StripeUnreachable)(_say(error))


def _say(error: stripe.StripeError) -> str:
    """One line, whatever the library has to say."""
    if isinstance(error, stripe.APIConnectionError):
        return "no answer; check the network, or TOLLGATE_STRIPE__API_BASE"
    status = f"{error.http_status} " if error.http_status else ""
    text = f"{status}{error.user_message or str(error) or type(error).__name__}"
    return " ".join(text.split())
