"""The whole chain: single requests at a given pace through ingest, Kafka and the meter into the ledger.

Owns one row, judged by how old events are when the ledger has them. Nothing is pinned: with two cores and six
processes, whoever pins one of them starves another.
"""

from __future__ import annotations

import time

from benchmarks.ingest_rows import CONNECTIONS
from benchmarks.installation import Ground, Installation
from benchmarks.kong import Singles, make_calls
from benchmarks.load import Load, send_paced
from benchmarks.metrics import quantile
from benchmarks.processor import cpu_seconds, pinned_to
from benchmarks.row import Bound, Measure, Row, assert_counts

PER_SECOND = 10_000
_TEMPLATES = 2_000
_WARM = 2_000
_METRICS_SECONDS = 5.0
_FRESHNESS = "tollgate_meter_freshness_seconds"


def whole_chain(ground: Ground, requests: int) -> Row:
    """Offer 10,000 requests a second, however the answers come."""
    everywhere = ground.cores.both
    calls = make_calls(_TEMPLATES, time.time_ns() // 1_000_000)
    with ground.installation("whole-chain") as installation, pinned_to(everywhere):
        pids = [installation.start(name, everywhere) for name in ("ingest", "meter")]
        singles = Singles(calls, installation.token)
        port = installation.stack.ports["ingest"]
        warming = send_paced(
            port, singles.requests(_WARM), connections=CONNECTIONS, per_second=PER_SECOND / 10
        )
        installation.watch(pids[1], _WARM, timeout_seconds=60)
        old = _freshness_of(installation, _WARM)
        before = [cpu_seconds(pid) for pid in pids]
        load = send_paced(
            port, singles.requests(requests, _WARM), connections=CONNECTIONS, per_second=PER_SECOND
        )
        installation.watch(pids[1], _WARM + requests, timeout_seconds=60)
        spent = [cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
        # The ledger first: it is the truth that the meter's own metrics are then held to.
        _check(installation, [warming, load], singles, _WARM + requests)
        new = _freshness_of(installation, _WARM + requests)
        buckets = [(bound, count - warm) for (bound, count), (_, warm) in zip(new, old, strict=True)]
    return Row(
        name=f"whole chain, {PER_SECOND:,} requests/s offered",
        unit="request",
        count=requests,
        seconds=load.seconds,
        cpu_us=sum(spent) / requests * 1e6,
        bound=Bound(Measure.FRESHNESS, floor=3.0, target=3.0, offered=PER_SECOND),
        bare="",
        bare_us=None,
        freshness_p99_seconds=round(quantile(buckets, 0.99), 3),
        notes={
            "ingest_cpu_us": round(spent[0] / requests * 1e6, 1),
            "meter_cpu_us": round(spent[1] / requests * 1e6, 1),
            "freshness_p50_seconds": round(quantile(buckets, 0.5), 3),
            "share_within_3_seconds": round(dict(buckets)[3.0] / requests, 6),
            "latency_p50_ms": round(load.latency(0.5) * 1000, 1),
            "latency_p99_ms": round(load.latency(0.99) * 1000, 1),
        },
    )


def _freshness_of(installation: Installation, events: int) -> list[tuple[float, float]]:
    """The histogram once it holds `events`, no more and no less: it is moved a moment after the ledger's commit."""
    deadline = time.monotonic() + _METRICS_SECONDS
    while True:
        samples = installation.samples("meter")
        buckets = samples.buckets(_FRESHNESS)
        if int(buckets[-1][1]) >= events or time.monotonic() > deadline:
            what = (
                "events in the freshness histogram ("
                f"events counter {samples.total('tollgate_meter_events_total'):.0f}, "
                f"ledger {installation.outcomes()['received']}, "
                f"records dropped {samples.total('tollgate_meter_dropped_records_total'):.0f}, "
                f"commits missed {samples.total('tollgate_meter_missed_commits_total'):.0f}, "
                f"rebalances {samples.total('tollgate_meter_rebalances_total'):.0f})"
            )
            assert_counts(what, int(buckets[-1][1]), events)
            return buckets
        time.sleep(0.02)


def _check(installation: Installation, loads: list[Load], singles: Singles, requests: int) -> None:
    """Compare the answers and the ledger with what was sent."""
    for load in loads:
        assert_counts("answers by status", dict(load.statuses), {200: load.answered})
    assert_counts("requests answered", sum(load.answered for load in loads), requests)
    assert_counts(
        "outcomes",
        installation.outcomes(),
        {"received": requests, "counted": requests, "unmatched": 0, "duplicate": 0, "late": 0, "dead": 0},
    )
    for meter, expected in (
        ("calls", singles.count_accounts(requests)),
        ("egress_bytes", singles.count_bytes(requests)),
    ):
        found: dict[str, int] = {}
        for (name, account, _), quantity in installation.usage().items():
            if name == meter:
                found[account] = found.get(account, 0) + quantity
        assert_counts(f"{meter} an account", found, {name: n for name, n in expected.items() if n})
