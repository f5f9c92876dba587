"""Running the stand-in as a process of its own, and a small client for its control endpoints.

Owns: the child process and the calls under ``/_``. Refuses to know: the API itself; use Stripe's SDK for that.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

JsonObject = dict[str, Any]

_PROJECT = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 10
_CONTROL_TIMEOUT_SECONDS = 60  # moving the clock over years of periods does all their work before it answers


class StripeStandIn:
    """A stand-in in its own process; ``with StripeStandIn.start(path) as stripe: …``.

    The address stays the same over ``kill`` and ``restart``, and so does everything it answered.
    """

    def __init__(self, state_path: Path, port: int = 0) -> None:
        self.state_path = state_path.resolve()
        self._port = port
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    def start(cls, state_path: Path, port: int = 0) -> Self:
        """Start on a port (0: a free one) and return once it answers. Raises ``RuntimeError`` if it does not."""
        stand_in = cls(state_path, port)
        stand_in._spawn()
        return stand_in

    def _spawn(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sandbox.stripe",
                "--port",
                str(self._port),
                "--state",
                str(self.state_path),
            ],
            cwd=_PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            self._process.stdout.close()
            raise RuntimeError(f"the stand-in did not start (exit code {self._process.wait()})")
        self._port = int(line.rsplit(":", 1)[1])

    @property
    def base_url(self) -> str:
        """The address for the SDK's ``base_addresses={"api": …}``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the running stand-in. Raises ``RuntimeError`` while it is down."""
        if self._process is None:
            raise RuntimeError("the stand-in is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def control(self) -> "StandInControl":
        """A client for the control endpoints; close it, or use it as a context manager."""
        return StandInControl(self.base_url)

    def kill(self) -> None:
        """SIGKILL, at whatever it is doing; returns once it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if it takes too long; does nothing when it is down already."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start again on the same state and the same port, stopping it first if it runs."""
        self.stop()
        self._spawn()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class StandInControl:
    """The control endpoints. Every call raises ``httpx.HTTPStatusError`` where the stand-in refuses."""

    def __init__(self, base_url: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=_CONTROL_TIMEOUT_SECONDS, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, body: object = None, **query: object) -> JsonObject:
        response = self._client.request(
            method,
            path,
            content=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/json"},
            params={name: str(value) for name, value in query.items() if value is not None},
        )
        response.raise_for_status()
        decoded: JsonObject = response.json()
        return decoded

    def now_seconds(self) -> int:
        """Virtual epoch seconds."""
        return int(self._call("GET", "/_clock")["now"])

    def advance(self, seconds: int) -> int:
        """Move virtual time forward, doing all that falls due; answers the new time in seconds."""
        return int(self._call("POST", "/_clock", {"advance_seconds": seconds})["now"])

    def set_clock(self, now_seconds: int, *, frozen: bool | None = None) -> None:
        """Move virtual time forward to an instant (back, while nothing exists), and optionally freeze it there."""
        self._call("POST", "/_clock", {"now": now_seconds, "frozen": frozen})

    def freeze(self, frozen: bool = True) -> None:
        """Stop virtual time, or let it flow again from where it stands."""
        self._call("POST", "/_clock", {"frozen": frozen})

    def real_time(self) -> None:
        """Return to real time."""
        self._call("POST", "/_clock", {"real": True, "frozen": False})

    def reset(self) -> None:
        """Forget every object, event, fault and knob, and return to real time: a new stand-in for the same account."""
        self._call("POST", "/_reset")

    def config(self, **groups: dict[str, object]) -> JsonObject:
        """Change knobs (``meters={"summary_lag_seconds": 60}``) and answer all of them."""
        return self._call("POST", "/_config", groups)

    def add_fault(self, kind: str, match: dict[str, str] | None = None, **details: object) -> str:
        """Add a fault rule; answers its id."""
        body = {"kind": kind, "match": match or {}, **details}
        return str(self._call("POST", "/_faults", body)["ids"][0])

    def faults(self) -> list[JsonObject]:
        """All rules with their counts of matches and hits."""
        return list(self._call("GET", "/_faults")["rules"])

    def clear_faults(self) -> None:
        """Forget all rules."""
        self._call("DELETE", "/_faults")

    def totals(
        self,
        customer: str | None = None,
        event_name: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> list[JsonObject]:
        """Exact totals per customer, event name and hour; bounds are seconds, half open."""
        found = self._call("GET", "/_totals", customer=customer, event_name=event_name, start=start, end=end)
        return list(found["totals"])

    def meter_events(
        self,
        customer: str | None = None,
        event_name: str | None = None,
        identifier: str | None = None,
        status: str | None = None,
        limit: int = 100_000,
    ) -> list[JsonObject]:
        """Stored meter events in order of receipt."""
        found = self._call(
            "GET",
            "/_meter_events",
            customer=customer,
            event_name=event_name,
            identifier=identifier,
            status=status,
            limit=limit,
        )
        return list(found["data"])

    def usage_records(self, subscription_item: str | None = None) -> list[JsonObject]:
        """Stored usage records in order of receipt, one a timestamp that was set."""
        return list(self._call("GET", "/_usage_records", subscription_item=subscription_item)["data"])

    def requests(self) -> list[JsonObject]:
        """How often each endpoint was called, by outcome."""
        return list(self._call("GET", "/_requests")["data"])

    def deliveries(
        self, event_type: str | None = None, state: str | None = None, endpoint: str | None = None
    ) -> list[JsonObject]:
        """The log of webhook deliveries, newest first."""
        found = self._call("GET", "/_webhooks", event_type=event_type, state=state, endpoint=endpoint)
        return list(found["data"])

    def resend(self, event_id: str) -> int:
        """Deliver an event once more to each endpoint it went to; answers to how many."""
        return int(self._call("POST", f"/_webhooks/{event_id}/resend")["queued"])

    def rotate_secret(self, endpoint_id: str, old_lives_seconds: int = 86_400) -> str:
        """Give a webhook endpoint a new secret; the old one signs along for a while (virtual seconds)."""
        found = self._call(
            "POST", f"/_webhooks/{endpoint_id}/rotate_secret", old_lives_seconds=old_lives_seconds
        )
        return str(found["secret"])

    def wait_deliveries(self, timeout_seconds: int = 10) -> None:
        """Return once nothing is due for delivery any more. Raises ``TimeoutError``."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            now_ms = self._call("GET", "/_clock")["now_ms"]
            if all(delivery["next_attempt_ms"] > now_ms for delivery in self.deliveries(state="pending")):
                return
            time.sleep(0.05)
        raise TimeoutError("webhook deliveries are still due")
