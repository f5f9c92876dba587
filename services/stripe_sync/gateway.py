"""Stripe: the only file of this service that imports its client.

Owns the calls and the translation of every StripeError into `Transient`, `Permanent` or `UnknownOutcome` by the
failure table. It refuses to know the ledger. Retries are the sender's, never the client's: only the ledger knows
which idempotency key and identifier an attempt had.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import httpx
import stripe

from services.stripe_sync.closed import METADATA_IDENTIFIER
from services.stripe_sync.outcomes import Action, Failure, Row, Situation, judge
from tollgate.ledger.posting_rows import PostingMode
from tollgate.ledger.prices import FetchedPrice
from tollgate.metering.stripe_price import ForeignPrice, price_from_fields

API_VERSION = "2026-10-28.endive"
"""The version the pinned client was generated for, said out loud so that a new client changes nothing by itself."""


USAGE_RECORD_VERSION = "2025-02-24.acacia"
"""The last version that has usage records. Whoever still bills by them was on it or an earlier one."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """Stripe has the posting. `duplicate`: it had it already, from an earlier attempt."""

    duplicate: bool
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class BillingMeter:
    """A Billing Meter as Stripe has it."""

    stripe_meter_id: str
    event_name: str
    active: bool
    formula: str
    customer_key: str
    value_key: str
    time_window: str | None

    def unfit(self, mode: PostingMode) -> str | None:
        """Why postings of `mode` cannot be sent to it, or None."""
        if not self.active:
            return "the meter is not active at Stripe"
        if self.formula != "sum":
            return f"the meter's formula is {self.formula}, postings need sum"
        wanted = "hour" if mode is PostingMode.WINDOW_TOTAL else None
        if self.time_window != wanted:
            return f"the meter's event_time_window is {self.time_window or 'unset'}, mode {mode} needs {wanted or 'none'}"
        if self.customer_key != "stripe_customer_id" or self.value_key != "value":
            return (
                f"the meter reads {self.customer_key} and {self.value_key}, not stripe_customer_id and value"
            )
        return None


@dataclass(frozen=True, slots=True)
class SummaryPage:
    """A page of Stripe's summaries: the doubles it said by the start of their window (epoch seconds)."""

    values: Mapping[int, float]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class RecordedUsage:
    """The sum of an item's usage records of one period `[start_s, end_s)`."""

    start_s: int
    end_s: int
    quantity: Decimal


class CallFailed(Exception):
    """A call that did not end in success. `row` is the failure table's."""

    def __init__(self, row: Row, failure: Failure) -> None:
        super().__init__(f"{row.situation}: {failure.message}")
        self.row = row
        self.failure = failure


class Transient(CallFailed):
    """Stripe certainly did not take it; the same call may work later."""


class Permanent(CallFailed):
    """The same call will never work."""


class UnknownOutcome(CallFailed):
    """Stripe may have taken it: only the same identifier may ever be sent again."""


class Gateway(Protocol):
    """What the service asks of Stripe."""

    async def send(self, body: str, idempotency_key: str) -> Delivered:
        """Post one meter event. Raises Transient, Permanent or UnknownOutcome."""
        ...

    async def record_usage(self, body: str, idempotency_key: str) -> Delivered:
        """Set one usage record of a subscription item. Raises Transient, Permanent or UnknownOutcome."""
        ...

    async def charge(self, body: str, idempotency_key: str) -> Delivered:
        """Make one invoice item. Raises Transient, Permanent or UnknownOutcome."""
        ...

    async def find_charge(self, customer_id: str, identifier: str, since_s: int) -> str | None:
        """The id of the customer's invoice item whose metadata has `identifier`, made at `since_s` or later.

        None if Stripe lists none. Raises CallFailed.
        """
        ...

    async def price(self, price_id: str) -> FetchedPrice:
        """A price, with its tiers. Raises CallFailed."""
        ...

    async def meters(self) -> dict[str, BillingMeter]:
        """Every Billing Meter by event_name, active ones winning. Raises CallFailed."""
        ...

    async def hour_sum(self, stripe_meter_id: str, customer_id: str, hour_s: int) -> Decimal:
        """Stripe's summary of one customer's UTC hour. Raises CallFailed."""
        ...

    async def recorded_usage(self, item_id: str, at_s: int) -> RecordedUsage | None:
        """What is recorded on an item in the period that holds `at_s`; None if Stripe lists none. Raises CallFailed."""
        ...

    async def account(self) -> str:
        """The account the key belongs to. Raises CallFailed."""
        ...


