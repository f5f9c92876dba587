"""meters.yaml: the text a person writes, read into meters.

Owns the file's keys and its error messages. It refuses to know where the file is, what was applied before and how
expressions run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import yaml

from tollgate.metering.compiled import compile_meter
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

_DIMENSIONS_MAX = 8
"""All of them shortened still fit the ledger's index key beside the longest account."""

_METER_KEYS = ("name", "where", "metric", "window", "group_by", "stripe")
_STRIPE_KEYS = ("mode", "send", "event_name", "product", "price")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KINDS = frozenset(kind.value for kind in MetricKind)
_EVENT_NAME_LENGTH_MAX = 100


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
        self._filename = filename
        self._properties = properties
        self._problems: list[str] = []
        self._lines: dict[str, int] = {}
        self._event_names: dict[str, str] = {}

    def read(self, text: str) -> tuple[Meter, ...]:
        meters = [meter for node in self._meter_nodes(text) if (meter := self._read_meter(node)) is not None]
        if self._problems:
            raise InvalidMeter(self._problems)
        return tuple(meters)

    def _problem(self, node: yaml.Node, name: str | None, message: str) -> None:
        line = node.start_mark.line + 1
        meter = f"meter {name!r}: " if name is not None else ""
        self._problems.append(f"{self._filename}:{line}: {meter}{message}")

    def _meter_nodes(self, text: str) -> list[yaml.Node]:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = mark.line + 1 if mark else 1
            raise InvalidMeter([f"{self._filename}:{line}: not YAML: {error.problem}"]) from error
        except (yaml.YAMLError, RecursionError) as error:
            raise InvalidMeter([f"{self._filename}:1: not YAML: {error}"]) from error
        if not isinstance(root, yaml.MappingNode):
            raise InvalidMeter([f"{self._filename}:1: a mapping with the key 'meters' is wanted"])
        found: list[yaml.Node] = []
        for key, value in self._entries(root, None, ("meters",)).items():
            if key == "meters" and isinstance(value, yaml.SequenceNode):
                found = value.value
            elif key == "meters":
                self._problem(value, None, "meters: a list is wanted")
        return found

    def _entries(self, node: yaml.MappingNode, name: str | None, keys: Sequence[str]) -> dict[str, yaml.Node]:
        """The values of a mapping by key; unknown and repeated keys are problems."""
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            if key not in keys:
                close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
                hint = f": did you mean {close[0]}?" if close else f"; known are {', '.join(keys)}"
                self._problem(key_node, name, f"unknown key {key!r}{hint}")
            elif key in found:
                self._problem(key_node, name, f"key {key!r} is given twice")
            else:
                found[key] = value
        return found

    def _read_meter(self, node: yaml.Node) -> Meter | None:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, None, "a meter is a mapping")
            return None
        name = next((value.value for key, value in node.value if key.value == "name"), None)
        name = name if isinstance(name, str) else "?"
        before = len(self._problems)
        entries = self._entries(node, name, _METER_KEYS)
        self._check_name(node, entries, name)
        where = self._text(entries.get("where"), name, "where")
        metric = self._metric(node, entries.get("metric"), name)
        window = self._choice(entries.get("window"), name, "window", list(WindowSize), WindowSize.HOUR)
        group_by = self._group_by(entries.get("group_by"), name)
        stripe = self._stripe(entries.get("stripe"), name)
        if len(self._problems) > before or metric is None:
            return None
        meter = Meter(name, where, metric, WindowSize(window), group_by, stripe)
        try:
            compile_meter(MeterVersion(0, meter, 0), self._properties)
        except InvalidMeter as error:
            for problem in error.problems:
                key = problem.partition(":")[0]
                # A metric's expression is named by its kind, which stands inside the entry `metric`.
                self._problem(entries.get("metric" if key in _KINDS else key, node), name, problem)
            return None
        return meter

    def _check_name(self, node: yaml.MappingNode, entries: Mapping[str, yaml.Node], name: str) -> None:
        if "name" not in entries:
            self._problem(node, None, "a meter needs a name")
        elif not _NAME.fullmatch(name):
            self._problem(entries["name"], name, "a name is lower-case letters, digits and _, at most 64")
        elif name in self._lines:
            self._problem(
                entries["name"], name, f"the name is taken by the meter of line {self._lines[name]}"
            )
        self._lines.setdefault(name, node.start_mark.line + 1)

    def _metric(self, node: yaml.Node, metric: yaml.Node | None, name: str) -> Metric | None:
        if metric is None:
            self._problem(node, name, "a metric is wanted: count, or one of sum, max, min, latest, unique")
            return None
        try:
            return Metric.from_document(_construct(metric))
        except ValueError as error:
            self._problem(metric, name, str(error))
            return None

    def _group_by(self, node: yaml.Node | None, name: str) -> tuple[str, ...]:
        value = _construct(node) if node is not None else []
        if isinstance(value, list) and all(isinstance(column, str) for column in value):
            if len(value) <= _DIMENSIONS_MAX:
                return tuple(value)
            assert node is not None
            self._problem(node, name, f"group_by: {len(value)} columns, more than {_DIMENSIONS_MAX}")
            return ()
        assert node is not None
        self._problem(node, name, "group_by: a list of columns is wanted")
        return ()

    def _stripe(self, node: yaml.Node | None, name: str) -> StripeTarget | None:
        if node is None:
            return None
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, name, "stripe: a mapping is wanted")
            return None
        entries = self._entries(node, name, _STRIPE_KEYS)
        mode = self._choice(entries.get("mode"), name, "mode", STRIPE_MODES, "delta")
        send = self._choice(entries.get("send"), name, "send", SEND_MODES, "off")
        event_name = self._text(entries.get("event_name"), name, "event_name") or name
        product = self._text(entries.get("product"), name, "product")
        price = _construct(entries["price"]) if "price" in entries else None
        if len(event_name) > _EVENT_NAME_LENGTH_MAX:
            self._problem(entries["event_name"], name, f"event_name is longer than {_EVENT_NAME_LENGTH_MAX}")
        if event_name in self._event_names:
            taken = self._event_names[event_name]
            self._problem(node, name, f"event_name {event_name!r} is taken by meter {taken!r}")
        self._event_names.setdefault(event_name, name)
        if price is not None and not isinstance(price, dict):
            self._problem(entries["price"], name, "price: a mapping is wanted")
            price = None
        return StripeTarget(
            mode=cast("StripeMode", mode),
            send=cast("SendMode", send),
            event_name=event_name,
            product=product,
            price=price,
        )

    def _text(self, node: yaml.Node | None, name: str, key: str) -> str | None:
        if node is None:
            return None
        value = _construct(node)
        if isinstance(value, str) and value.strip():
            return value.strip()
        self._problem(node, name, f"{key}: a text is wanted")
        return None

    def _choice(
        self, node: yaml.Node | None, name: str, key: str, allowed: Sequence[str], default: str
    ) -> str:
        if node is None:
            return default
        value = node.value
        # YAML 1.1 reads a bare `off` as false; the text as written is what counts.
        if isinstance(value, str) and value in allowed:
            return value
        close = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
        hint = f": did you mean {close[0]}?" if close else ""
        self._problem(node, name, f"{key}: {value!r} is none of {', '.join(allowed)}{hint}")
        return default


def _construct(node: yaml.Node) -> Any:
    """The plain value of a node, as SafeLoader makes it. Raises ValueError when it cannot."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise ValueError(f"not a plain value: {error}") from error
    finally:
        loader.dispose()
