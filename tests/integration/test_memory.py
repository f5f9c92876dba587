"""What the allocator does with memory that was freed, seen from outside."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from tollgate.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not supported")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    parts = [bytes(1_000_000) + b"x" for _ in range(8)]
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is asked")
def test_freed_memory_is_not_cleared_again_for_the_next_body() -> None:
    """The kernel hands out a fraction of the pages once freed memory is kept."""
    faults = {}
    for choice in ("keep", "return"):
        ended = subprocess.run(
            [sys.executable, "-c", _PROGRAM, choice], capture_output=True, text=True, timeout=60, check=False
        )
        if "not supported" in ended.stderr:
            pytest.skip("another C library than glibc")
        assert ended.returncode == 0, ended.stderr
        faults[choice] = int(ended.stdout)
    assert faults["keep"] * 3 < faults["return"], faults