class StripeGateway:
    """Stripe over HTTP."""

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str | None,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
    ) -> None:
        timeout = httpx.Timeout(read_timeout_seconds, connect=connect_timeout_seconds)
        self._http = stripe.HTTPXClient(timeout=timeout)
        self._client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            base_addresses={"api": api_base} if api_base else {},
            http_client=self._http,
            max_network_retries=0,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def send(self, body: str, idempotency_key: str) -> Delivered:
        params: Any = json.loads(body)
        try:
            event = await self._client.v1.billing.meter_events.create_async(
                params, {"idempotency_key": idempotency_key}
            )
        except stripe.StripeError as error:
            failed = translate(error)
            if failed.row.situation is Situation.DUPLICATE:
                return Delivered(duplicate=True, request_id=failed.failure.request_id)
            raise failed from error
        headers = event.last_response.headers if event.last_response is not None else {}
        return Delivered(duplicate=False, request_id=headers.get("request-id"))

    async def record_usage(self, body: str, idempotency_key: str) -> Delivered:
        params = json.loads(body)
        path = f"/v1/subscription_items/{params.pop('subscription_item')}/usage_records"
        try:
            answer = await self._client.raw_request_async(
                "post", path, **params, stripe_version=USAGE_RECORD_VERSION, idempotency_key=idempotency_key
            )
        except stripe.StripeError as error:
            raise translate(error) from error
        return Delivered(duplicate=False, request_id=answer.headers.get("request-id"))

    async def charge(self, body: str, idempotency_key: str) -> Delivered:
        params: Any = json.loads(body)
        try:
            item = await self._client.v1.invoice_items.create_async(
                params, {"idempotency_key": idempotency_key}
            )
        except stripe.StripeError as error:
            raise translate(error) from error
        headers = item.last_response.headers if item.last_response is not None else {}
        return Delivered(duplicate=False, request_id=headers.get("request-id"))

    async def find_charge(self, customer_id: str, identifier: str, since_s: int) -> str | None:
        params: Any = {"customer": customer_id, "created": {"gte": since_s}, "limit": 100}
        try:
            page = await self._client.v1.invoice_items.list_async(params)
            async for item in page.auto_paging_iter():
                metadata = item.metadata.to_dict() if item.metadata is not None else {}
                if metadata.get(METADATA_IDENTIFIER) == identifier:
                    return str(item.id)
        except stripe.StripeError as error:
            raise translate(error) from error
        return None

    async def price(self, price_id: str) -> FetchedPrice:
        try:
            fields = await self._client.v1.prices.retrieve_async(price_id, {"expand": ["tiers"]})
        except stripe.StripeError as error:
            raise translate(error) from error
        try:
            return FetchedPrice(price_id, price_from_fields(fields.to_dict()))
        except ForeignPrice as error:
            return FetchedPrice(price_id, None, str(error))

    async def recorded_usage(self, item_id: str, at_s: int) -> RecordedUsage | None:
        path = f"/v1/subscription_items/{item_id}/usage_record_summaries"
        after: str | None = None
        while True:
            cursor = {} if after is None else {"starting_after": after}
            try:
                answer: Any = await self._client.raw_request_async(
                    "get", path, limit=100, **cursor, stripe_version=USAGE_RECORD_VERSION
                )
            except stripe.StripeError as error:
                raise translate(error) from error
            page = answer.data
            for summary in page["data"]:
                start_s, end_s = summary["period"]["start"], summary["period"]["end"]
                if start_s is not None and end_s is not None and start_s <= at_s < end_s:
                    return RecordedUsage(start_s, end_s, Decimal(summary["total_usage"]))
            if not page["has_more"]:
                return None
            after = page["data"][-1]["id"]

    async def meters(self) -> dict[str, BillingMeter]:
        found: dict[str, BillingMeter] = {}
        try:
            page = await self._client.v1.billing.meters.list_async({"limit": 100})
            async for meter in page.auto_paging_iter():
                entry = BillingMeter(
                    stripe_meter_id=meter.id,
                    event_name=meter.event_name,
                    active=meter.status == "active",
                    formula=str(meter.default_aggregation.formula),
                    customer_key=meter.customer_mapping.event_payload_key,
                    value_key=meter.value_settings.event_payload_key,
                    time_window=meter.event_time_window,
                )
                if entry.active or entry.event_name not in found:
                    found[entry.event_name] = entry
        except stripe.StripeError as error:
            raise translate(error) from error
        return found

    async def hour_sum(self, stripe_meter_id: str, customer_id: str, hour_s: int) -> Decimal:
        total = Decimal(0)
        try:
            page = await self._client.v1.billing.meters.event_summaries.list_async(
                stripe_meter_id,
                {"customer": customer_id, "start_time": hour_s, "end_time": hour_s + 3600, "limit": 100},
            )
            async for summary in page.auto_paging_iter():
                total += Decimal(repr(float(summary.aggregated_value)))
        except stripe.StripeError as error:
            raise translate(error) from error
        return total

    async def summary_page(
        self,
        stripe_meter_id: str,
        customer_id: str,
        start_s: int,
        end_s: int,
        *,
        hourly: bool,
        after: str | None = None,
    ) -> SummaryPage:
        """One page of one customer's summaries of `[start_s, end_s)`: a single one, or one an hour. Raises CallFailed."""
        params: Any = {"customer": customer_id, "start_time": start_s, "end_time": end_s, "limit": 100}
        if hourly:
            params["value_grouping_window"] = "hour"
        if after is not None:
            params["starting_after"] = after
        try:
            page = await self._client.v1.billing.meters.event_summaries.list_async(stripe_meter_id, params)
        except stripe.StripeError as error:
            raise translate(error) from error
        values = {summary.start_time: float(summary.aggregated_value) for summary in page.data}
        return SummaryPage(values, page.data[-1].id if page.has_more and page.data else None)

    async def finalize_at(self, invoice_id: str, finalizes_s: int) -> None:
        """Set when a draft invoice becomes final by itself. Raises CallFailed.

        Setting it twice is setting it once: the key only spares Stripe the second time.
        """
        try:
            await self._client.v1.invoices.update_async(
                invoice_id,
                {"automatically_finalizes_at": finalizes_s},
                {"idempotency_key": f"tollgate-finalize-{invoice_id}-{finalizes_s}"},
            )
        except stripe.StripeError as error:
            raise translate(error) from error

    async def account(self) -> str:
        try:
            account = await self._client.v1.accounts.retrieve_current_async()
        except stripe.StripeError as error:
            raise translate(error) from error
        return str(account.id)


