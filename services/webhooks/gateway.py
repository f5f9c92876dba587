"""Stripe: the objects behind the webhooks, fetched and turned into the ledger's words.

Owns every call this service makes to Stripe (all are reads) and the translation of its errors into Transient or
Permanent. It refuses to know what the answers are used for. The only file here that imports `stripe`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import stripe

from services.webhooks import objects
from services.webhooks.errors import Permanent, PermanentReason, Transient, TransientReason
from services.webhooks.event import THIN_TYPES
from services.webhooks.pace import Pace
from tollgate.ledger.billing import Customer, Invoice, Subscription

API_VERSION: Final = "2026-10-28.endive"
"""What `objects` reads, and what the webhook endpoint should be created with. Moves with the pinned SDK."""

PAGE_SIZE: Final = 100
"""The most Stripe gives at once."""

T = TypeVar("T")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Objects of one page of a list, and where the next begins (None after the last)."""

    bodies: tuple[Json, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class Account:
    """Whose key this is."""

    account_id: str
    mode: str
    """`test` or `live`, by the key's own prefix."""


class StripeGateway:
    """Reads of Stripe, each with a deadline and at a bounded pace. One event loop.

    Every method raises Transient (unreachable, 5xx, 409, 429, 401, 403) or Permanent (404, other 4xx, or an object
    that lacks what its API version promises).
    """

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str | None,
        timeout_seconds: float,
        pace: Pace,
    ) -> None:
        self._mode = "live" if "_live_" in api_key else "test"
        self._timeout_seconds = timeout_seconds
        self._pace = pace
        # The client's own timeout is for one read; `_ask` bounds the whole call.
        self._http = stripe.HTTPXClient(timeout=timeout_seconds)
        self._client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            base_addresses={} if api_base is None else {"api": api_base},
            # Retries are ours: they must see the clock, the shutdown and the offset.
            max_network_retries=0,
            http_client=self._http,
        )
        # A price's meter and a meter's event name can never be changed at Stripe, so they are asked once.
        self._price_meters: dict[str, str | None] = {}
        self._meter_names: dict[str, str] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------------------------------ one object

    async def account(self) -> Account:
        """The account the key belongs to."""
        body = await self._ask(self._client.v1.accounts.retrieve_current_async())
        return Account(str(body["id"]), self._mode)

    async def customer(self, customer_id: str) -> Customer:
        """A customer; a deleted one says so."""
        return objects.customer_to_domain(
            await self._ask(self._client.v1.customers.retrieve_async(customer_id))
        )

    async def subscription(self, subscription_id: str) -> Subscription:
        """A subscription with all its items."""
        body = await self._ask(self._client.v1.subscriptions.retrieve_async(subscription_id))
        return await self.complete_subscription(body)

    async def invoice(self, invoice_id: str) -> Invoice:
        """An invoice with its metered lines."""
        body = await self._ask(self._client.v1.invoices.retrieve_async(invoice_id))
        embedded = body.get("lines") or {}
        lines: list[Json] = list(embedded.get("data") or ())
        if embedded.get("has_more"):
            lines = [
                line
                async for page in self._pages(
                    lambda after: self._client.v1.invoices.line_items.list_async(
                        invoice_id,
                        _paging(after),  # type: ignore[arg-type]
                    )
                )
                for line in page.bodies
            ]
        prices = {objects.line_price_id(line) for line in lines if objects.line_item_id(line)}
        return objects.invoice_to_domain(body, lines, await self._event_names(prices - {None}, {}))

    async def meter_error_data(self, event_id: str) -> Json:
        """What a thin event leaves out: the `data` of a meter error report."""
        body = await self._ask(self._client.v2.core.events.retrieve_async(event_id))
        data = body.get("data")
        if not isinstance(data, Mapping):
            raise Permanent(PermanentReason.UNEXPECTED_SHAPE, "v2.core.event without data")
        return data

    # ---------------------------------------------------------------------------------------- lists

    async def customer_page(self, after: str | None) -> tuple[tuple[Customer, ...], str | None]:
        """A page of the customers that are not deleted, newest first, and where the next begins."""
        page = await self._page(self._client.v1.customers.list_async(_paging(after)))  # type: ignore[arg-type]
        return tuple(objects.customer_to_domain(body) for body in page.bodies), page.next_after

    async def subscription_page(self, after: str | None) -> tuple[tuple[Subscription, ...], str | None]:
        """A page of the subscriptions that have not ended, newest first, and where the next begins."""
        page = await self._page(self._client.v1.subscriptions.list_async(_paging(after)))  # type: ignore[arg-type]
        return tuple([await self.complete_subscription(body) for body in page.bodies]), page.next_after

    async def event_page(self, created_from_s: int, created_before_s: int, after: str | None) -> Page:
        """A page of the classic events made in `[created_from_s, created_before_s)`, newest first."""
        params = {**_paging(after), "created": {"gte": created_from_s, "lt": created_before_s}}
        return await self._page(self._client.v1.events.list_async(params))  # type: ignore[arg-type]

    async def thin_event_page(self, created_from_s: int, created_before_s: int, after: str | None) -> Page:
        """A page of the thin events nothing else lists, made in `[created_from_s, created_before_s)`, newest first.

        Without their `data`, as a webhook brings them.
        """
        if after is None:
            bounds = {"gte": _rfc3339(created_from_s), "lt": _rfc3339(created_before_s)}
            params = {"limit": PAGE_SIZE, "types": list(THIN_TYPES), "created": bounds}
            body = await self._ask(self._client.v2.core.events.list_async(params))  # type: ignore[arg-type]
        else:
            body = await self._ask(self._follow(after))
        bodies = tuple(
            {name: value for name, value in entry.items() if name != "data"}
            for entry in body.get("data") or ()
        )
        following = body.get("next_page_url")
        return Page(bodies, str(following) if following and bodies else None)

    async def _follow(self, page_url: str) -> Any:
        """A further page of a v2 list: Stripe says where it is."""
        response = await self._client.raw_request_async("get", page_url)
        return self._client.deserialize(response, api_mode="V2")

    async def complete_subscription(self, body: Json) -> Subscription:
        """A subscription in our words, its items beyond the embedded ones fetched."""
        embedded = body.get("items") or {}
        items: list[Json] = list(embedded.get("data") or ())
        if embedded.get("has_more"):
            items = [
                item
                async for page in self._pages(
                    lambda after: self._client.v1.subscription_items.list_async(
                        {"subscription": str(body["id"]), **_paging(after)}  # type: ignore[typeddict-item]
                    )
                )
                for item in page.bodies
            ]
        known = {
            item["price"]["id"]: item["price"] for item in items if isinstance(item.get("price"), Mapping)
        }
        names = await self._event_names(known, known)
        return objects.subscription_to_domain(body, items, names)

    # ----------------------------------------------------------------------------- price -> event name

    async def _event_names(
        self, price_ids: Iterable[str | None], known: Mapping[str, Json]
    ) -> dict[str, str | None]:
        """The event name of the Billing Meter behind each price, or of its label; `known` are prices at hand."""
        names: dict[str, str | None] = {}
        for price_id in price_ids:
            if price_id is not None:
                names[price_id] = await self._event_name(price_id, known.get(price_id))
        return names

    async def _event_name(self, price_id: str, price: Json | None) -> str | None:
        if price_id not in self._price_meters:
            if price is None:
                price = await self._ask(self._client.v1.prices.retrieve_async(price_id))
            if objects.bills_usage_records(price):
                # Not kept: it is an operator who labels such a price, at any time.
                return objects.labelled_event_name(price)
            self._price_meters[price_id] = objects.price_meter_id(price)
        meter_id = self._price_meters[price_id]
        if meter_id is None:
            return None
        if meter_id not in self._meter_names:
            meter = await self._ask(self._client.v1.billing.meters.retrieve_async(meter_id))
            self._meter_names[meter_id] = str(meter["event_name"])
        return self._meter_names[meter_id]

    # ----------------------------------------------------------------------------------------- calls

    async def _pages(self, ask: Any) -> AsyncIterator[Page]:
        after: str | None = None
        while True:
            page = await self._page(ask(after))
            yield page
            after = page.next_after
            if after is None:
                return

    async def _page(self, call: Awaitable[Any]) -> Page:
        body = await self._ask(call)
        bodies = tuple(body.get("data") or ())
        more = bool(body.get("has_more")) and bool(bodies)
        return Page(bodies, str(bodies[-1]["id"]) if more else None)

    async def _ask(self, call: Awaitable[Any]) -> Json:
        """Make one call: wait for its turn, bound it, translate its errors, and give the plain JSON."""
        try:
            await self._pace.take_turn()
        except BaseException:
            call.close()  # type: ignore[attr-defined]
            raise
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await call
        except TimeoutError:
            raise Transient(TransientReason.STRIPE_UNREACHABLE, "no answer in time") from None
        except stripe.StripeError as error:
            raise translate_error(error) from error
        # Through text, since decimals and nested objects of the SDK are to be plain JSON again.
        document: Json = json.loads(str(answer))
        return document


