"""The scheduler: one event loop in virtual time for every process of a run.

Owns the order in which everything happens, and who may still act. It refuses to know what runs on it.

Time stands still while anything is ready and then jumps to the next timer, so a run costs what its work costs and is
the same each time: ties are broken by the order of scheduling, and futures hash by their number, since the standard
library keeps them in sets. Threads run inline: work handed to an executor is done in one go at a moment the seed chose.

A process (`Life`) is a mark on the context its tasks run in. Killed, it never gets another turn: nothing is unwound, as
by SIGKILL. Frozen, its turns wait until it is thawed, as by SIGSTOP, while the world goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
import sys
import warnings
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, TypeVar

T = TypeVar("T")

TURNS_MAX = 400_000
"""A run that takes more turns than this is not coming to an end: an ordinary one takes some 20,000."""


class Killed(BaseException):
    """Raised at the point of death, so that nothing after it is done. No process catches it and lives."""


class Stuck(Exception):
    """Nothing is ready and no timer is set, or turns do not come to an end."""


class State(Enum):
    """What a process may do."""

    ALIVE = auto()
    FROZEN = auto()
    DEAD = auto()


class Life:
    """One process: from its start to its death."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.ALIVE
        self.stalled: list[asyncio.Handle] = []
        """Turns that came while it was frozen."""

    @property
    def alive(self) -> bool:
        return self.state is not State.DEAD

    def die(self) -> None:
        """As by SIGKILL."""
        self.state = State.DEAD
        self.stalled.clear()

    def die_here(self) -> None:
        """As by SIGKILL in the middle of what is running now."""
        self.die()
        raise Killed(self.name)

    def freeze(self) -> None:
        """As by SIGSTOP."""
        if self.state is State.ALIVE:
            self.state = State.FROZEN


_LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


def current_life() -> Life | None:
    """The process that runs now; None for the world outside."""
    return _LIFE.get()


class _Future(asyncio.Future[Any]):
    """A future whose place in a set does not depend on where it lies in memory."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    """The same for tasks."""

    def __init__(self, number: int, coro: Any, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.AbstractEventLoop):
    """The event loop. `rng` chooses how long work on a thread takes."""

    def __init__(self, rng: random.Random, start_seconds: float = 1000.0) -> None:
        self._rng = rng
        self._now = start_seconds
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[Any]] = []
        self._free_at: dict[int, float] = {}
        self.turns = 0
        self.surprises: list[str] = []
        """Exceptions nobody retrieved, of processes that live."""
        self.thread_seconds: Callable[[], tuple[float, float]] = self._quick_thread

    # ------------------------------------------------------------------------------------------- running

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, and everything else meanwhile. Raises what it raises, and Stuck."""
        events._set_running_loop(self)
        try:
            task = self.create_task(work)
            while not task.done():
                self._turn()
            result: T = task.result()
            return result
        finally:
            events._set_running_loop(None)

    def _turn(self) -> None:
        now = self._now
        timers = self._timers
        while timers and timers[0][0] <= now:
            handle: asyncio.Handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)
        if not self._ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("nothing is left to happen")
            self._now = max(now, timers[0][0])
            return
        self.turns += 1
        if self.turns > TURNS_MAX:
            raise Stuck(f"{self.turns} turns, at {self._now:.3f} s")
        handle = self._ready.popleft()
        if handle.cancelled():
            return
        life = handle._context.get(_LIFE)  # type: ignore[attr-defined]
        if life is not None and life.state is not State.ALIVE:
            if life.state is State.FROZEN:
                life.stalled.append(handle)
            return
        handle._run()

    def thaw(self, life: Life) -> None:
        """As by SIGCONT: what waited has its turn, in order."""
        if life.state is State.FROZEN:
            life.state = State.ALIVE
            self._ready.extend(life.stalled)
            life.stalled.clear()

    def suspend(self, seconds: float) -> None:
        """The whole machine sleeps: afterwards every timer that was due meanwhile is late."""
        self._now += seconds

    def start_in(self, life: Life, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run `work()` as a process of its own."""
        context = contextvars.copy_context()
        context.run(_LIFE.set, life)
        return context.run(lambda: self.create_task(work()))

    def outside(self, delay_seconds: float, callback: Callable[[], None]) -> None:
        """Have the world, not the process that runs now, do something later."""
        context = contextvars.copy_context()
        context.run(_LIFE.set, None)
        self.call_later(delay_seconds, callback, context=context)

    # ------------------------------------------------------------------------------- what asyncio asks for

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        return self.call_at(self._now + max(0.0, delay), callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer goes when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(next(self._numbers), self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        number = next(self._numbers)
        task = _Task(number, coro, loop=self, name=name or f"task-{number}", context=context)
        # Kept to the end of the run: a killed process' coroutines must not be unwound while others still run.
        self._tasks.append(task)
        return task

    def close(self) -> None:
        """Let go of everything that was left hanging. What the dead unwind now reaches nobody."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._tasks.clear()
                self._ready.clear()
                self._timers.clear()
        finally:
            sys.unraisablehook = hook

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Do `func(*args)` at a moment to come. Work of one executor that has a single thread is done in order."""
        future: asyncio.Future[T] = self.create_future()
        before, after = self.thread_seconds()
        begin = self._now + before
        if getattr(executor, "single", False):
            begin = max(begin, self._free_at.get(id(executor), 0.0))
            self._free_at[id(executor)] = begin + after

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                self.call_later(after, _resolve, future, None, error)
            else:
                self.call_later(after, _resolve, future, result, None)

        self.call_at(begin, work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        life = current_life()
        if isinstance(error, Killed) or (life is not None and not life.alive):
            return
        if "Task was destroyed" in context.get("message", ""):
            return
        self.surprises.append(f"{context.get('message')}: {error!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def _quick_thread(self) -> tuple[float, float]:
        return self._rng.choice(_THREAD_SECONDS), self._rng.choice(_THREAD_SECONDS)


_THREAD_SECONDS = (0.0, 0.0, 0.0, 0.001, 0.001, 0.002, 0.005, 0.02)


class OneThread:
    """An executor of one thread, run inline by `Loop.run_in_executor`."""

    single = True


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
