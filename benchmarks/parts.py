"""What a benchmark runs on: a broker, a database, a directory for what services write, and two kinds of cores.

Owns their starting and ending, unless somebody else runs them. It refuses to know what is measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processor import Cores, pinned_to, share_cores
from sandbox.child import PartUnavailable
from sandbox.local_kafka import LocalKafka
from sandbox.local_postgres import LocalPostgres


@dataclass(frozen=True, slots=True)
class Parts:
    """As they run."""

    bootstrap: str
    kafka: LocalKafka | None
    """None where somebody else runs it."""
    postgres: LocalPostgres
    directory: Path
    """Removed in the end."""
    cores: Cores


@contextmanager
def start_parts(label: str) -> Iterator[Parts]:
    """Start both, this process and they on the cores that are not measured.

    KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL name parts that run already. Raises PartUnavailable, PartFailed.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise PartUnavailable("Benchmarks pin processes and read /proc: they run on Linux.")
    cores = share_cores(frozenset(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        stack.enter_context(pinned_to(cores.others))
        bootstrap = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        kafka = None
        if not bootstrap:
            kafka = stack.enter_context(LocalKafka())
            bootstrap = kafka.bootstrap
        postgres = stack.enter_context(LocalPostgres())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"tollgate-{label}-")))
        yield Parts(bootstrap, kafka, postgres, directory, cores)
