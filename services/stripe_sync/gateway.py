"""Stripe: the only file of this service that imports its client.

Owns the calls and the translation of every StripeError into `Transient`, `Permanent` or `UnknownOutcome` by the
failure table. It refuses to know the ledger. Retries are the sender's, never the client's: only the ledger knows
which idempotency key and identifier an attempt had.
"""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import httpx
import stripe

from services.stripe_sync.outcomes import Action, Failure, Row, Situation, judge

API_VERSION = "2026-10-28.endive"
"""The version the pinned client was generated for, said out loud so that a new client changes nothing by itself."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """Stripe has the meter event. `duplicate`: it had it already, from an earlier attempt."""

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

    def unfit(self) -> str | None:
        """Why delta postings cannot be sent to it, or None."""
        if not self.active:
            return "the meter is not active at Stripe"
        if self.formula != "sum":
            return f"the meter's formula is {self.formula}, deltas need sum"
        if self.time_window is not None:
            return f"the meter keeps one value per {self.time_window}, deltas need a meter without event_time_window"
        if self.customer_key != "stripe_customer_id" or self.value_key != "value":
            return (
                f"the meter reads {self.customer_key} and {self.value_key}, not stripe_customer_id and value"
            )
        return None


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

    async def meters(self) -> dict[str, BillingMeter]:
        """Every Billing Meter by event_name, active ones winning. Raises CallFailed."""
        ...

    async def hour_sum(self, stripe_meter_id: str, customer_id: str, hour_s: int) -> Decimal:
        """Stripe's summary of one customer's UTC hour. Raises CallFailed."""
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
