"""The machine and the versions a run was made with. It refuses to tell names and paths."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "aiokafka",
    "faust-streaming",
    "httptools",
    "msgspec",
    "numpy",
    "polars",
    "psycopg",
    "pyarrow",
    "uvicorn",
    "uvloop",
)


def describe_machine() -> dict[str, object]:
    """Processor, memory, system, Python, packages, and the commit where there is one."""
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        # At the end of the run, which is part of it: far above the number of cores, others were working here too.
        "load_average_5_minutes": round(os.getloadavg()[1], 1),
        "memory_kib": int((_first("/proc/meminfo", "MemTotal") or "0").split()[0]),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _first(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
