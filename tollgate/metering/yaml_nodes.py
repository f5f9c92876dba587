"""Reading a YAML document by its nodes, so that every problem has a line.

Owns composing, keys, texts, choices and numbers, and the list of problems. It refuses to know what the keys mean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import yaml

from tollgate.metering.errors import InvalidMeter

_WHOLE = re.compile(r"\d{1,18}")
_DECIMAL = re.compile(r"(\d{1,15})(?:\.(\d+))?")


class NodeReader:
    """One file while it is read, and the problems found so far, each as `file:line: meter 'name': message`."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.problems: list[str] = []

    def compose(self, text: str) -> yaml.Node | None:
        """The document's root. Raises InvalidMeter for what is no YAML."""
        try:
            root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = mark.line + 1 if mark else 1
            raise InvalidMeter([f"{self.filename}:{line}: not YAML: {error.problem}"]) from error
        except (yaml.YAMLError, RecursionError) as error:
            raise InvalidMeter([f"{self.filename}:1: not YAML: {error}"]) from error
        return root

    def problem(self, node: yaml.Node, name: str | None, message: str) -> None:
        """Note what is wrong with a node of the meter `name`."""
        meter = f"meter {name!r}: " if name is not None else ""
        self.problems.append(f"{self.filename}:{node.start_mark.line + 1}: {meter}{message}")

    def entries(
        self, node: yaml.MappingNode, name: str | None, keys: Sequence[str], within: str = ""
    ) -> dict[str, yaml.Node]:
        """The values of a mapping by key; unknown and repeated keys are problems. `within` names the mapping."""
        place = f"{within}: " if within else ""
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            if key not in keys:
                hint = _meant(key, keys) or f"; known are {', '.join(keys)}"
                self.problem(key_node, name, f"{place}unknown key {key!r}{hint}")
            elif key in found:
                self.problem(key_node, name, f"{place}key {key!r} is given twice")
            else:
                found[key] = value
        return found

    def mapping(
        self, node: yaml.Node, name: str, key: str, keys: Sequence[str]
    ) -> dict[str, yaml.Node] | None:
        """The values of the mapping that must be at `key`; None, and a problem, for anything else."""
        if isinstance(node, yaml.MappingNode):
            return self.entries(node, name, keys, within=key if "." in key or key == "price" else "")
        self.problem(node, name, f"{key}: a mapping is wanted")
        return None

    def text(self, node: yaml.Node | None, name: str, key: str) -> str | None:
        """A text that is not blank; None without a node."""
        if node is None:
            return None
        value = construct(node)
        if isinstance(value, str) and value.strip():
            return value.strip()
        self.problem(node, name, f"{key}: a text is wanted")
        return None

    def choice(
        self, node: yaml.Node | None, name: str, key: str, allowed: Sequence[str], default: str
    ) -> str:
        """One of `allowed`; `default` without a node, and after a problem."""
        if node is None:
            return default
        value = node.value
        # YAML 1.1 reads a bare `off` as false; the text as written is what counts.
        if isinstance(value, str) and value in allowed:
            return value
        hint = _meant(str(value), allowed)
        self.problem(node, name, f"{key}: {value!r} is none of {', '.join(allowed)}{hint}")
        return default

    def whole(self, node: yaml.Node, name: str, key: str, minimum: int) -> int | None:
        """A whole number as written, at least `minimum`; None after a problem."""
        value = node.value
        if isinstance(value, str) and _WHOLE.fullmatch(value) and int(value) >= minimum:
            return int(value)
        shown = repr(value) if isinstance(value, str) else "this"
        self.problem(node, name, f"{key}: {shown} is no whole number of at least {minimum}")
        return None

    def decimal(self, node: yaml.Node, name: str, key: str, places_max: int) -> Decimal | None:
        """A plain decimal as written, never by way of a float, not negative; None after a problem."""
        value = node.value
        match = _DECIMAL.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            shown = repr(value) if isinstance(value, str) else "this"
            self.problem(node, name, f"{key}: {shown} is no plain decimal like 0.25")
            return None
        if len(match[2] or "") > places_max:
            self.problem(node, name, f"{key}: {value} has more than {places_max} decimal places")
            return None
        return Decimal(value)


def _meant(value: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def construct(node: yaml.Node) -> Any:
    """The plain value of a node, as SafeLoader makes it. Raises ValueError when it cannot."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise ValueError(f"not a plain value: {error}") from error
    finally:
        loader.dispose()
