"""meters.yaml: the text a person writes, read into meters.

Owns the file's keys and its error messages. It refuses to know where the file is, what was applied before and how
expressions run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import yaml

from tollgate.metering.charge import Unchargeable, shape_for
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.compiled import compile_meter
from tollgate.metering.declared_price import read_price
from tollgate.metering.definition import (
    SEND_MODES,
    STRIPE_MODES,
    Meter,
    MeterVersion,
    SendMode,
    StripeMode,
    StripeTarget,
)
from tollgate.metering.errors import InvalidMeter
from tollgate.metering.expression import check_expression
from tollgate.metering.metric import Metric, MetricKind
from tollgate.metering.syntax import negations_of
from tollgate.metering.window import WindowSize
from tollgate.metering.yaml_nodes import NodeReader, construct

_DIMENSIONS_MAX = 8
"""All of them shortened still fit the ledger's index key beside the longest account."""

_METER_KEYS = ("name", "where", "metric", "window", "group_by", "stripe")
_STRIPE_KEYS = ("mode", "send", "event_name", "product", "price", "closed")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KINDS = frozenset(kind.value for kind in MetricKind)
_EVENT_NAME_LENGTH_MAX = 100
_PRODUCT_LENGTH_MAX = 250
"""Longer names Stripe would cut on invoices."""


def parse_meters(text: str, filename: str, properties: Collection[str] | None = None) -> tuple[Meter, ...]:
    """The meters a meters.yaml declares.

    `properties` are the captured property names; None allows any. Raises InvalidMeter with every problem, each as
    `file:line: meter 'name': message`.
    """
    return _File(filename, properties).read(text)


def lint_meters(meters: Sequence[Meter]) -> list[str]:
    """What is allowed but may not be meant: a negation does not match where its column is NULL."""
    warnings = []
    for meter in meters:
        if meter.where is None:
            continue
        for clause in check_expression(meter.where).clauses:
            for negation, column in negations_of(clause.tree):
                warnings.append(
                    f"meter {meter.name!r}: {negation} does not match events whose {column} is NULL; "
                    f"add OR {column} IS NULL to count them, or {column} IS NOT NULL to say so"
                )
    return warnings


