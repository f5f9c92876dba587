"""Who takes part: each peer's modes, how it is started and where its totals are, or why it cannot run here.

Owns the list and the building of the Java one. It refuses to know how runs go.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.running import Logs, Peer, Run
from benchmarks.peers.totals import (
    Rows,
    decode_faust,
    decode_quix,
    decode_streams,
    read_database,
    read_topic,
)
from benchmarks.peers.watching import Meanwhile
from sandbox.child import PartUnavailable
from sandbox.kafka_jars import find_java

STREAMS = "streams"
TITLES = {
    "hand": "confluent-kafka, orjson and a dict, by hand",
    "quix": "Quix Streams",
    "faust": "plain Faust table",
    STREAMS: "Kafka Streams (Java)",
}
MODES = {
    "hand": {"counts in memory": "memory", "counts in SQLite each second": "sqlite"},
    "quix": {"at least once": "at-least-once", "exactly once": "exactly-once"},
    "faust": {"at least once": "at_least_once", "exactly once": "exactly_once"},
    STREAMS: {"at least once": "at_least_once", "exactly_once_v2": "exactly_once_v2"},
}
"""By what the table says: what the program is told."""
EVENTS = {"hand": 1_000_000, "quix": 300_000, "faust": 40_000, STREAMS: 1_000_000}
"""Enough for ten seconds of each or so."""
PACKAGES = ("aiokafka", "confluent-kafka", "faust-streaming", "orjson", "quixstreams")

_MODULES = {"hand": "hand", "quix": "quix", "faust": "plain_faust"}
_STREAMS_DIRECTORY = Path(__file__).with_name("streams")
_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


def make_peers(name: str, logs: Logs, meanwhile: Meanwhile | None, build_directory: Path) -> list[Peer]:
    """One for each mode. Raises PartUnavailable, saying in few words what is missing."""
    command: tuple[str | Path, ...]
    if name == STREAMS:
        command = (*build_streams(build_directory), "StreamsPeer")
    else:
        command = (logs.python, "-m", f"benchmarks.peers.{_MODULES[name]}")
    return [
        Peer(TITLES[name], mode, argument, command, _READERS[name], logs, meanwhile)
        for mode, argument in MODES[name].items()
    ]


def _usage_topic(decode: Callable[..., tuple[str, int, dict[str, object]]]) -> Callable[[Run], Rows]:
    return lambda run: read_topic(run.bootstrap, run.usage_topic, decode)


def _changelog(run: Run) -> Rows:
    return read_topic(run.bootstrap, f"{run.name}-usage-changelog", decode_faust)


def _database(run: Run) -> Rows:
    return read_database(run.directory / "usage.sqlite")


_READERS: dict[str, Callable[[Run], Rows]] = {
    "hand": _database,
    "quix": _usage_topic(decode_quix),
    "faust": _changelog,
    STREAMS: _usage_topic(decode_streams),
}


def build_streams(directory: Path) -> tuple[str | Path, ...]:
    """Compile the Java peer into `directory`; returns the command that runs its classes. Raises PartUnavailable."""
    maven = shutil.which("mvn")
    if shutil.which("javac") is None:
        raise PartUnavailable("no JDK")
    if maven is None:
        raise PartUnavailable("no Maven")
    java = find_java(os.environ)
    directory.mkdir(parents=True, exist_ok=True)
    # From a directory of its own: Maven looks for project settings upwards from where it runs.
    done = subprocess.run(
        [
            *(maven, "-q", "-B", "-f", _STREAMS_DIRECTORY / "pom.xml", "compile", _COPY_DEPENDENCIES),
            *("-DincludeScope=runtime", f"-DoutputDirectory={directory / 'libs'}"),
            f"-Dpeers.directory={directory}",
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PartUnavailable(f"Maven could not build it: {(done.stdout + done.stderr)[-500:]}")
    return (
        java,
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp",
        f"{directory / 'classes'}:{directory / 'libs'}/*",
    )


def package_versions(python: Path) -> dict[str, str]:
    """Versions of what the peers run on, by package."""
    code = f"from importlib.metadata import version\nfor name in {PACKAGES!r}: print(name, version(name))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())
