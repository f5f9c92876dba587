"""The loop many write first: confluent-kafka, orjson and a dict.

`python -m benchmarks.peers.hand BOOTSTRAP EVENTS_TOPIC USAGE_TOPIC GROUP KEEP DIRECTORY`. Offsets are committed each
second. KEEP is where the counts are by then: `memory` (written to SQLite at the end alone) or `sqlite` (each second,
what has come since, before the commit).
"""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer

from benchmarks.peers.meters import (
    HOUR_MS,
    REPORT_EVERY,
    SESSION_TIMEOUT_MS,
    add_event,
    new_row,
    report_progress,
)

DATABASE = "usage.sqlite"
COMMIT_SECONDS = 1.0

Rows = defaultdict[tuple[str, int], dict[str, Any]]


def merge_rows(kept: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Usage of both; returns `kept`."""
    for meter, quantity in row.items():
        if meter == "slowest_call":
            kept[meter] = max(kept[meter], quantity)
        elif meter == "active_users":
            kept[meter] += [user for user in quantity if user not in kept[meter]]
        else:
            kept[meter] += quantity
    return kept


def save(database: sqlite3.Connection, rows: Rows) -> None:
    """Add what the rows hold to what the database holds, in one transaction, and forget them."""
    with database:
        for (account, window_ms), row in rows.items():
            found = database.execute(
                "SELECT usage FROM usage WHERE account = ? AND window_ms = ?", (account, window_ms)
            ).fetchone()
            if found:
                row = merge_rows(orjson.loads(found[0]), row)
            database.execute(
                "INSERT OR REPLACE INTO usage VALUES (?, ?, ?)", (account, window_ms, orjson.dumps(row))
            )
    rows.clear()


def main() -> None:
    """Count until SIGTERM."""
    bootstrap, topic, _, group, keep, directory = sys.argv[1:]
    database = sqlite3.connect(Path(directory) / DATABASE)
    database.execute(
        "CREATE TABLE IF NOT EXISTS usage (account, window_ms, usage, PRIMARY KEY (account, window_ms))"
    )
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": SESSION_TIMEOUT_MS,
        }
    )
    consumer.subscribe([topic])
    rows: Rows = defaultdict(new_row)
    counted, committed, commit_due = 0, 0, time.monotonic() + COMMIT_SECONDS
    while not ended:
        for message in consumer.consume(REPORT_EVERY, timeout=0.1):
            if message.error():
                raise RuntimeError(message.error())
            event = orjson.loads(message.value())
            add_event(rows[event["account"], event["time_ms"] // HOUR_MS * HOUR_MS], event)
            counted += 1
            report_progress(counted)
        if counted > committed and time.monotonic() >= commit_due:
            if keep == "sqlite":
                save(database, rows)
            consumer.commit(asynchronous=False)
            committed, commit_due = counted, time.monotonic() + COMMIT_SECONDS
    save(database, rows)
    if counted > committed:
        consumer.commit(asynchronous=False)
    consumer.close()


if __name__ == "__main__":
    main()
