"""One broker as a process: formatting its directory, starting, signalling and reaping the Java that runs it.

Owns the command lines. It refuses to know what stands in its properties (`local_kafka`, `kafka_cluster`) and where the
jars come from (`kafka_jars`).
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from sandbox.child import Child, PartFailed
from sandbox.kafka_jars import RECIPE_DIR, fetch_jars, find_java

HEAP_MIB = 384
START_SECONDS = 90.0

_FORMAT_HEAP_MIB = 128
_STARTED = "Kafka Server started"
_STOP_SECONDS = 30.0


class KafkaProcess:
    """A broker of `data_dir`, which exists. Not thread-safe; ended at the interpreter's exit at the latest."""

    def __init__(
        self,
        name: str,
        data_dir: Path,
        *,
        heap_mib: int = HEAP_MIB,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = dict(os.environ if environment is None else environment)
        self._heap_mib = heap_mib
        self.data_dir = data_dir
        self.properties = data_dir / "server.properties"
        self.child = Child(name, data_dir / "kafka.log")
        self._java: str | None = None
        self._libs: Path | None = None

    def prepare(self) -> None:
        """Find Java and have the jars. Raises PartUnavailable, saying what to install."""
        if self._java is None:
            self._java = find_java(self._environment)
        if self._libs is None:
            self._libs = fetch_jars(self._environment)

    def format(self, properties: str, cluster: str, *options: str) -> None:
        """Write the properties and make the log directory they name. Raises PartFailed, nothing left behind."""
        self.properties.write_text(properties)
        arguments = ("format", "-t", cluster, "-c", str(self.properties), "--ignore-formatted", *options)
        done = subprocess.run(
            self._command("kafka.tools.StorageTool", *arguments, heap_mib=_FORMAT_HEAP_MIB),
            cwd=self.data_dir,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.properties.unlink()
            raise PartFailed(f"Kafka could not format {self.data_dir}\n{done.stdout}{done.stderr}")

    def launch(self) -> None:
        """Start it, formatted before, and return at once. Raises PartFailed when it runs already."""
        self.child.start(
            self._command("kafka.Kafka", str(self.properties), heap_mib=self._heap_mib), cwd=self.data_dir
        )

    def says_started(self) -> bool:
        """Whether it has reported, since its latest start, that it serves."""
        return _STARTED in self.child.output()

    def stop(self) -> None:
        """SIGTERM: the broker ends in good order, data kept."""
        self.child.stop(signal.SIGTERM, _STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL: what the operating system has of the log is what is left."""
        self.child.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self.child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.child.send(signal.SIGCONT)

    def _command(self, *arguments: str, heap_mib: int) -> list[str]:
        assert self._java is not None, "prepare() comes first"
        assert self._libs is not None
        return [
            self._java,
            f"-Xmx{heap_mib}m",
            # One core, short life: the small collector and the quick compiler start twice as fast.
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={RECIPE_DIR / 'log4j2.xml'}",
            "-cp",
            f"{self._libs}/*",
            *arguments,
        ]


def new_cluster_id() -> str:
    """A cluster id nobody has."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
