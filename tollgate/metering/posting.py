"""Postings' names, and how quantities combine on the way to one.

Owns the identity of a posting chain and the combination table. It refuses to know Stripe's API, the planning of
postings and where they are stored.

| metric        | within a window               | windows over a period | accounts of one customer |
|---------------|-------------------------------|-----------------------|--------------------------|
| count, sum    | add                           | add                   | add                      |
| max, min      | max, min                      | max, min              | max, min                 |
| latest        | by (time, partition, offset)  | the last              | the last                 |
| unique        | set of value hashes           | distinct of the union | distinct of the union    |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from decimal import Context, Decimal

from tollgate.metering.metric import MetricKind

_KEY_BYTES = 16
"""32 hex characters: no two chains of one ledger ever meet by chance."""

_IDENTIFIER_BYTES = 20

_EXACT = Context(prec=60)
"""Enough for every sum of Decimal(38, 9): the default of 28 digits rounds in silence."""


def posting_key(ledger_id: str, customer: str, meter_id: int, window_start_ms: int) -> str:
    """The chain all postings of one (customer, meter, window) belong to: 32 hex characters."""
    return _digest(_KEY_BYTES, ledger_id, customer, str(meter_id), str(window_start_ms))


def posting_identifier(
    posting_key: str, seq: int, quantity_from: Decimal, quantity_to: Decimal, ledger_id: str
) -> str:
    """What makes a posting the same posting at Stripe: equal for equal arguments, 49 characters of `tg_` and hex.

    Equal quantities give equal identifiers however they are written (1, 1.0, 1E0).
    """
    digest = _digest(
        _IDENTIFIER_BYTES,
        posting_key,
        str(seq),
        canonical_quantity(quantity_from),
        canonical_quantity(quantity_to),
        ledger_id,
    )
    return f"tg_{seq:x}_{digest}"


def first_names(
    ledger_id: str, meter_id: int, window_start_ms: int
) -> Callable[[str, Decimal], tuple[str, str]]:
    """What names the first link of a customer's chain, from nothing to a quantity: its key and its identifier.

    The same names as `posting_key` and `posting_identifier` give, for a third of the work: what all customers' names
    of one meter and window share is framed once.
    """
    ledger = _framed(ledger_id.encode())
    window = _framed(str(meter_id).encode()) + _framed(str(window_start_ms).encode())
    first_from_nothing = _framed(b"1") + _framed(b"0")

    def name(customer: str, quantity: Decimal) -> tuple[str, str]:
        key = _hashed(_KEY_BYTES, ledger + _framed(customer.encode()) + window)
        to = _framed(canonical_quantity(quantity).encode())
        digest = _hashed(_IDENTIFIER_BYTES, _framed(key.encode()) + first_from_nothing + to + ledger)
        return key, f"tg_1_{digest}"

    return name


def combine_accounts(kind: MetricKind, quantities: Sequence[Decimal]) -> Decimal:
    """One customer's quantity from several accounts', or one account's from several dimensions'.

    `latest` takes the last: give them in order of (time, partition, offset). `unique` adds up, which is exact for one
    account and an upper bound for several: the exact number is `combine_distinct` of their values. Zero for nothing.
    """
    if not quantities:
        return Decimal(0)
    if kind is MetricKind.MAX:
        return max(quantities)
    if kind is MetricKind.MIN:
        return min(quantities)
    if kind is MetricKind.LATEST:
        return quantities[-1]
    return _add(quantities)


def combine_windows(kind: MetricKind, quantities: Sequence[Decimal]) -> Decimal:
    """A period's quantity from its windows', oldest first. Zero for nothing.

    Raises ValueError for several windows of `unique`: a value in two windows counts once, see `combine_distinct`.
    """
    if kind is MetricKind.UNIQUE and len(quantities) > 1:
        raise ValueError("unique values of several windows combine as sets, not as numbers")
    return combine_accounts(kind, quantities)


def combine_distinct(value_hashes: Iterable[Iterable[int]]) -> Decimal:
    """How many different values several windows or accounts have together."""
    return Decimal(len(set().union(*value_hashes)))


def _add(quantities: Iterable[Decimal]) -> Decimal:
    total = Decimal(0)
    for quantity in quantities:
        total = _EXACT.add(total, quantity)
    return total


def canonical_quantity(quantity: Decimal) -> str:
    """The one text of a quantity, however it is written: no exponent, no trailing zeros."""
    text = f"{quantity:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _digest(size_bytes: int, *parts: str) -> str:
    return _hashed(size_bytes, b"".join([_framed(part.encode()) for part in parts]))


def _framed(part: bytes) -> bytes:
    # Lengths in front: no two lists of parts spell the same bytes.
    return len(part).to_bytes(4, "big") + part


def _hashed(size_bytes: int, framed: bytes) -> str:
    return hashlib.blake2b(framed, digest_size=size_bytes).hexdigest()
