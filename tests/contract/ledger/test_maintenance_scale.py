"""Maintenance of tables that have grown large: in small transactions, beside a live meter, with the law before and after.

The rows are made by the server. `nightly` runs it over ten million usage rows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, func, select, text

from tests.contract.ledger.folds import Delta, make_fold, part, prints
from tests.contract.ledger.kept_world import END, LATER, START
from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.engine import ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.errors import LedgerUnavailable
from tollgate.ledger.maintenance import BATCH_ROWS, Progressed, maintain
from tollgate.ledger.progress import commit_fold, load_progress
from tollgate.ledger.retention import Retention
from tollgate.ledger.retired import load_retired
from tollgate.ledger.tables import (
    attributions,
    catalogue_state,
    item_periods,
    postings,
    reconciliations,
    usage,
)
from tollgate.ledger.verify import verify_ledger

pytestmark = pytest.mark.postgres

PARTITIONS = 4
DIMENSIONS = 10

_DRIFTS = 50
"""Every so manieth customer's period drifts, and stays."""


@dataclass(frozen=True)
class Past:
    """So many customers with so many windows each of ten sets of dimensions, every window a chain of one posting."""

    customers: int
    windows: int

    @property
    def rows(self) -> int:
        return self.customers * self.windows * DIMENSIONS


def _make(engine: Engine, past: Past) -> None:
    """All of it in the server. A window's ten rows count one to ten: fifty-five in all."""
    values = {
        "customers": past.customers,
        "windows": past.windows,
        "partitions": PARTITIONS,
        "dimensions": DIMENSIONS,
        "hour": HOUR_MS,
        "t0": T0,
        "start": START,
        "end": END,
        "drifts": _DRIFTS,
    }
    slots = "generate_series(1, :customers) AS c, generate_series(0, :windows - 1) AS w"
    statements = [
        f"""INSERT INTO usage SELECT c % :partitions, 1, :t0 + w * :hour, 'user:' || c, '{{"d":' || d || '}}', d, 1, 0,
            :t0 + w * :hour + 1000, 0, 0, 1 FROM {slots}, generate_series(1, :dimensions) AS d""",
        f"""INSERT INTO attributions SELECT 1, :t0 + w * :hour, 'user:' || c, 'cus_' || c, md5(c || '/' || w)
            FROM {slots}""",
        f"""INSERT INTO postings SELECT md5(c || '/' || w), 1, 'cus_' || c, 1, :t0 + w * :hour, 0, 55, 'delta',
            'id_' || c || '_' || w, 'key_' || c || '_' || w, (:t0 + w * :hour) / 1000 + 1,
            '{{"event_name":"calls","payload":{{"stripe_customer_id":"cus_' || c || '","value":"55"}}}}', 'delivered', 1,
            :t0, :t0, NULL, :t0, 'req_1', NULL, :t0, '{{}}', 1, NULL FROM {slots}""",
        """INSERT INTO reconciliations SELECT 'cus_' || c, 'calls', :start, :end, 55 * :windows, 55 * :windows, NULL,
            '0', 'in_' || c, 'paid', CASE WHEN c % :drifts = 0 THEN 'drift' ELSE 'agrees' END, '0', '[]', :end, NULL,
            NULL, NULL, NULL FROM generate_series(1, :customers) AS c""",
        """INSERT INTO item_periods SELECT 'si_' || c, :start, :end, 'sub_' || c, 'cus_' || c, 'price', 'calls',
            'closed', 1 FROM generate_series(1, :customers) AS c""",
        """INSERT INTO progress_totals SELECT c % :partitions, 1, 55 * :windows * count(*),
            :dimensions * :windows * count(*), 0 FROM generate_series(1, :customers) AS c GROUP BY 1""",
        """UPDATE progress SET next_offset = 1, received = events, counted = events FROM progress_totals
            WHERE progress.partition = progress_totals.partition""",
        "INSERT INTO plan_cursors SELECT partition, 1 FROM progress",
        "INSERT INTO controls VALUES ('send:1', 'on', 0)",
    ]
    for statement in statements:
        with ledger_transaction(engine) as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            names = [name for name in values if f":{name}" in statement]
            connection.execute(text(statement), {name: values[name] for name in names})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    made = World.make(postgres_url, partitions=PARTITIONS)
    made.meter()
    made.engine.dispose()
    opened = open_ledger(postgres_url, statement_timeout_ms=0)
    yield opened
    opened.dispose()


