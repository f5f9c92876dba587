"""Where API versions differ in shape.

Owns: the order of versions and the older shapes of objects. Refuses to know: how objects come about.
Objects are stored in the latest shape, with private fields (a leading underscore) that no caller sees.
"""

from typing import Any, overload

from sandbox.stripe.errors import JsonObject, invalid

LATEST = "2026-10-28.endive"
BASIL = "2025-03-31"  # periods move to items, usage records and meterless metered prices are gone
CLOVER = "2025-09-30"  # subscriptions default to flexible billing
DAHLIA = "2026-04-22"  # meter event values are limited to 15 significant digits


def since(version: str, date: str) -> bool:
    """Whether ``version`` (``2025-03-31.basil``) is that of ``date`` or later."""
    return version[:10] >= date


def check_version(version: str) -> str:
    """Accept a ``Stripe-Version`` header; raises ``Refusal`` (400) for one that is no version."""
    date = version[:10]
    if len(date) != 10 or date[4] != "-" or date[7] != "-" or not date.replace("-", "").isdigit():
        raise invalid(f"Invalid Stripe API version: {version[:40]}")
    return version


@overload
def render(body: JsonObject, version: str) -> JsonObject: ...


@overload
def render(body: list[JsonObject], version: str) -> list[JsonObject]: ...


def render(body: JsonObject | list[JsonObject], version: str) -> JsonObject | list[JsonObject]:
    """The body as a caller on ``version`` sees it: private fields gone, older shapes where they differ."""
    rendered: JsonObject | list[JsonObject] = _rendered(body, version)
    return rendered


def _rendered(value: Any, version: str) -> Any:
    if isinstance(value, list):
        return [_rendered(entry, version) for entry in value]
    if not isinstance(value, dict):
        return value
    seen = {key: _rendered(entry, version) for key, entry in value.items() if not key.startswith("_")}
    if not since(version, BASIL):
        reshape = _BEFORE_BASIL.get(str(seen.get("object")))
        if reshape is not None:
            reshape(seen)
    return seen


def _old_subscription(seen: JsonObject) -> None:
    items = (seen.get("items") or {}).get("data") or []
    if items:
        seen["current_period_start"] = items[0]["current_period_start"]
        seen["current_period_end"] = items[0]["current_period_end"]
        # Items keep their order in the list, so the first item's period is the subscription's.
        for item in items:
            item.pop("current_period_start", None)
            item.pop("current_period_end", None)


def _old_invoice(seen: JsonObject) -> None:
    details = (seen.pop("parent", None) or {}).get("subscription_details") or {}
    seen["subscription"] = details.get("subscription")
    seen["subscription_details"] = {"metadata": details.get("metadata")}
    seen["paid"] = seen.get("status") == "paid"
    seen["tax"] = None


def _old_line(seen: JsonObject) -> None:
    parent = seen.pop("parent", None) or {}
    item = parent.get("subscription_item_details") or {}
    invoice_item = parent.get("invoice_item_details") or {}
    pricing = (seen.pop("pricing", None) or {}).get("price_details") or {}
    seen["type"] = "subscription" if item else "invoiceitem"
    seen["subscription"] = item.get("subscription") or invoice_item.get("subscription")
    seen["subscription_item"] = item.get("subscription_item")
    seen["price"] = pricing.get("price")
    seen["proration"] = False


_BEFORE_BASIL = {"subscription": _old_subscription, "invoice": _old_invoice, "line_item": _old_line}
