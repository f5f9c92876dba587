"""Bracketed form encoding: ``items[0][price]=p`` to nested values.

Owns: the decoding of v1 bodies and query strings. Refuses to know: which parameters exist.
"""

import re
from urllib.parse import parse_qsl

from sandbox.stripe.errors import invalid

_NAME = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
_PART = re.compile(r"\[([^\[\]]*)\]")
_FIELDS_MAX = 10_000  # far above any real call; a bound so that a hostile body cannot be built into memory


def decode_form(raw: str) -> dict[str, object]:
    """Decode one form body or query string.

    ``a[b]=1`` nests, ``a[]=1`` appends, and maps whose keys are 0, 1, 2 … become lists, as at Stripe.
    Values stay text. Raises ``Refusal`` (400) for a malformed name or for a name used both as value and as map.
    """
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise invalid(f"Invalid form body: {error}") from error
    root: dict[str, object] = {}
    for name, value in pairs:
        match = _NAME.match(name)
        if match is None:
            raise invalid(f"Invalid parameter name: {name[:100]}", name[:100])
        _place(root, [match.group(1), *_PART.findall(match.group(2))], value, name)
    return {key: _listed(value) for key, value in root.items()}


def _place(root: dict[str, object], parts: list[str], value: str, name: str) -> None:
    """Store ``value`` under the path ``parts``; an empty part means the next free index."""
    here = root
    for part in parts[:-1]:
        key = part if part != "" else str(len(here))
        below = here.setdefault(key, {})
        if not isinstance(below, dict):
            raise invalid(f"Invalid parameter: {name[:100]} is both a value and a hash", name[:100])
        here = below
    last = parts[-1] if parts[-1] != "" else str(len(here))
    if isinstance(here.get(last), dict):
        raise invalid(f"Invalid parameter: {name[:100]} is both a value and a hash", name[:100])
    here[last] = value


def _listed(value: object) -> object:
    """Turn maps keyed 0..n-1 into lists, from the leaves up."""
    if not isinstance(value, dict):
        return value
    below = {key: _listed(child) for key, child in value.items()}
    if below and all(key.isdigit() for key in below):
        return [below[key] for key in sorted(below, key=int)]
    return below