class _LiveMeter:
    """Flushes a hundred rows of today's windows at a time, and how long each took."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.took_seconds: list[float] = []
        self.errors: list[BaseException] = []

    def __enter__(self) -> _LiveMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        engine = open_ledger(self._url)
        try:
            with read_snapshot(engine) as connection:
                version = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
            number = 0
            while not self._over.is_set():
                at = load_progress(engine, [0])[0].next_offset
                start_ms = LATER - LATER % HOUR_MS + number // 20 * HOUR_MS
                deltas = [
                    Delta(window_start_ms=start_ms, account=f"user:{n}", latest_event_ms=start_ms + 1)
                    for n in range(100)
                ]
                fold = make_fold([part(0, at, at + 1, counted=100)], deltas)
                began = time.perf_counter()
                try:
                    assert not commit_fold(engine, fold, prints(fold), version, 0)
                except LedgerUnavailable:
                    continue
                self.took_seconds.append(time.perf_counter() - began)
                number += 1
                self._over.wait(0.02)
        except BaseException as error:
            self.errors.append(error)
        finally:
            engine.dispose()


@pytest.mark.parametrize(
    "past",
    [
        pytest.param(Past(200, 100), id="200,000", marks=pytest.mark.slow),
        pytest.param(
            Past(2_000, 500), id="10,000,000", marks=[pytest.mark.nightly, pytest.mark.timeout(3_600)]
        ),
    ],
)
def test_large_tables_become_small_in_small_steps(engine: Engine, past: Past) -> None:
    """All but the drifting periods goes; no transaction removes much more than a batch; nothing a live meter counts
    meanwhile is lost, and it never waits long; the law holds before, halfway and after."""
    began = time.perf_counter()
    _make(engine, past)
    made = time.perf_counter()
    assert verify_ledger(engine) == []
    verified = time.perf_counter()
    batches: list[int] = []
    steps: dict[str, float] = {}
    last = [time.perf_counter()]

    def note(progressed: Progressed) -> None:
        now = time.perf_counter()
        steps[progressed.step] = steps.get(progressed.step, 0.0) + now - last[0]
        last[0] = now
        batches.append(sum(progressed.rows.values()))

    # On a password-less server of the test's own the URL is whole.
    url = engine.url.render_as_string(hide_password=False)
    with _LiveMeter(url) as live:
        removing = time.perf_counter()
        transactions = past.rows // BATCH_ROWS // 2
        asked = iter(range(10**9))
        half = maintain(
            engine, Retention(), LATER, out_of_time=lambda: next(asked) > transactions, on_progress=note
        )
        paused = time.perf_counter()
        assert half.out_of_time
        assert verify_ledger(engine) == []
        resumed = last[0] = time.perf_counter()
        rest = maintain(engine, Retention(), LATER, on_progress=note)
        removed_seconds = time.perf_counter() - resumed + paused - removing
    assert live.errors == []
    assert rest.finished
    assert rest.waiting_periods == past.customers // _DRIFTS

    stay = past.customers // _DRIFTS
    gone = past.customers - stay
    removed = half.removed + rest.removed
    assert removed["usage"] == gone * past.windows * DIMENSIONS
    assert removed["postings"] == removed["attributions"] == gone * past.windows
    assert removed["item_periods"] == half.retired_periods + rest.retired_periods == gone
    assert max(batches) <= 2 * BATCH_ROWS
    assert sum(each.quantity for each in load_retired(engine).values()) == 55 * gone * past.windows
    left = _counts(engine)
    assert left["postings"] == left["attributions"] == stay * past.windows
    assert left["reconciliations"] == past.customers
    assert left["item_periods"] == stay
    flushed = 100 * len(live.took_seconds)
    assert flushed > 0
    with read_snapshot(engine) as connection:
        fresh = select(func.sum(usage.c.events)).where(usage.c.window_start_ms >= LATER - HOUR_MS)
        assert connection.execute(fresh).scalar_one() == flushed
    assert max(live.took_seconds) < 5
    assert verify_ledger(engine) == []

    took = sorted(live.took_seconds)
    print(  # noqa: T201
        f"\n{past.rows:,} usage rows: made {made - began:.0f} s, verified {verified - made:.0f} s, "
        f"removed {removed.total():,} rows in {removed_seconds:.0f} s "
        f"({removed.total() / removed_seconds:,.0f} rows/s), {len(batches):,} transactions; "
        f"{len(took):,} flushes meanwhile, median {took[len(took) // 2] * 1000:.0f} ms, "
        f"99th {took[int(len(took) * 0.99)] * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms"
    )
    for step, seconds in steps.items():
        if seconds > 1:
            print(f"  {step}: {seconds:.1f} s")  # noqa: T201


def _counts(engine: Engine) -> dict[str, int]:
    with read_snapshot(engine) as connection:
        return {
            table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
            for table in (postings, attributions, reconciliations, item_periods)
        }