def translate_error(error: stripe.StripeError) -> Transient | Permanent:
    """What an error of Stripe's means for the event being projected. All calls are reads, so none is unknown."""
    status = error.http_status
    detail = f"{type(error).__name__} {status or ''} {_code(error)} {error.request_id or ''}".strip()
    if isinstance(error, stripe.APIConnectionError) or status is None:
        return Transient(TransientReason.STRIPE_UNREACHABLE, detail)
    if status == 429:
        return Transient(TransientReason.RATE_LIMITED, detail)
    if status in (401, 403):
        return Transient(TransientReason.UNAUTHORIZED, detail)
    if status == 409 or status >= 500:
        return Transient(TransientReason.STRIPE_FAILED, detail)
    if status == 404:
        return Permanent(PermanentReason.NOT_FOUND, detail)
    return Permanent(PermanentReason.REFUSED, detail)


def _code(error: stripe.StripeError) -> str:
    """Stripe's code; for 401, 403, 409, 429 and 5xx it is on the error object inside."""
    inner = getattr(error, "error", None)
    return str(error.code or getattr(inner, "code", None) or "")


def _paging(after: str | None) -> dict[str, Any]:
    return {"limit": PAGE_SIZE} if after is None else {"limit": PAGE_SIZE, "starting_after": after}


def _rfc3339(seconds: int) -> str:
    """API v2's way of writing a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
