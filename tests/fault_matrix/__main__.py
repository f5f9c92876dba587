"""`python -m tests.fault_matrix`: run every test the fault matrix names and record the results for the documents."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe_machine
from tests.fault_matrix.recorded import record_tests
from tests.fault_matrix.rows import ROWS


def main() -> int:
    """Entry point; returns the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        passed = record_tests((node for row in ROWS for node in row.tests), describe_machine(), Path(scratch))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
