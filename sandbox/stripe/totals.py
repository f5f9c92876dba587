"""The oracle: what the stand-in holds, summed exactly, for others to compare with.

Owns: totals by customer, event name and hour. Refuses to know: how others counted.
"""

from collections import defaultdict
from decimal import Decimal

from sandbox.stripe.catalog import plain
from sandbox.stripe.errors import JsonObject
from sandbox.stripe.state import State
from sandbox.stripe.usage import Counted, aggregate, effective

_HOUR_SECONDS = 3600


def totals(
    state: State,
    customer: str | None = None,
    event_name: str | None = None,
    start: int | None = None,
    end: int | None = None,
) -> JsonObject:
    """Per customer, event name and UTC hour of the stamp: the meter's formula over the events that count.

    ``quantity`` is exact text; ``events`` is how many events count. Cancelled, rejected and (on meters with an event
    time window) replaced events are left out. ``start`` and ``end`` are seconds, half open.
    """
    clauses, values = _clauses(customer, event_name, start, end)
    meters = {meter["id"]: meter for meter in state.scan("meter")}
    received: dict[tuple[str, str, str], list[Counted]] = defaultdict(list)
    rows = state.connection.execute(
        "SELECT seq, customer, event_name, meter, timestamp, value FROM meter_events "  # noqa: S608
        f"WHERE status = 'accepted'{clauses} ORDER BY seq",
        values,
    )
    for row in rows:
        key = (row["customer"], row["event_name"], row["meter"])
        received[key].append(Counted(row["seq"], row["timestamp"], Decimal(row["value"])))
    data = []
    for (owner, name, meter_id), events in sorted(received.items()):
        hours: dict[int, list[Counted]] = defaultdict(list)
        for event in effective(meters[meter_id], events):
            hours[event.timestamp // _HOUR_SECONDS * _HOUR_SECONDS].append(event)
        for hour, counted in sorted(hours.items()):
            data.append(
                {
                    "customer": owner,
                    "event_name": name,
                    "meter": meter_id,
                    "window_start": hour,
                    "window_end": hour + _HOUR_SECONDS,
                    "quantity": plain(aggregate(meters[meter_id], counted)),
                    "events": len(counted),
                }
            )
    endings = state.connection.execute(
        "SELECT status, error_code, COUNT(*) AS count FROM meter_events WHERE 1 = 1"  # noqa: S608
        f"{clauses} GROUP BY status, error_code ORDER BY status, error_code",
        values,
    )
    return {"totals": data, "events": [dict(row) for row in endings]}


def _clauses(
    customer: str | None, event_name: str | None, start: int | None, end: int | None
) -> tuple[str, list[str | int]]:
    clauses, values = "", list[str | int]()
    for clause, value in (
        ("customer = ?", customer),
        ("event_name = ?", event_name),
        ("timestamp >= ?", start),
        ("timestamp < ?", end),
    ):
        if value is not None:
            clauses += f" AND {clause}"
            values.append(value)
    return clauses, values


def stored_events(
    state: State,
    customer: str | None = None,
    event_name: str | None = None,
    identifier: str | None = None,
    status: str | None = None,
    after: int = 0,
    limit: int = 1000,
) -> list[JsonObject]:
    """Meter events in order of receipt, ``after`` a sequence number, with what became of each."""
    clauses, values = _clauses(customer, event_name, None, None)
    for clause, value in (("identifier = ?", identifier), ("status = ?", status)):
        if value is not None:
            clauses += f" AND {clause}"
            values.append(value)
    rows = state.connection.execute(
        "SELECT seq, identifier, event_name, meter, customer, value, timestamp, received_ms, "  # noqa: S608
        "status, error_code "
        f"FROM meter_events WHERE seq > ?{clauses} ORDER BY seq LIMIT ?",
        [after, *values, limit],
    )
    return [dict(row) for row in rows]
