"""The document of a run: its results as JSON, and the machine they are from."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.machine import describe_machine


def write_document(path: Path, **results: object) -> None:
    """Write `results` beside a description of the machine, in their order; the directory is made."""
    document = {"machine": describe_machine(), **results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
