"""A whole Tollgate on this machine: every service as a process of its own, talked to from outside only.

Owns the processes' environments, ports, order and logs. It refuses to know what any of them does inside: services
are started by `python -m services.<name>` and watched through their HTTP endpoints.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

import httpx

from sandbox.child import Child
from sandbox.ports import LOOPBACK, free_port

SERVICES = ("ingest", "meter", "stripe_sync", "webhooks")
MAPPING_RULES = ("user=customer.id", "user=customer.email", "company=customer.id", "company=subscription.id")
"""All there are: the sandbox's gateways name callers in each of these ways."""

_STOP_SECONDS = 30.0
_READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What a stack runs on."""

    directory: Path
    """Logs and the files of services; made when absent."""
    bootstrap_servers: str
    ledger_url: str
    stripe_url: str
    stripe_key: str = "sk_test_sandbox"
    topic_prefix: str = ""
    ephemeral: bool = False
    partitions: int = 6
    capture: tuple[str, ...] = ()
    id_seed: str = "sandbox id seed, not a secret"
    key_seed: str = "sandbox key seed, not a secret"
    extra: Mapping[str, str] = field(default_factory=dict)
    """More environment, for every process."""


BRISK = {
    "TOLLGATE_SYNC__CADENCE_SECONDS": "2",
    "TOLLGATE_SYNC__CALLS_PER_SECOND": "200",
    "TOLLGATE_SYNC__LEASE_SECONDS": "4",
    "TOLLGATE_SYNC__RETRY_INITIAL_SECONDS": "0.2",
    "TOLLGATE_GROUP__SESSION_TIMEOUT_SECONDS": "6",
    "TOLLGATE_GROUP__HEARTBEAT_SECONDS": "1.5",
    "TOLLGATE_TOKENS_REFRESH_SECONDS": "1",
    "TOLLGATE_LOG__FORMAT": "json",
}
"""More environment for those who watch, or test: seconds instead of minutes until the next step, and after a kill."""


class Stack:
    """Every service, started and stopped by name. A context manager: on exit nothing is left running."""

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        settings.directory.mkdir(parents=True, exist_ok=True)
        self.ports = {name: free_port() for name in SERVICES}
        self._children: dict[str, Child] = {}
        self._modules: dict[str, str] = {}
        self._more: dict[str, dict[str, str]] = {}
        for name in SERVICES:
            self.add_instance(name, service=name, port=self.ports[name])

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add_instance(self, name: str, *, service: str, port: int | None = None) -> None:
        """One more process of a service under a name of its own (`meter-2`), not yet started."""
        self.ports[name] = port or free_port()
        self._modules[name] = service
        self._children[name] = Child(name, self.settings.directory / f"{name}.log")

    def environment(self, name: str | None = None) -> dict[str, str]:
        """The environment of a process, or of the command line without `name`."""
        settings = self.settings
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("TOLLGATE_", "STRIPE_"))
        }
        for conventional in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"):
            environment.pop(conventional, None)
        environment |= {
            "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "TOLLGATE_KAFKA__TOPIC_PREFIX": settings.topic_prefix,
            "TOLLGATE_LEDGER__URL": settings.ledger_url,
            "TOLLGATE_EPHEMERAL": "true" if settings.ephemeral else "false",
            "TOLLGATE_TOPICS__PARTITIONS": str(settings.partitions),
            "TOLLGATE_ID_SEED": settings.id_seed,
            "TOLLGATE_KEY_SEED": settings.key_seed,
            "TOLLGATE_STRIPE__API_BASE": settings.stripe_url,
            "TOLLGATE_CAPTURE": ",".join(settings.capture),
            "TOLLGATE_INGEST_URL": self.url("ingest"),
            "TOLLGATE_WEBHOOKS__MAPPING_RULES": ",".join(MAPPING_RULES),
            "STRIPE_API_KEY": settings.stripe_key,
            **settings.extra,
        }
        if name is not None:
            environment |= {
                "TOLLGATE_HTTP__HOST": LOOPBACK,
                "TOLLGATE_HTTP__PORT": str(self.ports[name]),
                "TOLLGATE_SNAPSHOT_PATH": str(self.settings.directory / f"{name}-sources.json"),
                **self._more.get(name, {}),
            }
        return environment

    def configure(self, name: str, **variables: str) -> None:
        """More environment for one process, from its next start on."""
        self._more.setdefault(name, {}).update(variables)

    def url(self, name: str) -> str:
        """Where a process listens."""
        return f"http://{LOOPBACK}:{self.ports[name]}"

    def tollgate(self, *arguments: str, timeout_seconds: float = 120.0) -> str:
        """Run one command of the command line; returns what it printed. Raises CommandFailed."""
        command = [sys.executable, "-m", "services.cli", *arguments]
        done = subprocess.run(
            command,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise CommandFailed(arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def start(self, *names: str, wait: bool = True) -> None:
        """Start processes by name and wait until each says it is ready."""
        for name in names:
            self._children[name].start(
                [sys.executable, "-m", f"services.{self._modules[name]}"],
                cwd=Path.cwd(),
                env=self.environment(name),
            )
        if wait:
            for name in names:
                self.wait_ready(name)

    def wait_ready(self, name: str, timeout_seconds: float = _READY_SECONDS) -> None:
        """Return once /readyz answers 200. Raises PartFailed when the process ends before."""
        with httpx.Client(timeout=2.0, trust_env=False) as client:

            def ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get(f"{self.url(name)}/readyz").status_code == httpx.codes.OK
                return False

            self._children[name].wait_until(ready, timeout_seconds)

    def child(self, name: str) -> Child:
        """The process behind a name: its pid, its output, signals to it."""
        return self._children[name]

    def kill(self, name: str) -> int:
        """SIGKILL one process; returns the pid it had."""
        pid = self._children[name].pid
        self._children[name].kill()
        return pid

    def stop(self, *names: str) -> dict[str, int]:
        """SIGTERM processes (all without `names`), front to back; returns exit codes."""
        order = names or tuple(self._children)
        for name in order:
            if self._children[name].running:
                self._children[name].send(SIGTERM)
        # One signal each: a second one could meet a process whose handlers are already gone, and look like a crash.
        return {name: self._children[name].wait(_STOP_SECONDS) for name in order}


class CommandFailed(RuntimeError):
    """A command of the command line ended with another exit code than 0."""

    def __init__(self, arguments: Sequence[str], code: int, stdout: str, stderr: str) -> None:
        super().__init__(f"tollgate {' '.join(arguments)} ended with {code}\n{stdout}{stderr}")
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
