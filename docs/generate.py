"""Writes the documents that are generated from code and recorded runs: docs/configuration.md, .env.example,
docs/fault-matrix.md and docs/proof.md.

`python -m docs.generate` writes them; `--check` exits 1 when one is not what the code says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docs.fault_matrix import render_fault_matrix
from docs.proof import render_proof
from services.archive.settings import ArchiveSettings
from services.cli.settings import CliSettings
from services.ingest.settings import IngestSettings
from services.meter.settings import MeterSettings
from services.stripe_sync.settings import StripeSyncSettings
from services.webhooks.settings import WebhooksServiceSettings
from tests.fault_matrix.recorded import load_recorded
from tests.fault_matrix.rows import ROWS
from tollgate.runtime.settings import ServiceSettings
from tollgate.runtime.settings_docs import describe_settings, render_env, render_markdown

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, type[ServiceSettings]] = {
    "ingest": IngestSettings,
    "meter": MeterSettings,
    "stripe_sync": StripeSyncSettings,
    "webhooks": WebhooksServiceSettings,
    "archive": ArchiveSettings,
    "the command line": CliSettings,
}


def render_documents() -> dict[Path, str]:
    """Every generated document by its path."""
    shared = describe_settings(ServiceSettings)
    services = {name: describe_settings(cls) for name, cls in SERVICES.items()}
    recorded = load_recorded()
    return {
        ROOT / "docs" / "configuration.md": render_markdown(shared, services),
        ROOT / ".env.example": render_env(shared, services),
        ROOT / "docs" / "fault-matrix.md": render_fault_matrix(ROWS, recorded),
        ROOT / "docs" / "proof.md": render_proof(recorded.storm),
    }


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a document is out of date"
    )
    check = parser.parse_args().check
    stale = []
    for path, text in render_documents().items():
        if not path.exists() or path.read_text() != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(text)
    if check and stale:
        sys.stderr.write(f"out of date: {', '.join(map(str, stale))}; run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
