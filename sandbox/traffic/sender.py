"""The sender: posts batches until each has been acknowledged, as a careful gateway would.

Owns retries (the same bytes again), concurrency and pace. It refuses to know what a batch means.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field

import httpx

from sandbox.traffic.calls import Call
from sandbox.traffic.formats import CONTENT_TYPES, PATHS, Format, render_batch
from sandbox.traffic.history import HistoryWriter

RETRY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: one or more ingest addresses, used in turn, and a source's token."""

    urls: tuple[str, ...]
    token: str


class Refused(RuntimeError):
    """Ingest refused a batch for good (4xx): sending it again would not help."""


@dataclass(slots=True)
class Sending:
    """How far it has come."""

    accepted: int = 0
    """Calls in acknowledged requests (malformed entries included: they were answered for)."""
    retries: int = 0
    repeated: int = 0
    """Calls in those repeated requests: the most that may be in the log twice."""
    unanswered: dict[int, float] = field(default_factory=dict)
    """Since when each worker waits for a 2xx, on the monotonic clock."""

    def waiting_seconds(self) -> float:
        """How long the request has been under way that has waited longest; 0 when none is."""
        now = time.monotonic()
        return now - min(list(self.unanswered.values()), default=now)


async def send_calls(
    calls: Iterable[Call],
    target: Target,
    history: HistoryWriter,
    *,
    formats: tuple[Format, ...] = (Format.KONG,),
    batch_size: int = 500,
    concurrency: int = 4,
    calls_per_second: float | None = None,
    catch_up_seconds: float | None = None,
    give_up_seconds: float = 120.0,
    on_progress: Callable[[Sending], None] = lambda _: None,
    sending: Sending | None = None,
) -> Sending:
    """Send every call, `batch_size` a request; returns when each request has had its 2xx.

    What an outage kept back is sent as fast as it is answered, to be on average as fast as asked for: with
    `catch_up_seconds` no more than so many seconds' worth of it. `sending` is moved on the way, a new one without.
    Raises Refused on a 4xx, TimeoutError when one batch finds no 2xx for `give_up_seconds`.
    """
    sending = sending or Sending()
    batches = _batches(calls, formats, batch_size)
    addresses = itertools.cycle(target.urls)
    loop = asyncio.get_running_loop()
    started = loop.time()
    handed_out = 0

    async def paced() -> AsyncIterator[tuple[list[Call], Format]]:
        nonlocal handed_out, started
        for batch, wire in batches:
            if calls_per_second is not None:
                early = started + handed_out / calls_per_second - loop.time()
                await asyncio.sleep(max(0.0, early))
                if catch_up_seconds is not None:
                    started += max(0.0, -early - catch_up_seconds)
            handed_out += len(batch)
            yield batch, wire

    source = paced()
    turn = asyncio.Lock()

    async def work(client: httpx.AsyncClient, number: int) -> None:
        while True:
            async with turn:
                try:
                    batch, wire = await anext(source)
                except StopAsyncIteration:
                    return
            sending.unanswered[number] = time.monotonic()
            await _post_until_acknowledged(
                client, addresses, target.token, batch, wire, sending, give_up_seconds
            )
            del sending.unanswered[number]
            history.append(batch, wire)
            sending.accepted += len(batch)
            on_progress(sending)

    async with httpx.AsyncClient(timeout=httpx.Timeout(30.0, connect=5.0), trust_env=False) as client:
        await asyncio.gather(*(work(client, number) for number in range(concurrency)))
    return sending


def _batches(
    calls: Iterable[Call], formats: tuple[Format, ...], size: int
) -> Iterator[tuple[list[Call], Format]]:
    """Batches of one format each. A call's id chooses its format, so that its duplicates come in the same."""
    waiting: dict[Format, list[Call]] = {wire: [] for wire in formats}
    for call in calls:
        wire = formats[int(call.id[:8], 16) % len(formats)]
        waiting[wire].append(call)
        if len(waiting[wire]) == size:
            yield waiting[wire], wire
            waiting[wire] = []
    yield from ((batch, wire) for wire, batch in waiting.items() if batch)


async def _post_until_acknowledged(
    client: httpx.AsyncClient,
    addresses: Iterator[str],
    token: str,
    batch: list[Call],
    wire: Format,
    sending: Sending,
    give_up_seconds: float,
) -> None:
    body = render_batch(batch, wire)
    headers = {"authorization": f"Bearer {token}", "content-type": CONTENT_TYPES[wire]}
    async with asyncio.timeout(give_up_seconds):
        while True:
            try:
                answer = await client.post(next(addresses) + PATHS[wire], content=body, headers=headers)
            except httpx.TransportError:
                # Unknown outcome: it may have been stored. The ids make a second copy harmless.
                sending.retries += 1
                sending.repeated += len(batch)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if answer.is_success:
                return
            if answer.status_code < 500 and answer.status_code not in (408, 429):
                raise Refused(f"{answer.status_code} from {answer.url}: {answer.text[:500]}")
            sending.retries += 1
            sending.repeated += len(batch)
            await asyncio.sleep(RETRY_SECONDS)
