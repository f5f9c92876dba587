"""Tollgate's own meter on the same events: Arrow records of 500, a ledger in PostgreSQL, duplicates left in.

Owns its three runs. It refuses to know the peers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.backlog import Truth
from benchmarks.installation import Ground, Installation
from benchmarks.log_reading import write_log
from benchmarks.peers.contender import Count, KilledCount
from benchmarks.peers.events import Span
from benchmarks.peers.meters import SESSION_TIMEOUT_MS
from benchmarks.peers.outcome import compare_usage
from benchmarks.peers.watching import Meanwhile, begin_watch, ended_cpu_seconds
from benchmarks.row import assert_counts

_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class OwnMeter:
    """`services/meter`, as it is."""

    ground: Ground
    meanwhile: Meanwhile | None
    name: str = "Tollgate's meter"
    mode: str = "exact"

    def count(self, span: Span) -> Count:
        """Start on the filled topic, count everything, SIGTERM. Raises CountsDiffer, NotCaughtUp."""
        with _filled(self.ground, "peers", span) as (installation, truth):
            before, elsewhere = ended_cpu_seconds(), begin_watch(self.meanwhile)
            pid = installation.start("meter", self.ground.cores.measured, wait=False)
            sights = installation.watch(pid, truth.events, timeout_seconds=_TIMEOUT_SECONDS)
            installation.stop("meter")
            cpu = ended_cpu_seconds() - before
            elsewhere_cpu = elsewhere()
            miscount = compare_usage(installation.usage(), truth.usage)
            assert_counts(
                "Tollgate's meter, events received", installation.outcomes()["received"], truth.events
            )
            assert_counts("Tollgate's meter, totals", str(miscount), "exact")
            return Count(truth.events, sights, cpu, elsewhere_cpu, miscount)

    def count_killed(self, span: Span) -> KilledCount:
        """SIGKILL at the first commit past half, start again. Raises CountsDiffer when anything is off: that is the promise."""
        with _filled(self.ground, "peers-kill", span) as (installation, truth):
            pid = installation.start("meter", self.ground.cores.measured, wait=False)
            sights = installation.watch(pid, truth.events // 2, timeout_seconds=_TIMEOUT_SECONDS)
            installation.stack.kill("meter")
            pid = installation.start("meter", self.ground.cores.measured, wait=False)
            installation.watch(pid, truth.events, timeout_seconds=_TIMEOUT_SECONDS)
            # What a second counting would add, it would add now.
            time.sleep(2)
            installation.stop("meter")
            miscount = compare_usage(installation.usage(), truth.usage)
            assert_counts("Tollgate's meter after a kill", str(miscount), "exact")
            assert_counts("Tollgate's meter after a kill", installation.outcomes()["received"], truth.events)
            return KilledCount(truth.events, sights[-1].received, miscount)


@contextmanager
def _filled(ground: Ground, name: str, span: Span) -> Iterator[tuple[Installation, Truth]]:
    """An installation with the span in its topic, no meter started, and what it must come to."""
    with ground.installation(name) as installation:
        backlog = span.backlog(installation.id_seed)
        write_log(installation.kafka, backlog.records())
        _configure(installation)
        yield installation, backlog.truth()


def _configure(installation: Installation) -> None:
    """The peers' session timeout: a killed member is given up as soon as one of theirs."""
    installation.stack.configure(
        "meter",
        TOLLGATE_GROUP__SESSION_TIMEOUT_SECONDS=str(SESSION_TIMEOUT_MS / 1000),
        TOLLGATE_GROUP__HEARTBEAT_SECONDS=str(SESSION_TIMEOUT_MS / 4000),
    )
