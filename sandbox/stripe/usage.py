"""Summing up meter events.

Owns: which events count (windows, order of receipt, cancellations) and a meter's formula over them, in exact
decimals. Refuses to know: where events come from and what is charged for them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

from sandbox.stripe.errors import JsonObject, invalid, no_such_reference
from sandbox.stripe.meters import find_meter
from sandbox.stripe.settings import meter_settings
from sandbox.stripe.turns import Call, Turn, page

WINDOW_SECONDS = {"hour": 3600, "day": 86_400}
_PRECISION = 60  # sums of 15-digit values stay exact far past any number of events a file can hold


@dataclass(frozen=True, slots=True)
class Counted:
    """One event that counts: its number in order of receipt, its timestamp (seconds) and its value."""

    seq: int
    timestamp: int
    value: Decimal


def counted_events(
    turn: Turn,
    meter: JsonObject,
    customer_id: str,
    start: int,
    end: int,
    received_until_ms: int | None = None,
) -> list[Counted]:
    """The events stamped in ``[start, end)`` seconds that count, in order of receipt.

    On a meter with an event time window only the one received last in each window counts; the window is judged
    over the events of the span asked for, so a span that cuts a window sees only its own part.
    """
    rows = turn.state.connection.execute(
        "SELECT seq, timestamp, value FROM meter_events WHERE meter = ? AND customer = ? AND timestamp >= ? "
        "AND timestamp < ? AND status = 'accepted' AND received_ms <= ? ORDER BY seq",
        (meter["id"], customer_id, start, end, 2**62 if received_until_ms is None else received_until_ms),
    )
    return effective(meter, (Counted(row[0], row[1], Decimal(row[2])) for row in rows))


def effective(meter: JsonObject, events: Iterable[Counted]) -> list[Counted]:
    """Apply the meter's event time window to events in order of receipt."""
    window = meter["event_time_window"]
    if window is None:
        return list(events)
    last: dict[int, Counted] = {}
    for event in events:
        last[event.timestamp // WINDOW_SECONDS[window]] = event
    return sorted(last.values(), key=lambda event: event.seq)


def aggregate(meter: JsonObject, events: Iterable[Counted]) -> Decimal:
    """The meter's formula over counted events; zero over none. ``last`` is by timestamp, then by receipt."""
    formula = meter["default_aggregation"]["formula"]
    counted = list(events)
    if formula == "count":
        return Decimal(len(counted))
    if formula == "last":
        latest = max(counted, key=lambda event: (event.timestamp, event.seq), default=None)
        return Decimal(0) if latest is None else latest.value
    with localcontext(Context(prec=_PRECISION)):
        return sum((event.value for event in counted), Decimal(0))


def quantity(turn: Turn, meter: JsonObject, customer_id: str, start: int, end: int) -> Decimal:
    """A customer's usage of a meter stamped in ``[start, end)``, as known now."""
    return aggregate(meter, counted_events(turn, meter, customer_id, start, end))


def list_summaries(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/billing/meters/{id}/event_summaries``: floats, newest window first, as late as the lag knob says.

    Without grouping there is always one summary; with it, windows without events are left out.
    """
    params = call.params
    customer_id = params.required_text("customer")
    grouping = params.choice("value_grouping_window", ("hour", "day"))
    start, end = _aligned(params.integer("start_time"), params.integer("end_time"), grouping)
    limit = params.integer("limit", 1, 100) or 10
    after, before = params.text("starting_after"), params.text("ending_before")
    params.finish()
    meter = find_meter(turn, call.ids[0])
    if turn.state.find("customer", customer_id) is None:
        raise no_such_reference("customer", customer_id, "customer")
    received_until_ms = turn.now_ms - 1000 * meter_settings(turn.state).summary_lag_seconds
    events = counted_events(turn, meter, customer_id, start, end, received_until_ms)
    spans: dict[tuple[int, int], list[Counted]] = {} if grouping else {(start, end): events}
    if grouping:
        size = WINDOW_SECONDS[grouping]
        for event in events:
            begin = event.timestamp // size * size
            spans.setdefault((begin, begin + size), []).append(event)
    data = [
        {
            # An id that says what it is, so that it can serve as a cursor without being stored.
            "id": f"mtrusg_test_{customer_id}_{begin}_{finish}",
            "object": "billing.meter_event_summary",
            "aggregated_value": float(aggregate(meter, spans[begin, finish])),
            "end_time": finish,
            "livemode": False,
            "meter": meter["id"],
            "start_time": begin,
        }
        for begin, finish in sorted(spans, reverse=True)
    ]
    ids = [summary["id"] for summary in data]
    if after in ids:
        data = data[ids.index(after) + 1 :]
    elif before in ids:
        data = data[: ids.index(before)][-limit:]
    return page(call, data[:limit], len(data) > limit)


def _aligned(start: int | None, end: int | None, grouping: str | None) -> tuple[int, int]:
    """Check the bounds: minutes without grouping, else hours or UTC midnights."""
    if start is None or end is None:
        raise invalid(
            "Missing required param: " + ("start_time." if start is None else "end_time."),
            "start_time" if start is None else "end_time",
            "parameter_missing",
        )
    unit = 60 if grouping is None else WINDOW_SECONDS[grouping]
    word = {60: "minute", 3600: "hour", 86_400: "UTC day"}[unit]
    for name, value in (("start_time", start), ("end_time", end)):
        if value % unit:
            raise invalid(f"{name} must be aligned with {word} boundaries.", name)
    if end <= start:
        raise invalid("end_time must be after start_time.", "end_time")
    return start, end
