"""The ten meters of `benchmarks/meters.yaml`, one event after the other, as anybody would write them by hand.

Owns one row: the usage of one account in one hour. The Python peers share it. It refuses to know where rows are kept;
everything in a row is JSON, since Quix and Faust keep it as that.
"""

from __future__ import annotations

from typing import Any

HOUR_MS = 3_600_000
GRACE_MS = 120_000
"""How long after its end a window takes events: events of a partition are out of order by a minute at most."""
REPORT_EVERY = 1_000
"""Events between two lines of progress; a log is a multiple of it."""
SESSION_TIMEOUT_MS = 6_000
"""How soon a killed member's partitions are given away: with the peers' own 45 to 60 seconds nobody would wait."""


def new_row() -> dict[str, Any]:
    """Usage of nothing."""
    return {
        "calls": 0,
        "billable_calls": 0,
        "chat_calls": 0,
        "writes": 0,
        "failures": 0,
        "egress_bytes": 0,
        "ingress_bytes": 0,
        "chat_tokens": 0,
        "slowest_call": 0,
        "active_users": [],
    }


def add_event(row: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """Count one event into `row`; returns `row`."""
    status = event["status"]
    row["calls"] += 1
    row["egress_bytes"] += event["response_bytes"]
    if status < 500:
        row["ingress_bytes"] += event["request_bytes"]
        row["slowest_call"] = max(row["slowest_call"], event["latency_ms"])
        if event["blocked_by"] is None:
            row["billable_calls"] += 1
    else:
        row["failures"] += 1
    if event["route"] == "chat" and status < 400:
        row["chat_calls"] += 1
        properties = event["properties"]
        row["chat_tokens"] += int(properties["tokens_in"]) + int(properties["tokens_out"])
    if event["method"] in ("POST", "PUT"):
        row["writes"] += 1
    # Four users an account: a list is as quick as a set, and JSON.
    if event["user"] is not None and event["user"] not in row["active_users"]:
        row["active_users"].append(event["user"])
    return row


def report_progress(counted: int) -> None:
    """One line of progress each `REPORT_EVERY` events of this process."""
    if counted % REPORT_EVERY == 0:
        print(f"counted {counted}", flush=True)
