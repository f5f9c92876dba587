"""Disks that can be full: writing fails with the errors a full disk gives, and works again when there is room."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storm.disk import Disk, FileSizes, make_disk

_WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(sys.argv[1], "ab") as file:
            file.write(b"x" * 1_000_000)
    except OSError as error:
        print(error.errno, flush=True)
    else:
        print(0, flush=True)
"""


class Writer:
    """A process that appends a megabyte when it is told to, and says what came of it."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self) -> int:
        """0, or the error's number."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture
def disk_and_writer(tmp_path: Path) -> Iterator[tuple[Disk, Writer]]:
    """The disk this machine permits, and who writes on it."""
    started: list[Writer] = []
    disk = make_disk(tmp_path / "data", lambda: started[0].process.pid)
    (tmp_path / "data").mkdir(exist_ok=True)
    started.append(Writer(tmp_path / "data" / "file"))
    yield disk, started[0]
    close(started[0])
    disk.close()


def close(writer: Writer) -> None:
    """End a writer and its pipes."""
    writer.process.communicate("")
    assert writer.process.returncode == 0


def test_a_full_disk_takes_nothing_until_there_is_room(disk_and_writer: tuple[Disk, Writer]) -> None:
    """ENOSPC of a tmpfs, EFBIG of a limit; filled twice, since a fault may come again."""
    disk, writer = disk_and_writer
    for _ in range(2):
        assert writer.write() == 0
        disk.fill()
        assert writer.write() in (errno.ENOSPC, errno.EFBIG)
        disk.free()
        assert writer.write() == 0


def test_the_limit_on_files_reaches_a_running_process(tmp_path: Path) -> None:
    """What serves where nothing may be mounted: the process that writes already is the one that is limited."""
    writer = Writer(tmp_path / "file")
    disk = FileSizes(lambda: writer.process.pid)
    assert writer.write() == 0
    disk.fill()
    assert writer.write() == errno.EFBIG
    disk.free()
    assert writer.write() == 0
    close(writer)


def test_nobody_there_is_nobodys_limit() -> None:
    """A part that does not run at this moment has no files that could grow."""
    disk = FileSizes(lambda: None)
    disk.fill()
    disk.free()
    disk.close()
