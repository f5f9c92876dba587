"""Local Kafka: a real Apache Kafka broker on this machine, without a container.

Owns a data directory and the broker's address. It refuses to know how a broker's process is run
(`sandbox.kafka_process`) and what topics there are. `python -m sandbox.local_kafka` keeps one running in the foreground.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import string
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.child import PartFailed, PartUnavailable
from sandbox.kafka_jars import KAFKA_VERSION, RECIPE_DIR, fetch_jars, find_java
from sandbox.kafka_process import START_SECONDS, KafkaProcess, new_cluster_id
from sandbox.ports import LOOPBACK, answers, free_ports

_START_ATTEMPTS = 3


class LocalKafka:
    """One broker and controller (KRaft). A context manager: started inside, stopped outside.

    `data_dir` keeps its logs over restarts, and over runs when given; a temporary one is removed at the end.
    Ports are free ones unless given, and stay the same over restarts.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._own_dir = data_dir is None
        self.data_dir = (data_dir or Path(tempfile.mkdtemp(prefix="tollgate-kafka-"))).resolve()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._wanted_port = port
        self._process = KafkaProcess("Kafka", self.data_dir, environment=environment)
        self._port: int | None = None
        if self._process.properties.exists():
            self._port = _listening_port(self._process.properties.read_text())

    @property
    def bootstrap(self) -> str:
        """The address for `bootstrap_servers`. Raises PartFailed before the first start."""
        if self._port is None:
            raise PartFailed("Kafka was not started yet")
        return f"{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        return self._process.child.pid

    @property
    def running(self) -> bool:
        return self._process.child.running

    @property
    def log_path(self) -> Path:
        return self._process.child.log_path

    def prepare(self) -> None:
        """Find Java and have the jars. Raises PartUnavailable, saying what to install."""
        self._process.prepare()

    def start(self) -> None:
        """Format the data directory if it is new, start the broker and wait until it serves.

        Raises PartUnavailable or PartFailed.
        """
        self.prepare()
        for attempt in range(_START_ATTEMPTS):
            fresh = not self._process.properties.exists()
            try:
                if fresh:
                    self._format()
                self._process.launch()
                self._process.child.wait_until(self._serves, START_SECONDS)
                return
            except PartFailed:
                # Ports are part of what is formatted; another process may have taken one since it was found free.
                if not fresh or self._wanted_port is not None or attempt == _START_ATTEMPTS - 1:
                    raise
                self._process.properties.unlink(missing_ok=True)
                shutil.rmtree(self.data_dir / "logs", ignore_errors=True)

    def stop(self) -> None:
        """SIGTERM: the broker ends in good order, data kept."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL: what the operating system has of the log is what is left."""
        self._process.kill()

    def restart(self) -> None:
        """Stop (if running) and start again: same address, same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self._process.resume()

    def close(self) -> None:
        """Stop, and remove a temporary data directory."""
        self.stop()
        if self._own_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serves(self) -> bool:
        return self._port is not None and self._process.says_started() and answers(self._port)

    def _format(self) -> None:
        port, controller_port = free_ports(2)
        self._port = self._wanted_port or port
        template = string.Template((RECIPE_DIR / "server.properties").read_text())
        self._process.format(
            template.substitute(
                port=self._port, controller_port=controller_port, log_dir=self.data_dir / "logs"
            ),
            new_cluster_id(),
            "--standalone",
        )


def _listening_port(properties: str) -> int | None:
    listener = re.search(r"^listeners=PLAINTEXT://[^:]+:(\d+)", properties, re.MULTILINE)
    return int(listener[1]) if listener else None


def main(arguments: list[str] | None = None) -> int:
    """Keep a broker running until SIGINT or SIGTERM; prints its address on the first line of stdout."""
    parser = argparse.ArgumentParser(
        prog="local_kafka", description="Run one Apache Kafka broker on loopback."
    )
    parser.add_argument("--data-dir", type=Path, help="keep the log here over runs (default: temporary)")
    parser.add_argument("--port", type=int, help="port to listen on (default: a free one)")
    parser.add_argument("--prepare", action="store_true", help="only fetch what is needed")
    chosen = parser.parse_args(arguments)
    ended = threading.Event()
    try:
        if chosen.prepare:
            find_java(os.environ)
            sys.stdout.write(f"{fetch_jars(os.environ)}\n")
            return 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        with LocalKafka(chosen.data_dir, port=chosen.port) as kafka:
            sys.stdout.write(f"{kafka.bootstrap}\n")
            sys.stderr.write(
                f"Kafka {KAFKA_VERSION} runs (pid {kafka.pid}, data {kafka.data_dir}); Ctrl-C ends it.\n"
                f"export KAFKA_BOOTSTRAP_SERVERS={kafka.bootstrap}\n"
            )
            sys.stdout.flush()
            while not ended.wait(0.5):
                kafka.pid  # noqa: B018 - raises when the broker has ended by itself
    except (PartUnavailable, PartFailed) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
