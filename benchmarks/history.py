"""A history: what a ledger holds of events that were counted long ago, written as the meter would have left it.

Owns the ids seen and the usage rows, made up. It refuses to know what is measured beside them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psycopg

from benchmarks.backlog import ACCOUNTS, HOUR_MS
from benchmarks.installation import Installation
from tollgate.ledger.retention import IDS_A_ROW
from tollgate.metering.window import epoch_day

DAYS = 8
"""Seven days accepted, and the one under way."""
_HOURS_BEFORE = 24
"""Usage begins so long before now: none of it is in a window the backlog has."""


@dataclass(frozen=True, slots=True)
class History:
    """What was written."""

    ids: int
    usage_rows: int
    seconds: float
    bytes_on_disk: int = 0
    """Of the table of ids, all told."""


def write_history(installation: Installation, ids: int) -> History:
    """About `ids` ids over all partitions and the days they are kept, and ten days of hourly usage of every account."""
    began = time.monotonic()
    url = installation.engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    now_ms = time.time_ns() // 1_000_000
    written = 0
    with psycopg.connect(url, autocommit=True) as connection:
        with (
            connection.cursor() as cursor,
            cursor.copy(
                "COPY seen_ids (partition, day, to_offset, ids, count) FROM STDIN (FORMAT BINARY)"
            ) as copy,
        ):
            copy.set_types(["int4", "int4", "int8", "bytea", "int4"])
            for row in _blobs(ids, installation.ground.partitions, epoch_day(now_ms)):
                copy.write_row(row)
                written += row[-1]
        usage_rows = connection.execute(
            "INSERT INTO usage (partition, meter_id, window_start_ms, account, dimensions, quantity, events, unvalued, "
            "latest_event_ms, order_ms, order_offset, changed_offset) "
            "SELECT n %% %(partitions)s, m.meter_id, %(until)s - h * 3600000::bigint, "
            "'company:acme-' || lpad(n::text, 4, '0'), '', 1, 1, 0, 0, 0, 0, 0 "
            "FROM generate_series(1, 240) h, meters m, generate_series(0, %(last)s) n",
            {
                "partitions": installation.ground.partitions,
                "until": (now_ms // HOUR_MS - _HOURS_BEFORE) * HOUR_MS,
                "last": ACCOUNTS - 1,
            },
        ).rowcount
        connection.execute("VACUUM ANALYZE")
        size = connection.execute("SELECT pg_total_relation_size('seen_ids')").fetchone()
    assert size is not None
    return History(written, usage_rows, time.monotonic() - began, int(size[0]))


def _blobs(ids: int, partitions: int, today: int) -> Iterator[tuple[int, int, int, bytes, int]]:
    """Rows of seen_ids, as compaction leaves them; their offsets lie before the log's first."""
    rng = np.random.default_rng(20261123)
    share = ids // (partitions * DAYS)
    for partition in range(partitions):
        for day in range(today - DAYS + 1, today + 1):
            held = np.unique(rng.integers(0, 2**64, share, dtype=np.uint64)).astype("<u8")
            parts = [held[at : at + IDS_A_ROW] for at in range(0, held.size, IDS_A_ROW)]
            for number, part in enumerate(parts):
                yield partition, day, number - len(parts), part.tobytes(), int(part.size)
