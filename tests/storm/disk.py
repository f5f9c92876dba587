"""Disks that can be full: a tmpfs of their own where we may mount one, else a limit on the size of files.

Owns mounting, filling and freeing. It refuses to know what is kept there.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

_PROC = Path("/proc")
_FREE_MIB = 16_384
"""Of a tmpfs: more than any storm writes. It takes memory only for what is in it."""

_FILL_ATTEMPTS = 10
_LEEWAY_BYTES = 65_536


class Disk(Protocol):
    """Where a part keeps its data."""

    how: str
    """In words, for the report."""

    def fill(self) -> None:
        """From now on nothing more fits."""

    def free(self) -> None:
        """There is room again."""

    def close(self) -> None:
        """Undo what was made. What is on it is gone."""


class Tmpfs:
    """A tmpfs at `path` that shrinks to what is in it. Raises OSError when mounting is not permitted."""

    how = "a tmpfs shrunk to what is in it"

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={_FREE_MIB}m,mode=0755", "tollgate-storm", str(path))

    def fill(self) -> None:
        for attempt in range(_FILL_ATTEMPTS):
            state = os.statvfs(self._path)
            used = (state.f_blocks - state.f_bfree) * state.f_frsize
            try:
                _run("mount", "-o", f"remount,size={used + attempt * _LEEWAY_BYTES}", str(self._path))
            except OSError:
                # It cannot be made smaller than what is in it, and that has grown since we looked.
                if attempt == _FILL_ATTEMPTS - 1:
                    raise
            else:
                return

    def free(self) -> None:
        _run("mount", "-o", f"remount,size={_FREE_MIB}m", str(self._path))

    def close(self) -> None:
        # Lazily: whoever was killed a moment ago may not have let go of its files yet.
        _run("umount", "--lazy", str(self._path))


class FileSizes:
    """No file of a process and its children may grow: what a write gets is EFBIG instead of ENOSPC."""

    how = "a limit of nothing on the growth of files (no tmpfs may be mounted here)"

    def __init__(self, pid: Callable[[], int | None]) -> None:
        self._pid = pid

    def fill(self) -> None:
        self._limit(1)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def close(self) -> None:
        return

    def _limit(self, size_bytes: int) -> None:
        pid = self._pid()
        for each in (pid, *_children(pid)) if pid is not None else ():
            with contextlib.suppress(ProcessLookupError):
                # The soft limit alone: it can be raised again.
                resource.prlimit(each, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def make_disk(path: Path, pid: Callable[[], int | None]) -> Disk:
    """The better of the two that this machine permits, for a part that keeps its data at `path`."""
    try:
        return Tmpfs(path)
    except OSError:
        return FileSizes(pid)


def _children(pid: int) -> Iterator[int]:
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            yield from map(int, (task / "children").read_text().split())


def _tasks(pid: int) -> Iterable[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return ()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
