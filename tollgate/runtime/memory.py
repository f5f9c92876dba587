"""Memory: how the C library hands it back.

Owns one setting of the allocator. It refuses to know what memory is used for.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 32 * 1024 * 1024
"""The largest glibc accepts on 64 bits."""
_TRIM_BYTES = 256 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Keep up to 256 MiB of freed memory for the next use instead of giving it back to the system; True when it was
    set (glibc alone has it).

    For services that receive megabytes at a time: as it comes, glibc returns such blocks at once and the kernel
    clears every page again for the next body, which takes longer than receiving it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Setting either switches off glibc's own adjustment of both.
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
