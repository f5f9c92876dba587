"""``expand``: objects in place of their ids.

Owns: walking the paths. Refuses to know: nothing about expanded objects but how each kind is shown.
"""

from sandbox.stripe.errors import JsonObject, invalid
from sandbox.stripe.invoices import shown_invoice
from sandbox.stripe.subscription_items import shown as shown_item
from sandbox.stripe.subscriptions import assembled
from sandbox.stripe.turns import Turn
from sandbox.stripe.versions import render

_ALREADY_THERE = {"tiers", "subscriptions"}  # shown, or absent, whether asked for or not


def expand(turn: Turn, body: JsonObject, paths: list[str], version: str) -> JsonObject:
    """The body with every path expanded. Raises ``Refusal`` (400) for what cannot be."""
    for path in paths:
        _walk(turn, body, path.split("."), path, version)
    return body


def _walk(turn: Turn, here: object, parts: list[str], path: str, version: str) -> None:
    if isinstance(here, list):
        for entry in here:
            _walk(turn, entry, parts, path, version)
        return
    if not parts or not isinstance(here, dict):
        return
    name = parts[0]
    if name not in here:
        if name in _ALREADY_THERE:
            return
        raise invalid(f"This property cannot be expanded ({path}).", "expand")
    if isinstance(here[name], str):
        here[name] = _fetch(turn, here[name], path, version)
    _walk(turn, here[name], parts[1:], path, version)


def _fetch(turn: Turn, object_id: str, path: str, version: str) -> JsonObject:
    found = turn.state.find_any(object_id)
    if found is None:
        raise invalid(f"This property cannot be expanded ({path}).", "expand")
    kind, body = found
    if kind == "subscription":
        body = assembled(turn, body)
    elif kind == "subscription_item":
        body = shown_item(turn, body)
    elif kind == "invoice":
        body = shown_invoice(turn, body)
    return dict(render(body, version))
