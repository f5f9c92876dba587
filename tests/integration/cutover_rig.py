"""A rig for tests of the cut-over: the real command and real meters, and records as ingest writes them by each count.

Owns producing by account, the command as a process, and the truth. It refuses to know how the ledger is changed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fakes.events import Call
from tests.integration.meter_rig import ROOT, MeterRig
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.events import assign_partition, instance_name


class CutoverRig(MeterRig):
    """Topics, a ledger, meters, and the command line."""

    def __init__(
        self, settings: BrokerSettings, ledger_url: str, directory: Path, partitions: int = 4
    ) -> None:
        super().__init__(settings, ledger_url, directory, partitions)
        self._url = ledger_url

    async def send(
        self, calls: Sequence[Call], partitions: int, *, counts: bool = True, rows: int = 20
    ) -> None:
        """Write `calls` as an ingest that knows `partitions` does. `counts`: whether the truth has them."""
        await self.write(
            calls,
            lambda account: assign_partition(account, partitions),
            rows=rows,
            instance=instance_name(f"ingest-{partitions}", partitions),
            counts=counts,
        )

    async def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of the real command line, with `environment` (bare names below TOLLGATE_)."""
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "services.cli", *arguments],
            cwd=ROOT,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(self.directory),
                "PYTHONDONTWRITEBYTECODE": "1",
                "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
                "TOLLGATE_KAFKA__TOPIC_PREFIX": self.settings.topic_prefix,
                "TOLLGATE_LEDGER__URL": self._url,
                **{f"TOLLGATE_{name}": value for name, value in environment.items()},
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    async def cut_over(self, partitions: int, *more: str, **environment: str) -> tuple[int, str]:
        """Exit code and everything `tollgate cutover` said."""
        wanted = ("--partitions", str(partitions), "--yes", "--quiet-seconds", "0.3", "--wait-seconds", "5")
        done = await self.run("cutover", *wanted, *more, **environment)
        return done.returncode, done.stdout + done.stderr
