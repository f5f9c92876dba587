"""A service under a sampling profiler that counts CPU, not time: `python -m benchmarks.profiled MODULE REPORT`.

Owns the sampling and the report, written when the process ends. It refuses to know the service: it runs its
`__main__` as `python -m` would. Every few milliseconds each thread's CPU clock is read, and what it has advanced is
charged to the line the thread is at. Work that holds the interpreter's lock for long delays a sample but is still
charged in full; a thread that waits is charged nothing.
"""

from __future__ import annotations

import atexit
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL_SECONDS = 0.004
_LINES = 60


class Sampler:
    """Charges CPU to lines and functions until the process ends."""

    def __init__(self) -> None:
        self.by_line: Counter[str] = Counter()
        """CPU nanoseconds of the innermost line."""
        self.by_function: Counter[str] = Counter()
        """The same, of every function on the stack."""
        self.by_thread: Counter[str] = Counter()
        self._clocks: dict[int, tuple[int, int]] = {}

    def run(self) -> None:
        """Sample for ever: the body of a daemon thread."""
        own = threading.get_ident()
        while True:
            time.sleep(INTERVAL_SECONDS)
            frames = sys._current_frames()
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in frames.items():
                if ident != own and ident in names:
                    self._charge(ident, names[ident], frame)
            del frames

    def _charge(self, ident: int, name: str, frame: FrameType) -> None:
        try:
            clock, before = self._clocks.get(ident) or (time.pthread_getcpuclockid(ident), 0)
            now = time.clock_gettime_ns(clock)
        except OSError:
            return
        self._clocks[ident] = (clock, now)
        if not before or now == before:
            return
        spent = now - before
        self.by_thread[name] += spent
        self.by_line[_place(frame, frame.f_lineno)] += spent
        seen = set()
        at: FrameType | None = frame
        while at is not None:
            place = _place(at, at.f_code.co_firstlineno)
            if place not in seen:
                seen.add(place)
                self.by_function[place] += spent
            at = at.f_back

    def report(self) -> str:
        """Seconds and shares, most first."""
        total = self.by_thread.total() or 1
        parts = [f"{total / 1e9:.2f} CPU seconds\n"]
        for title, found in (
            ("thread", self.by_thread),
            ("line", self.by_line),
            ("function, with what it calls", self.by_function),
        ):
            parts.append(f"\n-- by {title}\n")
            parts += [
                f"{spent / 1e9:8.2f} s {spent / total:6.1%}  {place}\n"
                for place, spent in found.most_common(_LINES)
            ]
        return "".join(parts)


def _place(frame: FrameType, line: int) -> str:
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}:{line} {code.co_qualname}"


def main() -> None:
    """Run the module under the sampler."""
    module, report = sys.argv[1:]
    sampler = Sampler()
    threading.Thread(target=sampler.run, name="sampler", daemon=True).start()

    def write() -> None:
        Path(report).write_text(sampler.report())

    atexit.register(write)
    # A service may end by os._exit, past every exit handler: this signal asks for the report before that.
    signal.signal(signal.SIGUSR1, lambda *_: write())
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
