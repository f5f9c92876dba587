"""What ought to come out: the totals of the repository's `meters.yaml`, counted by hand from a history file.

Owns a second, deliberately naive telling of the five meters, in plain Python over dicts. It shares no code with the
meter: that is its worth. It refuses to read the ledger.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sandbox.traffic.calls import DAY_MS, HOUR_MS, MINUTE_MS, Call, Kind
from sandbox.traffic.history import Sent

Key = tuple[str, str, int]
"""(meter, account, window start in epoch milliseconds)."""


@dataclass(slots=True)
class Truth:
    """Totals and outcomes a history amounts to."""

    usage: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    by_customer: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    """(meter, customer, window start) for the meters that are posted."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """received, counted, unmatched, duplicate, late, dead (the meter's), rejected (ingest's)."""


POSTED = frozenset({"api_calls", "chat_tokens", "egress_bytes"})


def tell_truth(history: Iterable[Sent]) -> Truth:
    """The totals and outcomes of everything accepted in `history`."""
    truth = Truth()
    seen: set[str] = set()
    addresses: dict[Key, set[str]] = defaultdict(set)
    for sent in history:
        call = sent.call
        if call.kind is Kind.MALFORMED:
            truth.outcomes["rejected"] += 1
            continue
        truth.outcomes["received"] += 1
        if call.kind is Kind.FUTURE:
            truth.outcomes["dead"] += 1
        elif call.kind is Kind.LATE:
            truth.outcomes["late"] += 1
        elif call.id in seen:
            truth.outcomes["duplicate"] += 1
        else:
            seen.add(call.id)
            # Every address counts for daily_addresses, so no call goes unmatched.
            truth.outcomes["counted"] += 1
            _count(truth, addresses, call)
    for key, values in addresses.items():
        truth.usage[key] = len(values)
    return truth


def _count(truth: Truth, addresses: dict[Key, set[str]], call: Call) -> None:
    account, customer = call.identity.account, call.identity.customer
    hour = call.time_ms // HOUR_MS * HOUR_MS
    sums: dict[str, int] = {"egress_bytes": call.response_bytes}
    if call.status < 500 and not call.answered_by_gateway:
        sums["api_calls"] = 1
        if call.route == "chat" and call.tokens_in is not None and call.tokens_out is not None:
            sums["chat_tokens"] = call.tokens_in + call.tokens_out
    for meter, quantity in sums.items():
        truth.usage[meter, account, hour] += quantity
        truth.by_customer[meter, customer, hour] += quantity
    addresses["daily_addresses", account, call.time_ms // DAY_MS * DAY_MS].add(call.client_ip)
    if call.status < 500:
        minute = ("slowest_call", account, call.time_ms // MINUTE_MS * MINUTE_MS)
        truth.usage[minute] = max(truth.usage[minute], call.latency_ms)
