"""Products and prices.

Owns: what can be sold and at what formula. Refuses to know: who buys it and how amounts come out (pricing).
"""

from decimal import Decimal
from itertools import pairwise

from sandbox.stripe.currencies import check_currency
from sandbox.stripe.errors import JsonObject, invalid, missing_parameter, no_such, no_such_reference, refused
from sandbox.stripe.events import emit
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import Params, merge_metadata
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import BASIL, render, since

_INTERVAL_COUNT_MAX = {"day": 1095, "week": 156, "month": 36, "year": 3}  # three years
_DECIMAL_PLACES_MAX = 12
_OLD_AGGREGATES = ("sum", "last_during_period", "last_ever", "max")


def create_product(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/products``; the caller may choose the id."""
    params = call.params
    body: JsonObject = {
        "id": params.text("id") or new_id("prod"),
        "object": "product",
        "active": params.boolean("active") is not False,
        "created": turn.now,
        "default_price": None,
        "description": params.text("description"),
        "images": params.texts("images"),
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "name": params.required_text("name"),
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": params.text("statement_descriptor", 22),
        "tax_code": params.text("tax_code"),
        "type": params.choice("type", ("service", "good")) or "service",
        "unit_label": params.text("unit_label", 12),
        "updated": turn.now,
        "url": params.text("url"),
    }
    merge_metadata(body, params)
    params.finish()
    if turn.state.find_any(body["id"]) is not None:
        raise refused("Product already exists.", "id", "resource_already_exists")
    turn.state.insert("product", body)
    emit(turn, "product.created", body)
    return render(body, call.version)


def _product(turn: Turn, product_id: str) -> JsonObject:
    body = turn.state.find("product", product_id)
    if body is None:
        raise no_such("product", product_id)
    return body


def retrieve_product(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/products/{id}``."""
    call.params.finish()
    return render(_product(turn, call.ids[0]), call.version)


def update_product(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/products/{id}``."""
    body, params = _product(turn, call.ids[0]), call.params
    before = dict(body)
    for name, length_max in (("name", 5000), ("description", 5000), ("unit_label", 12), ("url", 5000)):
        if params.has(name):
            body[name] = params.text(name, length_max)
    if params.has("active"):
        body["active"] = params.boolean("active") is not False
    if params.has("default_price"):
        body["default_price"] = params.text("default_price")
    merge_metadata(body, params)
    params.finish()
    body["updated"] = turn.now
    turn.state.update(body)
    emit(turn, "product.updated", body, {key: before[key] for key in before if before[key] != body[key]})
    return render(body, call.version)


def delete_product(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/products/{id}``: only while no price refers to it."""
    call.params.finish()
    body = _product(turn, call.ids[0])
    if next(turn.state.scan("price", parent=body["id"]), None) is not None:
        raise refused("This product cannot be deleted because it has one or more user-created prices.")
    turn.state.delete(body["id"])
    emit(turn, "product.deleted", body)
    return {"id": body["id"], "object": "product", "deleted": True}


def list_products(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/products`` by ``active`` and ``ids``."""
    active, ids = call.params.boolean("active"), call.params.texts("ids")
    listed = list_objects(
        turn,
        call,
        "product",
        keep=lambda body: (active is None or body["active"] == active) and (not ids or body["id"] in ids),
    )
    listed["data"] = render(listed["data"], call.version)
    return listed


def create_price(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/prices``: per unit, package or tiered; one-time or recurring; licensed or metered."""
    params = call.params
    scheme = params.choice("billing_scheme", ("per_unit", "tiered")) or "per_unit"
    currency = check_currency(params.required_text("currency", 3))
    recurring = _recurring(turn, params, call.version)
    unit_amount, unit_amount_decimal = _amount(params, "unit_amount")
    transform = _transform(params)
    tiers_mode = params.choice("tiers_mode", ("graduated", "volume"))
    tiers = [_tier(tier) for tier in params.children("tiers")]
    if scheme == "tiered":
        _check_tiers(tiers, tiers_mode, transform, unit_amount_decimal)
    elif unit_amount_decimal is None:
        raise missing_parameter("unit_amount")
    elif tiers or tiers_mode:
        raise invalid("Tiers can only be set with billing_scheme=tiered.", "tiers")
    lookup_key = params.text("lookup_key", 200)
    transfer = bool(params.boolean("transfer_lookup_key"))
    product_id = _product_of(turn, params)
    body: JsonObject = {
        "id": new_id("price"),
        "object": "price",
        "active": params.boolean("active") is not False,
        "billing_scheme": scheme,
        "created": turn.now,
        "currency": currency,
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": lookup_key,
        "metadata": {},
        "nickname": params.text("nickname"),
        "product": product_id,
        "recurring": recurring,
        "tax_behavior": params.choice("tax_behavior", ("inclusive", "exclusive", "unspecified"))
        or "unspecified",
        "tiers": tiers or None,
        "tiers_mode": tiers_mode,
        "transform_quantity": transform,
        "type": "one_time" if recurring is None else "recurring",
        "unit_amount": unit_amount,
        "unit_amount_decimal": unit_amount_decimal,
    }
    merge_metadata(body, params)
    params.finish()
    _claim_lookup_key(turn, lookup_key, transfer)
    turn.state.insert("price", body, parent=product_id)
    emit(turn, "price.created", body)
    return render(body, call.version)


def _product_of(turn: Turn, params: Params) -> str:
    """The product a price belongs to: an existing one, or one made on the spot by ``product_data``."""
    data = params.child("product_data")
    if data is not None:
        name = data.required_text("name")
        body: JsonObject = {
            "id": new_id("prod"),
            "object": "product",
            "active": True,
            "created": turn.now,
            "default_price": None,
            "description": None,
            "images": [],
            "livemode": False,
            "marketing_features": [],
            "metadata": data.text_map("metadata") or {},
            "name": name,
            "package_dimensions": None,
            "shippable": None,
            "statement_descriptor": None,
            "tax_code": None,
            "type": "service",
            "unit_label": data.text("unit_label", 12),
            "updated": turn.now,
            "url": None,
        }
        turn.state.insert("product", body)
        emit(turn, "product.created", body)
        return str(body["id"])
    product_id = params.required_text("product")
    if turn.state.find("product", product_id) is None:
        raise no_such_reference("product", product_id, "product")
    return product_id


def _recurring(turn: Turn, params: Params, version: str) -> JsonObject | None:
    recurring = params.child("recurring")
    if recurring is None:
        return None
    interval = recurring.choice("interval", tuple(_INTERVAL_COUNT_MAX))
    if interval is None:
        raise missing_parameter(recurring.full_name("interval"))
    count = recurring.integer("interval_count", 1, _INTERVAL_COUNT_MAX[interval]) or 1
    usage_type = recurring.choice("usage_type", ("licensed", "metered")) or "licensed"
    meter_id = recurring.text("meter")
    body: JsonObject = {
        "interval": interval,
        "interval_count": count,
        "meter": meter_id,
        "trial_period_days": None,
        "usage_type": usage_type,
    }
    if not since(version, BASIL):
        aggregate = recurring.choice("aggregate_usage", _OLD_AGGREGATES)
        body["aggregate_usage"] = (
            (aggregate or "sum") if usage_type == "metered" and meter_id is None else None
        )
    elif usage_type == "metered" and meter_id is None:
        raise invalid(
            "As of API version 2025-03-31.basil, metered prices must be backed by a meter: set recurring[meter].",
            "recurring[meter]",
        )
    if meter_id is not None:
        if usage_type != "metered":
            raise invalid("A meter can only be set with recurring[usage_type]=metered.", "recurring[meter]")
        meter = turn.state.find("meter", meter_id)
        if meter is None:
            raise no_such_reference("billing meter", meter_id, "recurring[meter]")
        if meter["status"] != "active":
            raise refused("The meter is inactive and cannot be used by a price.", "recurring[meter]")
    return body


def _amount(params: Params, name: str) -> tuple[int | None, str | None]:
    """``name`` or ``name_decimal``, not both: the integer form (None if not whole) and the exact text."""
    whole = params.integer(name)
    exact = params.decimal(f"{name}_decimal", _DECIMAL_PLACES_MAX)
    if whole is not None and exact is not None:
        raise invalid(
            f"You may only specify one of these parameters: {name}, {name}_decimal.", params.full_name(name)
        )
    if whole is not None:
        return whole, str(whole)
    if exact is None:
        return None, None
    return (int(exact) if exact == exact.to_integral_value() else None), plain(exact)


def plain(number: Decimal) -> str:
    """A decimal as plain text without exponent or needless zeros."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _transform(params: Params) -> JsonObject | None:
    transform = params.child("transform_quantity")
    if transform is None:
        return None
    divide_by = transform.integer("divide_by", 1)
    rounding = transform.choice("round", ("up", "down"))
    if divide_by is None or rounding is None:
        raise missing_parameter(
            transform.full_name("divide_by") if divide_by is None else transform.full_name("round")
        )
    return {"divide_by": divide_by, "round": rounding}


def _tier(tier: Params) -> JsonObject:
    up_to = tier.required_text("up_to")
    bound = None if up_to == "inf" else tier.integer("up_to", 1)
    unit_amount, unit_amount_decimal = _amount(tier, "unit_amount")
    flat_amount, flat_amount_decimal = _amount(tier, "flat_amount")
    if unit_amount_decimal is None and flat_amount_decimal is None:
        raise missing_parameter(tier.full_name("unit_amount"))
    return {
        "up_to": bound,
        "unit_amount": unit_amount,
        "unit_amount_decimal": unit_amount_decimal,
        "flat_amount": flat_amount,
        "flat_amount_decimal": flat_amount_decimal,
    }


def _check_tiers(
    tiers: list[JsonObject], mode: str | None, transform: JsonObject | None, unit_amount: str | None
) -> None:
    if mode is None:
        raise missing_parameter("tiers_mode")
    if not tiers:
        raise missing_parameter("tiers")
    if transform is not None:
        raise invalid("transform_quantity cannot be combined with tiers.", "transform_quantity")
    if unit_amount is not None:
        raise invalid("unit_amount cannot be combined with billing_scheme=tiered.", "unit_amount")
    bounds = [tier["up_to"] for tier in tiers]
    if bounds[-1] is not None:
        raise invalid('The last tier must be unbounded: set up_to to "inf".', "tiers")
    finite = bounds[:-1]
    if None in finite or any(low >= high for low, high in pairwise(finite)):
        raise invalid("Tiers must be in ascending order, each up_to above the one before.", "tiers")


def _claim_lookup_key(turn: Turn, lookup_key: str | None, transfer: bool, own_id: str = "") -> None:
    """Make the key free: it names one active price; with ``transfer`` it is taken from its present holder."""
    if lookup_key is None:
        return
    for other in turn.state.scan("price"):
        if other["lookup_key"] == lookup_key and other["id"] != own_id:
            if not transfer:
                raise refused(
                    f"A price (`{other['id']}`) already uses that lookup key. Use a different lookup key or set "
                    f"`transfer_lookup_key` to true.",
                    "lookup_key",
                    "resource_already_exists",
                )
            other["lookup_key"] = None
            turn.state.update(other)
            emit(turn, "price.updated", other, {"lookup_key": lookup_key})
            return


def _price(turn: Turn, price_id: str) -> JsonObject:
    body = turn.state.find("price", price_id)
    if body is None:
        raise no_such("price", price_id)
    return body


def retrieve_price(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/prices/{id}``."""
    call.params.finish()
    return render(_price(turn, call.ids[0]), call.version)


def update_price(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/prices/{id}``: amounts cannot change; only names and whether it is for sale."""
    body, params = _price(turn, call.ids[0]), call.params
    before = dict(body)
    if params.has("active"):
        body["active"] = params.boolean("active") is not False
    if params.has("nickname"):
        body["nickname"] = params.text("nickname")
    transfer = bool(params.boolean("transfer_lookup_key"))
    if params.has("lookup_key"):
        body["lookup_key"] = params.text("lookup_key", 200)
    merge_metadata(body, params)
    params.finish()
    if body["lookup_key"] != before["lookup_key"]:
        _claim_lookup_key(turn, body["lookup_key"], transfer, body["id"])
    turn.state.update(body)
    emit(turn, "price.updated", body, {key: before[key] for key in before if before[key] != body[key]})
    return render(body, call.version)


def list_prices(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/prices`` by product, activity, currency, type, lookup keys, meter and usage type."""
    params = call.params
    active, product = params.boolean("active"), params.text("product")
    currency, kind, keys = params.text("currency", 3), params.text("type"), params.texts("lookup_keys")
    recurring = params.child("recurring")
    wanted = {
        name: recurring.text(name) if recurring is not None else None
        for name in ("meter", "usage_type", "interval")
    }

    def keep(body: JsonObject) -> bool:
        terms = body["recurring"] or {}
        return (
            (active is None or body["active"] == active)
            and (currency is None or body["currency"] == currency)
            and (kind is None or body["type"] == kind)
            and (not keys or body["lookup_key"] in keys)
            and all(value is None or terms.get(name) == value for name, value in wanted.items())
        )

    listed = list_objects(turn, call, "price", keep=keep, parent=product)
    listed["data"] = render(listed["data"], call.version)
    return listed
