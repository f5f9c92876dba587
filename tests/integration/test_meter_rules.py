"""How old an event may be is the ledger's to say: to the meter and to a recount."""

from __future__ import annotations

from pathlib import Path

from services.cli.refold import compare_recount
from services.cli.settings import CliSettings
from services.cli.verify import Findings
from tests.fakes.events import TIME_MS, Call
from tests.integration.meter_rig import MeterRig
from tests.parts.kafka import BrokerSettings

_HOUR_MS = 3_600_000


async def test_meter_and_recount_judge_by_the_ledgers_rules(
    broker_settings: BrokerSettings, ledger_url: str, tmp_path: Path
) -> None:
    """An hour and not a second: what the environment of either says about it changes nothing."""
    rig = await MeterRig(broker_settings, ledger_url, tmp_path).prepare(accept_age_hours=1, future_seconds=0)
    try:
        worker = rig.worker().start(RULES__ACCEPT_AGE_HOURS="72", RULES__FUTURE_SECONDS="300")
        await rig.produce(
            [
                Call("now"),
                Call("an hour ago", time_ms=TIME_MS - _HOUR_MS),
                Call("more than an hour ago", time_ms=TIME_MS - _HOUR_MS - 1),
                Call("ahead", time_ms=TIME_MS + 1),
            ]
        )
        await rig.until_all_folded()
        assert worker.stop() == 0
        ended = rig.progress().values()
        assert (sum(each.counted for each in ended), sum(each.late for each in ended)) == (2, 1)
        assert sum(each.dead for each in ended) == 1
        findings = Findings()
        settings = CliSettings(kafka=broker_settings)
        assert settings.rules.accept_age_hours == 72
        await compare_recount(settings, rig.engine, findings)
        assert (findings.violations, findings.unproven) == ([], [])
    finally:
        rig.close()
