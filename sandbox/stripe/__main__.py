"""``python -m sandbox.stripe --port 8690 --state stripe.sqlite3``: run the stand-in.

Owns: arguments, the socket and the server's life. Writes one line to stdout once it answers:
``ready http://127.0.0.1:8690``.
"""

import argparse
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from sandbox.stripe.clock import VirtualClock
from sandbox.stripe.http import AbortableProtocol, create_app
from sandbox.stripe.state import State
from tollgate.runtime.clock import SystemClock

_PORT_DEFAULT = 8690
_KEEP_ALIVE_SECONDS = (
    75  # longer than clients keep idle connections, so that a reset is always a fault asked for
)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.stripe", description="A stand-in for Stripe.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=_PORT_DEFAULT, help="port; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--state", type=Path, default=Path("stripe.sqlite3"), help="state file (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((arguments.host, arguments.port))
    except OSError as error:
        sys.stderr.write(f"cannot listen on {arguments.host}:{arguments.port}: {error}\n")
        return 1
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    uvloop.run(_serve(listener, arguments.state))
    return 0


class _AnnouncingServer(uvicorn.Server):
    """A server that says so once it answers: whoever started it on a free port learns the port here."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as usual, then write the ready line."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()
            sys.stdout.write(f"ready http://{host}:{port}\n")
        sys.stdout.flush()


async def _serve(listener: socket.socket, state_path: Path) -> None:
    state = State(state_path)
    try:
        app = create_app(state, VirtualClock(SystemClock(), state))
        config = uvicorn.Config(
            app,
            http=AbortableProtocol,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=2,
        )
        await _AnnouncingServer(config).serve(sockets=[listener])
    finally:
        state.close()


if __name__ == "__main__":
    sys.exit(main())
