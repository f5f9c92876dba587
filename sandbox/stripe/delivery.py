"""Sending events: signed, at least once, again after a failure.

Owns: signatures, attempts, and when the next one is due. Refuses to know: what the events say.
"""

import asyncio
import hashlib
import hmac
import json

import httpx

from sandbox.stripe.clock import VirtualClock
from sandbox.stripe.settings import WebhookSettings, webhook_settings
from sandbox.stripe.state import State
from sandbox.stripe.webhooks import live_secrets, receiver

_CONCURRENT_MAX = 8
_IDLE_SECONDS = 0.05  # how long a due delivery may go unnoticed


def signature_header(secrets: list[str], timestamp: int, body: str) -> str:
    """``Stripe-Signature``: one ``v1`` for every secret that is live."""
    signed = f"{timestamp}.{body}".encode()
    marks = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={timestamp}", *(f"v1={mark}" for mark in marks)])


class Courier:
    """Delivers what is queued, as its moment comes in virtual time.

    An attempt is written down after its answer; a process that dies in between sends the same event again.
    """

    def __init__(self, state: State, clock: VirtualClock) -> None:
        self._state = state
        self._clock = clock
        self._sending: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        # ``trust_env`` off: receivers are on this machine, whatever proxy the environment names.
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                while True:
                    self._start_due(client)
                    await asyncio.sleep(_IDLE_SECONDS)
            finally:
                for task in self._tasks:
                    task.cancel()

    def _start_due(self, client: httpx.AsyncClient) -> None:
        settings = webhook_settings(self._state)
        if settings.paused:
            return
        rows = self._state.connection.execute(
            "SELECT seq, endpoint, body, attempts FROM deliveries WHERE next_attempt_ms <= ? "
            "ORDER BY next_attempt_ms, seq LIMIT ?",
            (self._clock.now_ms(), _CONCURRENT_MAX + len(self._sending)),
        ).fetchall()
        for row in rows:
            if row["seq"] in self._sending or len(self._sending) >= _CONCURRENT_MAX:
                continue
            self._sending.add(row["seq"])
            task = asyncio.create_task(
                self._deliver(
                    client, settings, row["seq"], row["endpoint"], row["body"], json.loads(row["attempts"])
                )
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(
        self,
        client: httpx.AsyncClient,
        settings: WebhookSettings,
        seq: int,
        endpoint_id: str,
        body: str,
        attempts: list[dict[str, object]],
    ) -> None:
        try:
            endpoint = receiver(self._state, endpoint_id)
            if endpoint is None or endpoint["status"] != "enabled":
                self._write(seq, "abandoned", None, attempts)
                return
            status, error = await self._attempt(client, settings, endpoint, body)
            attempts.append({"at_ms": self._clock.now_ms(), "status": status, "error": error})
            if status is not None and 200 <= status < 300:
                self._write(seq, "delivered", None, attempts)
            elif len(attempts) <= len(settings.retry_delays_seconds):
                delay_seconds = settings.retry_delays_seconds[len(attempts) - 1]
                self._write(seq, "pending", self._clock.now_ms() + 1000 * delay_seconds, attempts)
            else:
                self._write(seq, "failed", None, attempts)
        finally:
            self._sending.discard(seq)

    async def _attempt(
        self, client: httpx.AsyncClient, settings: WebhookSettings, endpoint: dict[str, object], body: str
    ) -> tuple[int | None, str | None]:
        """One POST; the answered status, or the error that kept it from being answered."""
        signature = signature_header(
            live_secrets(endpoint, self._clock.now_ms()), self._clock.real_seconds(), body
        )
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature,
            "User-Agent": "Stripe/1.0 (stand-in)",
        }
        try:
            response = await client.post(
                str(endpoint["url"]), content=body, headers=headers, timeout=settings.timeout_seconds
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return None, f"{type(error).__name__}: {error}"
        return response.status_code, None

    def _write(
        self, seq: int, state: str, next_attempt_ms: int | None, attempts: list[dict[str, object]]
    ) -> None:
        with self._state.transaction():
            self._state.connection.execute(
                "UPDATE deliveries SET state = ?, next_attempt_ms = ?, attempts = ? WHERE seq = ?",
                (state, next_attempt_ms, json.dumps(attempts), seq),
            )
