"""What costs much to make and nothing to share: one per interpreter, used by every run one after the other.

Owns the ledger's connection and templates, compiled meters, metrics and settings. It refuses to know a run. Nothing of
it may differ between two runs of one seed.
"""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry

from services.meter.metrics import MeterMetrics
from services.meter.settings import FlushSettings, GroupSettings, MeterSettings, WatchdogSettings
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.settings import (
    AnomalySettings,
    PeriodSettings,
    ReconcileSettings,
    StripeSettings,
    StripeSyncSettings,
    SyncSettings,
)
from services.webhooks.metrics import Metrics as WebhookMetrics
from tests.simulation.ledger import SimulatedLedger
from tests.simulation.metered import PROFILES
from tollgate.ledger.catalogue import apply_meters
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import Pins, initialise
from tollgate.metering.fold import CompiledMeters
from tollgate.metering.meter import MeterSet

LEDGER_ID = "ledger_simulated"
PARTITIONS = 3
ACCEPT_AGE_HOURS = 48
FUTURE_SECONDS = 300
SUMMARY_LAG_SECONDS = 3.0
SESSION_SECONDS = 0.6
LEASE_SECONDS = 0.8
RUNS_A_COLLECTION = 30


class Warm:
    """See the module."""

    def __init__(self) -> None:
        # Collected by `tidy` alone: what is unwound then belongs to no run.
        gc.disable()
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
            cache_logger_on_first_use=True,
        )
        self.ledger = SimulatedLedger({name: _preparer(name) for name in PROFILES})
        self.meter_metrics = MeterMetrics(CollectorRegistry())
        self.sync_metrics = SyncMetrics(CollectorRegistry())
        self.webhook_metrics = WebhookMetrics(CollectorRegistry())
        self.meter_settings = MeterSettings(
            flush=FlushSettings(interval_ms=40, interval_max_ms=80, misses_max=4),
            group=GroupSettings(
                session_timeout_seconds=SESSION_SECONDS, heartbeat_seconds=0.15, commit_interval_seconds=0.3
            ),
            watchdog=WatchdogSettings(lag_interval_seconds=0.5),
            shutdown_seconds=4.0,
        )
        self.sync_settings = StripeSyncSettings(
            stripe=StripeSettings(api_key="sk_test_simulated"),  # type: ignore[arg-type]
            sync=SyncSettings(
                cadence_seconds=0.25,
                summary_lag_seconds=SUMMARY_LAG_SECONDS,
                lease_seconds=LEASE_SECONDS,
                retry_initial_seconds=0.1,
                retry_max_seconds=0.8,
                meter_check_seconds=0.5,
                probe_seconds=0.5,
                calls_per_second=50.0,
            ),
            anomaly=AnomalySettings(enabled=False),
            reconcile=ReconcileSettings(enabled=False),
            periods=PeriodSettings(enabled=False),
        )
        self._compiled: dict[MeterSet, CompiledMeters] = {}
        self._runs = 0

    def tidy(self) -> None:
        """After a run. Collecting costs as much as a few flushes, so runs are collected by the dozen."""
        self._runs += 1
        if self._runs % RUNS_A_COLLECTION == 1:
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    gc.collect()
            finally:
                sys.unraisablehook = hook
            # What is left stays: the next collection need not look at it.
            gc.freeze()

    @property
    def engine(self) -> Engine:
        return self.ledger.engine

    def compiled(self, meters: MeterSet) -> CompiledMeters:
        """Compiled once for each set there ever is."""
        found = self._compiled.get(meters)
        if found is None:
            found = self._compiled[meters] = CompiledMeters.compile(meters)
        return found


def _preparer(profile: str) -> Callable[[Engine], None]:
    def prepare(engine: Engine) -> None:
        pins = Pins(
            kafka_cluster_id="simulated",
            events_topic="gateway.events",
            partitions=PARTITIONS,
            stripe_account="acct_simulated",
            stripe_mode="test",
            id_seed_fingerprint="",
            ledger_id=LEDGER_ID,
            accept_age_hours=ACCEPT_AGE_HOURS,
            future_seconds=FUTURE_SECONDS,
        )
        initialise(engine, pins, PARTITIONS, 0)
        apply_meters(engine, PROFILES[profile], "", 0)

    return prepare