class _File:
    """One meters.yaml while it is read, and the problems found so far."""

    def __init__(self, filename: str, properties: Collection[str] | None) -> None:
        self._nodes = NodeReader(filename)
        self._properties = properties
        self._lines: dict[str, int] = {}
        self._event_names: dict[str, str] = {}

    def read(self, text: str) -> tuple[Meter, ...]:
        meters = [meter for node in self._meter_nodes(text) if (meter := self._read_meter(node)) is not None]
        if self._nodes.problems:
            raise InvalidMeter(self._nodes.problems)
        return tuple(meters)

    def _meter_nodes(self, text: str) -> list[yaml.Node]:
        root = self._nodes.compose(text)
        if not isinstance(root, yaml.MappingNode):
            raise InvalidMeter([f"{self._nodes.filename}:1: a mapping with the key 'meters' is wanted"])
        found: list[yaml.Node] = []
        for key, value in self._nodes.entries(root, None, ("meters",)).items():
            if key == "meters" and isinstance(value, yaml.SequenceNode):
                found = value.value
            elif key == "meters":
                self._nodes.problem(value, None, "meters: a list is wanted")
        return found

    def _read_meter(self, node: yaml.Node) -> Meter | None:
        if not isinstance(node, yaml.MappingNode):
            self._nodes.problem(node, None, "a meter is a mapping")
            return None
        name = next((value.value for key, value in node.value if key.value == "name"), None)
        name = name if isinstance(name, str) else "?"
        before = len(self._nodes.problems)
        entries = self._nodes.entries(node, name, _METER_KEYS)
        self._check_name(node, entries, name)
        where = self._nodes.text(entries.get("where"), name, "where")
        metric = self._metric(node, entries.get("metric"), name)
        window = self._nodes.choice(entries.get("window"), name, "window", list(WindowSize), WindowSize.HOUR)
        group_by = self._group_by(entries.get("group_by"), name)
        stripe = self._stripe(entries.get("stripe"), name, metric, WindowSize(window))
        if len(self._nodes.problems) > before or metric is None:
            return None
        meter = Meter(name, where, metric, WindowSize(window), group_by, stripe)
        try:
            compile_meter(MeterVersion(0, meter, 0), self._properties)
        except InvalidMeter as error:
            for problem in error.problems:
                key = problem.partition(":")[0]
                # A metric's expression is named by its kind, which stands inside the entry `metric`.
                self._nodes.problem(entries.get("metric" if key in _KINDS else key, node), name, problem)
            return None
        return meter

    def _check_name(self, node: yaml.MappingNode, entries: Mapping[str, yaml.Node], name: str) -> None:
        if "name" not in entries:
            self._nodes.problem(node, None, "a meter needs a name")
        elif not _NAME.fullmatch(name):
            self._nodes.problem(
                entries["name"], name, "a name is lower-case letters, digits and _, at most 64"
            )
        elif name in self._lines:
            self._nodes.problem(
                entries["name"], name, f"the name is taken by the meter of line {self._lines[name]}"
            )
        self._lines.setdefault(name, node.start_mark.line + 1)

    def _metric(self, node: yaml.Node, metric: yaml.Node | None, name: str) -> Metric | None:
        if metric is None:
            self._nodes.problem(
                node, name, "a metric is wanted: count, or one of sum, max, min, latest, unique"
            )
            return None
        try:
            return Metric.from_document(construct(metric))
        except ValueError as error:
            self._nodes.problem(metric, name, str(error))
            return None

    def _group_by(self, node: yaml.Node | None, name: str) -> tuple[str, ...]:
        value = construct(node) if node is not None else []
        if isinstance(value, list) and all(isinstance(column, str) for column in value):
            if len(value) <= _DIMENSIONS_MAX:
                return tuple(value)
            assert node is not None
            self._nodes.problem(node, name, f"group_by: {len(value)} columns, more than {_DIMENSIONS_MAX}")
            return ()
        assert node is not None
        self._nodes.problem(node, name, "group_by: a list of columns is wanted")
        return ()

    def _stripe(
        self, node: yaml.Node | None, name: str, metric: Metric | None, window: WindowSize
    ) -> StripeTarget | None:
        if node is None:
            return None
        if not isinstance(node, yaml.MappingNode):
            self._nodes.problem(node, name, "stripe: a mapping is wanted")
            return None
        entries = self._nodes.entries(node, name, _STRIPE_KEYS)
        mode = self._nodes.choice(entries.get("mode"), name, "mode", STRIPE_MODES, "delta")
        send = self._nodes.choice(entries.get("send"), name, "send", SEND_MODES, "off")
        if metric is not None:
            try:
                shape_for(metric.kind, mode, window)
            except Unchargeable as error:
                self._nodes.problem(entries.get("mode", node), name, f"mode: {error}")
        price = None
        if "price" in entries:
            price = read_price(self._nodes, entries["price"], name, metric.kind if metric else None)
            if mode == "usage_record":
                self._nodes.problem(
                    entries["price"],
                    name,
                    "price: Stripe no longer makes prices for usage records (since 2025-03-31.basil); leave it out, "
                    "subscriptions keep the price they have, or choose mode: delta",
                )
        return StripeTarget(
            mode=cast("StripeMode", mode),
            send=cast("SendMode", send),
            event_name=self._event_name(node, entries, name),
            product=self._product(entries.get("product"), name),
            price=price,
            closed=self._closed(entries.get("closed"), name),
        )

    def _closed(self, node: yaml.Node | None, name: str) -> ClosedPolicy | None:
        if node is None:
            return None
        return ClosedPolicy(self._nodes.choice(node, name, "closed", list(ClosedPolicy), ClosedPolicy.HOLD))

    def _event_name(self, node: yaml.Node, entries: Mapping[str, yaml.Node], name: str) -> str:
        event_name = self._nodes.text(entries.get("event_name"), name, "event_name") or name
        if len(event_name) > _EVENT_NAME_LENGTH_MAX:
            self._nodes.problem(
                entries["event_name"], name, f"event_name is longer than {_EVENT_NAME_LENGTH_MAX}"
            )
        if event_name in self._event_names:
            taken = self._event_names[event_name]
            self._nodes.problem(node, name, f"event_name {event_name!r} is taken by meter {taken!r}")
        self._event_names.setdefault(event_name, name)
        return event_name

    def _product(self, node: yaml.Node | None, name: str) -> str | None:
        product = self._nodes.text(node, name, "product")
        if node is not None and product is not None and len(product) > _PRODUCT_LENGTH_MAX:
            self._nodes.problem(node, name, f"product is longer than {_PRODUCT_LENGTH_MAX}")
        return product
