"""The `price:` block of meters.yaml: the text a person writes, read into a price.

Owns the block's keys and its error messages. It refuses to know the rest of the file and what Stripe has.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import cast

import yaml

from tollgate.metering.charge import Charge, Unchargeable, charge_of, check_charge
from tollgate.metering.currency import CURRENCIES, nearest_currency
from tollgate.metering.metric import MetricKind
from tollgate.metering.price import (
    AMOUNT_PLACES_MAX,
    INTERVAL_COUNT_MAX,
    ROUNDINGS,
    DeclaredPrice,
    Interval,
    IntervalUnit,
    Package,
    Price,
    PriceModel,
    Rounding,
    Tier,
    find_tier_problem,
)
from tollgate.metering.yaml_nodes import NodeReader

_KEYS = (
    "model",
    "currency",
    "interval",
    "charge",
    "unit_amount",
    "unit_amount_decimal",
    "package",
    "tiers",
    "description",
    "lookup_key",
)
_TIER_KEYS = ("up_to", "unit_amount", "unit_amount_decimal", "flat_amount", "flat_amount_decimal")
_INTERVALS: Mapping[str, Interval] = {
    "day": Interval("day"),
    "week": Interval("week"),
    "month": Interval("month"),
    "3 months": Interval("month", 3),
    "6 months": Interval("month", 6),
    "year": Interval("year"),
}
_LOOKUP_KEY_LENGTH_MAX = 200
_DESCRIPTION_LENGTH_MAX = 500


def read_price(
    reader: NodeReader, node: yaml.Node, name: str, kind: MetricKind | None
) -> DeclaredPrice | None:
    """The price declared at `node` for the meter `name`, whose metric is of `kind` (None where that is unknown).

    None after a problem; every problem is noted with the reader.
    """
    entries = reader.mapping(node, name, "price", _KEYS)
    return None if entries is None else _PriceReader(reader, node, name, entries).read(kind)


class _PriceReader:
    """One price block while it is read."""

    def __init__(
        self, reader: NodeReader, node: yaml.Node, name: str, entries: Mapping[str, yaml.Node]
    ) -> None:
        self._reader = reader
        self._node = node
        self._name = name
        self._entries = entries

    def read(self, kind: MetricKind | None) -> DeclaredPrice | None:
        before = len(self._reader.problems)
        model = self._model()
        currency = self._currency()
        interval = self._interval()
        charge = self._charge(kind)
        description = self._named("description", _DESCRIPTION_LENGTH_MAX)
        lookup_key = self._named("lookup_key", _LOOKUP_KEY_LENGTH_MAX)
        unit_amount = self._unit_amount(model)
        package = self._package(model)
        tiers = self._tiers(model)
        if len(self._reader.problems) > before or interval is None or charge is None:
            return None
        price = Price(model, currency, interval, unit_amount, package, tiers, description)
        return DeclaredPrice(price, charge, lookup_key)

    def _problem(self, key: str, message: str) -> None:
        self._reader.problem(self._entries.get(key, self._node), self._name, f"price: {message}")

    def _model(self) -> PriceModel:
        if "model" not in self._entries:
            self._problem("model", f"a model is wanted: {', '.join(PriceModel)}")
        chosen = self._reader.choice(
            self._entries.get("model"), self._name, "price: model", list(PriceModel), PriceModel.STANDARD
        )
        return PriceModel(chosen)

    def _currency(self) -> str:
        node = self._entries.get("currency")
        if node is None:
            self._problem("currency", "a currency is wanted, like usd")
            return ""
        # As written: YAML 1.1 has a meaning of its own for some words.
        code = node.value.lower() if isinstance(node.value, str) else ""
        if code not in CURRENCIES:
            near = nearest_currency(code)
            hint = f": did you mean {near}?" if near else ""
            self._problem("currency", f"currency: {node.value!r} is none that Stripe knows{hint}")
        return code

    def _interval(self) -> Interval | None:
        node = self._entries.get("interval")
        if not isinstance(node, yaml.MappingNode):
            words = [*_INTERVALS, "{ every: 2, unit: month }"]
            if node is not None and node.value not in _INTERVALS:
                self._reader.choice(node, self._name, "price: interval", words, "month")
                return None
            return _INTERVALS["month" if node is None else node.value]
        entries = self._reader.entries(node, self._name, ("every", "unit"), within="price.interval")
        if len(entries) < 2:
            self._problem("interval", "interval: every and unit are wanted, like { every: 2, unit: month }")
            return None
        every = self._reader.whole(entries["every"], self._name, "price: interval: every", 1)
        problems = len(self._reader.problems)
        unit = self._reader.choice(
            entries["unit"], self._name, "price: interval: unit", list(INTERVAL_COUNT_MAX), "month"
        )
        if every is None or len(self._reader.problems) > problems:
            return None
        try:
            return Interval(cast("IntervalUnit", unit), every)
        except ValueError as error:
            self._problem("interval", f"interval: {error}")
            return None

    def _charge(self, kind: MetricKind | None) -> Charge | None:
        default = Charge.SUM if kind is None else charge_of(kind)
        charge = Charge(
            self._reader.choice(
                self._entries.get("charge"), self._name, "price: charge", list(Charge), default
            )
        )
        if kind is not None:
            try:
                check_charge(kind, charge)
            except Unchargeable as error:
                self._problem("charge", f"charge: {error}")
        return charge

    def _named(self, key: str, length_max: int) -> str | None:
        text = self._reader.text(self._entries.get(key), self._name, f"price: {key}")
        if text is not None and len(text) > length_max:
            self._problem(key, f"{key} is longer than {length_max}")
        return text

    def _unit_amount(self, model: PriceModel) -> Decimal | None:
        given = [key for key in ("unit_amount", "unit_amount_decimal") if key in self._entries]
        if model.tiered:
            for key in given:
                self._problem(key, f"{key}: a {model} price has its amounts in its tiers")
            return None
        amount = self._amount(self._entries, "unit_amount", "price")
        if not given:
            self._problem(
                "model", f"a {model} price needs unit_amount (whole minor units) or unit_amount_decimal"
            )
        return amount

    def _amount(self, entries: Mapping[str, yaml.Node], key: str, place: str) -> Decimal | None:
        """`key` in whole minor units or `key_decimal`, not both; None without either, and after a problem."""
        whole, exact = entries.get(key), entries.get(f"{key}_decimal")
        if whole is not None and exact is not None:
            self._reader.problem(
                exact, self._name, f"{place}: {key} and {key}_decimal: one of them, not both"
            )
            return None
        if exact is not None:
            return self._reader.decimal(exact, self._name, f"{place}: {key}_decimal", AMOUNT_PLACES_MAX)
        if whole is None:
            return None
        if isinstance(whole.value, str) and "." in whole.value:
            self._reader.problem(
                whole,
                self._name,
                f"{place}: {key}: whole minor units (cents) are wanted; write {key}_decimal: {whole.value}",
            )
            return None
        number = self._reader.whole(whole, self._name, f"{place}: {key}", 0)
        return None if number is None else Decimal(number)

    def _package(self, model: PriceModel) -> Package | None:
        node = self._entries.get("package")
        if model is not PriceModel.PACKAGE:
            if node is not None:
                self._problem("package", f"package: a {model} price has none")
            return None
        if node is None:
            self._problem("model", "a package price needs package: { size: 1000, round: up }")
            return None
        entries = self._reader.mapping(node, self._name, "price.package", ("size", "round"))
        if entries is None:
            return None
        if "size" not in entries:
            self._problem("package", "package: a size is wanted")
            return None
        size = self._reader.whole(entries["size"], self._name, "price: package: size", 1)
        rounding = self._reader.choice(
            entries.get("round"), self._name, "price: package: round", ROUNDINGS, "up"
        )
        return None if size is None else Package(size, cast("Rounding", rounding))

    def _tiers(self, model: PriceModel) -> tuple[Tier, ...]:
        node = self._entries.get("tiers")
        if not model.tiered:
            if node is not None:
                self._problem("tiers", f"tiers: a {model} price has none; graduated and volume have")
            return ()
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._problem("tiers", f"a {model} price needs tiers: a list, the last one with up_to: inf")
            return ()
        tiers = [self._tier(number, tier) for number, tier in enumerate(node.value, start=1)]
        read = [tier for tier in tiers if tier is not None]
        if len(read) < len(tiers):
            return ()
        problem = find_tier_problem(read)
        if problem is not None:
            index, message = problem
            self._reader.problem(node.value[index], self._name, f"price: tier {index + 1}: {message}")
        return tuple(read)

    def _tier(self, number: int, node: yaml.Node) -> Tier | None:
        place = f"price: tier {number}"
        before = len(self._reader.problems)
        if not isinstance(node, yaml.MappingNode):
            self._reader.problem(node, self._name, f"{place}: a mapping is wanted")
            return None
        entries = self._reader.entries(node, self._name, _TIER_KEYS, within=place)
        up_to = None
        if "up_to" not in entries:
            self._reader.problem(node, self._name, f"{place}: up_to is wanted: its last unit, or inf")
        elif entries["up_to"].value != "inf":
            up_to = self._reader.whole(entries["up_to"], self._name, f"{place}: up_to", 1)
        unit_amount = self._amount(entries, "unit_amount", place)
        flat_amount = self._amount(entries, "flat_amount", place)
        if not entries.keys() - {"up_to"}:
            self._reader.problem(node, self._name, f"{place}: a unit_amount or a flat_amount is wanted")
        if len(self._reader.problems) > before:
            return None
        return Tier(up_to, unit_amount or Decimal(0), flat_amount or Decimal(0))
