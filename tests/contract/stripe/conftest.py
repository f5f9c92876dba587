"""What the contract suite runs against: the stand-in, or Stripe's own test mode.

With ``STRIPE_API_KEY=sk_test_…`` every test that needs no control over time or faults runs against Stripe; the others
(those that use the ``control``, ``stand_in`` or ``receiver`` fixture) are deselected, and the report says why.
"""

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import stripe

from sandbox.stripe.process import StandInControl, StripeStandIn
from tests.contract.stripe.target import Receiver, Target, client_of

_STAND_IN_ONLY = {
    "control": "needs control over time, faults or knobs (/_clock, /_faults, /_config)",
    "stand_in": "kills and restarts the server",
    "receiver": "receives webhooks on this machine, where Stripe cannot reach it",
}


def _real_key() -> str | None:
    key = os.environ.get("STRIPE_API_KEY")
    return key if key is not None and key.startswith("sk_test_") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Against Stripe itself, leave out what only the stand-in can do, and list it."""
    if _real_key() is None:
        return
    left_out: list[pytest.Item] = []
    reasons: dict[str, int] = {}
    for item in list(items):
        names = getattr(item, "fixturenames", ())
        reason = next((text for name, text in _STAND_IN_ONLY.items() if name in names), None)
        if reason is not None:
            items.remove(item)
            left_out.append(item)
            reasons[reason] = reasons.get(reason, 0) + 1
    config.hook.pytest_deselected(items=left_out)
    config.stash[_REASONS] = reasons


_REASONS = pytest.StashKey[dict[str, int]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was not run against Stripe."""
    for reason, count in config.stash.get(_REASONS, {}).items():
        terminalreporter.write_line(f"not run against Stripe: {count} tests, which {reason}")


@pytest.fixture(scope="session")
def shared_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn | None]:
    """One stand-in process for the whole run; None when the suite runs against Stripe."""
    if _real_key() is not None:
        yield None
        return
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def target(shared_stand_in: StripeStandIn | None) -> Iterator[Target]:
    """The server under contract."""
    if shared_stand_in is None:
        yield Target(stripe.StripeClient(str(_real_key())), lambda: int(time.time()), 120)
        return
    with shared_stand_in.control as control:
        yield Target(client_of(shared_stand_in), control.now_seconds, 5)


@pytest.fixture
def control(shared_stand_in: StripeStandIn | None) -> Iterator[StandInControl]:
    """The stand-in's control endpoints; faults, knobs and frozen time end with the test."""
    assert shared_stand_in is not None
    with shared_stand_in.control as client:
        yield client
        client.clear_faults()
        client.freeze(frozen=False)
        client.config(
            meters={
                "summary_lag_seconds": 0,
                "validation": "sync",
                "error_report_samples": 5,
                "latency_ms": 1,
            },
            webhooks={
                "duplicate_per_10_000": 0,
                "reorder_window_ms": 0,
                "delay_ms": 0,
                "retry_delays_seconds": [1, 5, 30],
            },
        )


@pytest.fixture
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    """A stand-in of the test's own, to kill and restart."""
    with StripeStandIn.start(tmp_path_factory.mktemp("own") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook receiver on a free port, answering 200 unless ``answers`` says otherwise."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.got.append((self.headers["Stripe-Signature"], body))
            self.send_response(state.answers.pop(0) if state.answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()
