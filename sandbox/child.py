"""Child: one server started as a direct child process, with its output in a file, and waited for when it ends.

Owns starting, signalling and reaping. It refuses to know what the server does. Where the machine's first process
reaps late, an unwaited dead child looks alive for seconds: so every end goes through `wait()` here.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.02
_KILL_WAIT_SECONDS = 10.0
_TAIL_BYTES = 4000


class PartUnavailable(RuntimeError):
    """This machine cannot run the part. The message says what to install, or what to set instead."""


class PartFailed(RuntimeError):
    """The part was started and did not come up, or ended by itself. The message ends with its last output."""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system account a child runs as."""

    uid: int
    gid: int


class Child:
    """A server process. Not thread-safe; ended at the interpreter's exit at the latest."""

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id. Raises PartFailed when nothing runs."""
        if self._process is None or self._process.poll() is not None:
            raise PartFailed(f"{self.name} is not running\n{self.tail()}")
        return self._process.pid

    def start(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
    ) -> None:
        """Start `command`. Its output is appended to the log file. Raises PartFailed when one is running."""
        if self.running:
            raise PartFailed(f"{self.name} is running already")
        with self.log_path.open("ab") as log:
            self._log_offset = log.tell()
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env=dict(env) if env is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches the whole group: services must be able to drain into a live server.
                process_group=0,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        atexit.register(self.kill)

    def wait_until(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Return once `ready()`. Raises PartFailed when the process ends before that, or time is up (then killed)."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            assert self._process is not None, "start() comes first"
            code = self._process.poll()
            if code is not None:
                raise PartFailed(f"{self.name} ended with code {code} while starting\n{self.tail()}")
            if time.monotonic() >= deadline:
                self.kill()
                raise PartFailed(f"{self.name} was not ready after {timeout_seconds} s\n{self.tail()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, number: signal.Signals, timeout_seconds: float) -> int:
        """Ask it to end with `number`, kill it when it has not after `timeout_seconds`; returns the exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float) -> int:
        """Wait until it has ended by itself, kill it when it has not after `timeout_seconds`; returns the exit code."""
        if self._process is None:
            return 0
        try:
            code = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()
        atexit.unregister(self.kill)
        return code

    def kill(self) -> int:
        """SIGKILL, and wait until it is gone; returns the exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait(_KILL_WAIT_SECONDS)
        atexit.unregister(self.kill)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal without waiting: SIGSTOP and SIGCONT, for pauses."""
        os.kill(self.pid, number)

    def output(self) -> str:
        """What it has written since its latest start."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_offset)
            return log.read().decode(errors="replace")

    def tail(self) -> str:
        """The end of `output()`, for messages."""
        return f"--- {self.log_path}\n{self.output()[-_TAIL_BYTES:].strip()}"
