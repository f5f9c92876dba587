"""Webhook destinations at Stripe: what Tollgate wants to be told, and where.

Owns the lists of events, how a destination that is there is recognised (by its address), and its making, mending and
renewal. It refuses to know where secrets are kept.

Stripe has two kinds: a webhook endpoint for classic events, whose shape is that of a pinned API version, and an event
destination for thin events. Each has a signing secret of its own, which Stripe shows only in the answer that made it.
That answer is repeated under the same idempotency key for a day: a secret lost to a crash is asked for once more, so
everything the request was made of is written on the destination itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from services.cli.gateway import API_VERSION, Json, idempotency_key

CLASSIC_EVENTS = (
    "billing.meter.created",
    "billing.meter.deactivated",
    "billing.meter.reactivated",
    "billing.meter.updated",
    "customer.created",
    "customer.deleted",
    "customer.discount.created",
    "customer.discount.deleted",
    "customer.discount.updated",
    "customer.source.created",
    "customer.source.deleted",
    "customer.source.expiring",
    "customer.source.updated",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
    "customer.subscription.updated",
    "customer.tax_id.created",
    "customer.tax_id.deleted",
    "customer.tax_id.updated",
    "customer.updated",
    "invoice.created",
    "invoice.deleted",
    "invoice.finalization_failed",
    "invoice.finalized",
    "invoice.marked_uncollectible",
    "invoice.overdue",
    "invoice.overpaid",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_attempt_required",
    "invoice.payment_failed",
    "invoice.payment_succeeded",
    "invoice.sent",
    "invoice.upcoming",
    "invoice.updated",
    "invoice.voided",
    "invoice.will_be_due",
    "price.created",
    "price.deleted",
    "price.updated",
    "product.created",
    "product.deleted",
    "product.updated",
)
"""All of customers, invoices, Billing Meters, prices and products. The API takes no wildcard below `*`."""

THIN_EVENTS = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
"""What Stripe says when it refuses a meter event after it has answered 2xx."""

REPEATABLE_SECONDS = 23 * 3600
"""How old a destination may be for its first answer to be asked for again; Stripe keeps it a day at least."""

_LEDGER, _REPLACES = "tollgate_ledger", "tollgate_replaces"


class Kind(StrEnum):
    """The two kinds of destination."""

    CLASSIC = "webhook endpoint"
    THIN = "event destination"


class CannotConnect(Exception):
    """A destination is in the way; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A destination as it is now."""

    kind: Kind
    destination_id: str
    did: str
    """What was done, in words; "unchanged" for nothing."""
    secret: str | None
    """Its signing secret, where Stripe has said it."""


class Conversation(Protocol):
    """What this file asks of the gateway."""

    def list_all(self, path: str, **params: Any) -> list[Json]: ...

    def create_once(
        self, path: str, params: Json, key: str, find: Callable[[], Json | None] = ...
    ) -> Json: ...

    def update(self, path: str, **params: Any) -> Json: ...

    def delete(self, path: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Found:
    """A destination at our address."""

    destination_id: str
    created_s: int
    enabled: bool
    events: frozenset[str]
    api_version: str | None
    metadata: Mapping[str, str]


def register(
    stripe: Conversation,
    kind: Kind,
    url: str,
    ledger_id: str,
    *,
    have_secret: bool,
    renew: bool,
    now_s: int,
    keep_secret: Callable[[str], None] = lambda _: None,
) -> Registered:
    """Make sure `url` is told what Tollgate has to know, by one destination of this kind.

    `have_secret`: its secret is known already; where it is not, it is asked for once more if that is still possible.
    `renew`: make another (a new secret, today's API version), hand its secret to `keep_secret`, then delete those
    that were there. Interrupted anywhere, the same call goes on. Raises CannotConnect, StripeUnreachable.
    """
    found = sorted(_find(stripe, kind, url), key=lambda each: (each.created_s, each.destination_id))
    if renew and found:
        return _renew(stripe, kind, url, ledger_id, found, keep_secret)
    if not found:
        made = _make(stripe, kind, url, ledger_id, replaces="")
        return Registered(kind, made["id"], "created", _secret(kind, made))
    if len(found) > 1:
        raise CannotConnect(
            f"{', '.join(each.destination_id for each in found)} all send to {url}: every event would come "
            "more than once; --renew leaves a new one alone"
        )
    return _mend(stripe, kind, url, found[0], have_secret=have_secret, now_s=now_s)


def _renew(
    stripe: Conversation,
    kind: Kind,
    url: str,
    ledger_id: str,
    found: Sequence[_Found],
    keep_secret: Callable[[str], None],
) -> Registered:
    # The oldest is what is replaced, also when an earlier attempt has made its successor already.
    made = _make(stripe, kind, url, ledger_id, replaces=found[0].destination_id)
    secret = _secret(kind, made)
    if secret is None:
        raise CannotConnect(f"Stripe did not say the secret of {made['id']}: delete it and connect again")
    # Kept before the old one goes: without a secret its successor would be of no use.
    keep_secret(secret)
    for each in found:
        if each.destination_id != made["id"]:
            stripe.delete(f"{_path(kind)}/{each.destination_id}")
    return Registered(kind, made["id"], f"renewed, {found[0].destination_id} deleted", secret)


def _mend(
    stripe: Conversation, kind: Kind, url: str, found: _Found, *, have_secret: bool, now_s: int
) -> Registered:
    if kind is Kind.CLASSIC and found.api_version != API_VERSION:
        raise CannotConnect(
            f"{found.destination_id} sends API version {found.api_version or 'of the account'}, and {API_VERSION} "
            "is read here; it cannot be edited: --renew makes another in its place"
        )
    done, secret = [], None
    missing = frozenset(_events(kind)) - found.events
    if missing and "*" not in found.events:
        stripe.update(
            f"{_path(kind)}/{found.destination_id}", enabled_events=sorted({*found.events, *missing})
        )
        done.append(f"{len(missing)} event types added")
    if not found.enabled:
        if kind is Kind.CLASSIC:
            stripe.update(f"{_path(kind)}/{found.destination_id}", disabled=False)
        else:
            stripe.update(f"{_path(kind)}/{found.destination_id}/enable")
        done.append("enabled")
    elif not have_secret and not missing:
        secret = _ask_again(stripe, kind, url, found, now_s)
    return Registered(kind, found.destination_id, ", ".join(done) or "unchanged", secret)


def _ask_again(stripe: Conversation, kind: Kind, url: str, found: _Found, now_s: int) -> str | None:
    """The secret of a destination of ours that was made within the day, by repeating the request that made it."""
    ledger_id, replaces = found.metadata.get(_LEDGER), found.metadata.get(_REPLACES)
    as_made = found.events == frozenset(_events(kind))
    if ledger_id is None or not as_made or now_s - found.created_s > REPEATABLE_SECONDS:
        return None
    made = _make(stripe, kind, url, ledger_id, replaces=replaces or "")
    if made["id"] == found.destination_id:
        return _secret(kind, made)
    # The first answer was forgotten earlier than promised.
    stripe.delete(f"{_path(kind)}/{made['id']}")
    return None


def _make(stripe: Conversation, kind: Kind, url: str, ledger_id: str, *, replaces: str) -> Json:
    metadata = {_LEDGER: ledger_id, **({_REPLACES: replaces} if replaces else {})}
    params: dict[str, Any] = {"enabled_events": list(_events(kind)), "metadata": metadata}
    if kind is Kind.CLASSIC:
        params |= {"url": url, "api_version": API_VERSION, "description": "Tollgate"}
        noun = "webhook"
    else:
        params |= {
            "name": "Tollgate",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "webhook_endpoint": {"url": url},
            "include": ["webhook_endpoint.signing_secret"],
        }
        noun = "destination"
    return stripe.create_once(_path(kind), params, idempotency_key(noun, params))


def _find(stripe: Conversation, kind: Kind, url: str) -> list[_Found]:
    if kind is Kind.CLASSIC:
        return [
            _Found(
                destination_id=body["id"],
                created_s=int(body["created"]),
                enabled=body["status"] == "enabled",
                events=frozenset(body["enabled_events"]),
                api_version=body.get("api_version"),
                metadata=body.get("metadata") or {},
            )
            for body in stripe.list_all(_path(kind))
            if body["url"] == url
        ]
    return [
        _Found(
            destination_id=body["id"],
            created_s=int(datetime.fromisoformat(body["created"]).timestamp()),
            enabled=body["status"] == "enabled",
            events=frozenset(body["enabled_events"]),
            api_version=None,
            metadata=body.get("metadata") or {},
        )
        for body in stripe.list_all(_path(kind), include=["webhook_endpoint.url"])
        if body.get("event_payload") == "thin" and (body.get("webhook_endpoint") or {}).get("url") == url
    ]


def _path(kind: Kind) -> str:
    return "/v1/webhook_endpoints" if kind is Kind.CLASSIC else "/v2/core/event_destinations"


def _events(kind: Kind) -> tuple[str, ...]:
    return CLASSIC_EVENTS if kind is Kind.CLASSIC else THIN_EVENTS


def _secret(kind: Kind, body: Json) -> str | None:
    place = body if kind is Kind.CLASSIC else body.get("webhook_endpoint") or {}
    secret = place.get("secret" if kind is Kind.CLASSIC else "signing_secret")
    return None if secret is None else str(secret)