def translate(error: stripe.StripeError) -> CallFailed:
    """One of the client's errors in our words."""
    failure = describe(error)
    row = judge(failure)
    if not row.certain:
        return UnknownOutcome(row, failure)
    return (Permanent if row.action is Action.PARK else Transient)(row, failure)


def describe(error: stripe.StripeError) -> Failure:
    """What the client's error says. Its own `code` is empty for many classes: the body's error object has it."""
    headers = {str(name).lower(): str(value) for name, value in (error.headers or {}).items()}
    if error.http_status is None:
        return Failure(message=_first_line(error), connection=_connection_fault(error))
    inner: Any = error.error
    return Failure(
        status=error.http_status,
        error_type=getattr(inner, "type", None),
        code=getattr(inner, "code", None) or error.code,
        message=str(getattr(inner, "message", None) or error.user_message or _first_line(error)),
        rate_limited_reason=headers.get("stripe-rate-limited-reason"),
        should_retry=headers.get("stripe-should-retry"),
        replayed=headers.get("idempotent-replayed") == "true",
        request_id=error.request_id,
    )


def _connection_fault(error: stripe.StripeError) -> str:
    """Whether anything can have left: a connection that was never made has carried nothing."""
    seen: BaseException | None = error
    causes = []
    while seen is not None and seen not in causes:
        causes.append(seen)
        seen = seen.__cause__ or seen.__context__
    if any(isinstance(cause, ssl.SSLError) for cause in causes) and _never_connected(causes):
        return "local_fault"
    if _never_connected(causes):
        return "unreachable"
    if any(isinstance(cause, httpx.UnsupportedProtocol | httpx.InvalidURL) for cause in causes):
        return "local_fault"
    return "no_answer"


def _never_connected(causes: list[BaseException]) -> bool:
    kinds = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
    return any(isinstance(cause, kinds) for cause in causes)


def _first_line(error: Exception) -> str:
    """The last line says what happened; the first ones are advice."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
