"""Reading a request's parameters: typed, bounded, and strict about names.

Owns: Stripe's validation words for a parameter. Refuses to know: what any parameter means.
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from sandbox.stripe.errors import invalid, missing_parameter, unknown_parameter

TEXT_LENGTH_MAX = 5000
_INTEGER = re.compile(r"^-?\d{1,18}$")
_PLAIN_DECIMAL = re.compile(r"^-?\d+(\.\d+)?$")


class Params:
    """One level of parameters. Reading a name marks it known; ``finish`` refuses what nobody read.

    Every reader raises ``Refusal`` (400, before execution) when the value is of the wrong kind. An empty text
    value means "unset" at Stripe: readers answer None for it, and ``has`` tells it apart from absence.
    """

    __slots__ = ("_children", "_read", "_values", "prefix")

    def __init__(self, values: Mapping[str, object], prefix: str = "") -> None:
        self._values = values
        self._read: set[str] = set()
        self._children: list[Params] = []
        self.prefix = prefix

    def full_name(self, name: str) -> str:
        """The name as Stripe spells it in an error's ``param``: ``items[0][price]``."""
        return f"{self.prefix}[{name}]" if self.prefix else name

    def has(self, *names: str) -> bool:
        """Whether any of the names was sent, even empty. Marks them known."""
        self._read.update(names)
        return any(name in self._values for name in names)

    def _scalar(self, name: str) -> str | int | bool | None:
        self._read.add(name)
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str | int | bool):
            raise invalid(f"Invalid {self.full_name(name)}: expected a single value", self.full_name(name))
        return value

    def text(self, name: str, length_max: int = TEXT_LENGTH_MAX) -> str | None:
        """Text of at most ``length_max`` characters, or None."""
        value = self._scalar(name)
        if value is None:
            return None
        text = str(value)
        if len(text) > length_max:
            raise invalid(
                f"Invalid string: {text[:20]}...; must be at most {length_max} characters",
                self.full_name(name),
                "parameter_invalid_string",
            )
        return text

    def required_text(self, name: str, length_max: int = TEXT_LENGTH_MAX) -> str:
        """Like ``text``, but must be there."""
        value = self.text(name, length_max)
        if value is None:
            raise missing_parameter(self.full_name(name))
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """One of ``choices``, or None."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise invalid(
                f"Invalid {self.full_name(name)}: must be one of {', '.join(choices)}", self.full_name(name)
            )
        return value

    def integer(self, name: str, minimum: int | None = None, maximum: int | None = None) -> int | None:
        """A whole number within the bounds, or None."""
        value = self._scalar(name)
        if value is None:
            return None
        if isinstance(value, bool) or not _INTEGER.match(str(value)):
            raise invalid(
                f"Invalid integer: {str(value)[:100]}", self.full_name(name), "parameter_invalid_integer"
            )
        number = int(value)
        if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
            bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
            raise invalid(f"This value must be {bounds}.", self.full_name(name), "parameter_invalid_integer")
        return number

    def boolean(self, name: str) -> bool | None:
        """``true`` or ``false``, or None."""
        value = self._scalar(name)
        if value is None or isinstance(value, bool):
            return value
        if value not in ("true", "false"):
            raise invalid(f"Invalid boolean: {str(value)[:100]}", self.full_name(name))
        return value == "true"

    def decimal(self, name: str, places_max: int) -> Decimal | None:
        """A plain decimal (no exponent) with at most ``places_max`` places, or None."""
        text = self.text(name, length_max=64)
        if text is None:
            return None
        if not _PLAIN_DECIMAL.match(text):
            raise invalid(f"Invalid decimal: {text}", self.full_name(name), "parameter_invalid_decimal")
        try:
            number = Decimal(text)
        except InvalidOperation as error:
            raise invalid(f"Invalid decimal: {text}", self.full_name(name)) from error
        exponent = number.as_tuple().exponent
        if isinstance(exponent, int) and -exponent > places_max:
            raise invalid(
                f"Invalid decimal: {text}; at most {places_max} decimal places", self.full_name(name)
            )
        return number

    def child(self, name: str) -> "Params | None":
        """A nested map, or None."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, Mapping):
            raise invalid(f"Invalid object: {self.full_name(name)}", self.full_name(name))
        child = Params(value, self.full_name(name))
        self._children.append(child)
        return child

    def children(self, name: str) -> "list[Params]":
        """A nested list of maps; empty when absent."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None or value == "":
            return []
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise invalid(f"Invalid array: {self.full_name(name)}", self.full_name(name))
        children = [Params(entry, f"{self.full_name(name)}[{index}]") for index, entry in enumerate(value)]
        self._children.extend(children)
        return children

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty when absent. A single value is a list of one, as at Stripe."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None or value == "":
            return []
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise invalid(f"Invalid array: {self.full_name(name)}", self.full_name(name))
        return [str(entry) for entry in entries]

    def text_map(self, name: str) -> dict[str, str] | None:
        """A map from text to text (metadata, a meter event's payload), or None when absent."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            return None
        if value == "":
            return {}
        if isinstance(value, list):
            # Keys 0, 1, 2 … look like a list once decoded; as a text map they are ordinary keys.
            value = {str(index): entry for index, entry in enumerate(value)}
        if not isinstance(value, Mapping) or not all(isinstance(entry, str) for entry in value.values()):
            raise invalid(f"Invalid object: {self.full_name(name)}", self.full_name(name))
        return {str(key): str(entry) for key, entry in value.items()}

    def verbatim(self, name: str) -> object:
        """Whatever was sent, untouched: for parameters that are stored and echoed but mean nothing here."""
        self._read.add(name)
        return self._values.get(name)

    def created_range(self, name: str = "created") -> tuple[int, int]:
        """A list filter on seconds, ``created=…`` or ``created[gte]=…``: an inclusive range."""
        self._read.add(name)
        low, high = 0, 2**62
        if isinstance(self._values.get(name), str):
            exact = self.integer(name)
            return (low, high) if exact is None else (exact, exact)
        bounds = self.child(name)
        if bounds is not None:
            for key, shift in (("gt", 1), ("gte", 0)):
                value = bounds.integer(key)
                low = low if value is None else max(low, value + shift)
            for key, shift in (("lt", -1), ("lte", 0)):
                value = bounds.integer(key)
                high = high if value is None else min(high, value + shift)
        return low, high

    def finish(self) -> None:
        """Refuse every parameter that no reader asked for, here and below."""
        for name in self._values:
            if name not in self._read and name != "expand":
                raise unknown_parameter(self.full_name(name))
        for child in self._children:
            child.finish()


def merge_metadata(body: dict[str, object], params: Params) -> None:
    """Apply ``metadata`` as Stripe does: keys merge, an empty value removes its key, an empty map clears all."""
    sent = params.text_map("metadata")
    if sent is None:
        return
    present = body.get("metadata")
    merged = dict(present) if isinstance(present, dict) and sent else {}
    for key, value in sent.items():
        if value == "":
            merged.pop(key, None)
        else:
            merged[key] = value
    body["metadata"] = merged
