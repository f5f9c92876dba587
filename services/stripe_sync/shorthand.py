"""First links of plain windows: what the rules say of the ordinary case, said all at once.

Owns which windows are plain and how their first link is written. It says nothing the rules (`plan.py`) do not say: a
link from here is the very one they give, byte for byte, in a tenth of the time; where that is not certain there is none,
and the rules are asked one by one. It refuses to know SQL and how usage was read.

A window is plain when one account of one customer used it and nothing was posted of it before (who asks has made sure
of that), one open period holds all of it, its metric adds up, its meter takes deltas, and its quantity is neither
doubtful nor more than fits in one value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal

from tollgate.ledger.plan_rows import FirstLink, MeterTerms
from tollgate.ledger.posting_rows import PostingMode
from tollgate.metering.posting import canonical_quantity, first_names


@dataclass(frozen=True, slots=True)
class Limits:
    """What a quantity and its stamp must keep to, for nothing else to be asked."""

    stamp_min_ms: int
    """Stripe takes nothing that is stamped earlier (epoch ms)."""
    digits: Context
    """Rounds to what fits in one value."""
    suspect_from: Decimal | None
    """From here on a quantity is compared with what was used before; None: none is."""


class Shorthand:
    """Writes the first links of one meter's plain windows."""

    def __init__(self, ledger_id: str, terms: MeterTerms, limits: Limits) -> None:
        self.mode = PostingMode.DELTA if terms.send == "live" else PostingMode.DRY_RUN
        self._ledger_id = ledger_id
        self._meter_id = terms.meter_id
        self._window_size_ms = terms.window_size_ms
        self._limits = limits
        self._suspect_from = Decimal("Infinity") if limits.suspect_from is None else limits.suspect_from
        self._event = f'{{"event_name":{json.dumps(terms.event_name)},"identifier":"'
        self._names: dict[int, Callable[[str, Decimal], tuple[str, str]]] = {}

    def first_link(
        self,
        customer_id: str,
        window_start_ms: int,
        latest_event_ms: int,
        quantity: Decimal,
        period_start_ms: int,
        period_end_ms: int,
    ) -> FirstLink | None:
        """The first link of a window with a period that is open, stamped with its latest event; None: ask the rules."""
        window_end_ms = window_start_ms + self._window_size_ms
        if not (
            period_start_ms <= window_start_ms <= latest_event_ms < window_end_ms <= period_end_ms
            and latest_event_ms >= self._limits.stamp_min_ms
            and 0 < quantity < self._suspect_from
            and self._limits.digits.create_decimal(quantity) == quantity
        ):
            return None
        name = self._names.get(window_start_ms)
        if name is None:
            name = self._names[window_start_ms] = first_names(
                self._ledger_id, self._meter_id, window_start_ms
            )
        key, identifier = name(customer_id, quantity)
        timestamp_s = latest_event_ms // 1000
        # As JSON writes it with sorted keys and no spaces: only what comes from outside needs to be escaped.
        return FirstLink(
            key,
            identifier,
            f"{identifier}:0",
            timestamp_s,
            f'{self._event}{identifier}","payload":{{"stripe_customer_id":{json.dumps(customer_id)},'
            f'"value":"{canonical_quantity(quantity)}"}},"timestamp":{timestamp_s}}}',
        )
