"""docker-compose.yml, without docker: each service's command with its environment as a plain non-root process.

Host names of the compose network stand for loopback addresses of real parts; every healthcheck is asked as compose
would ask it. What docker itself adds (image, volumes, capabilities) is not tested here.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.child import Account, Child
from sandbox.ports import free_port
from sandbox.stripe.process import StripeStandIn
from tests.parts.kafka import BrokerSettings

ROOT = Path(__file__).parents[2]
OURS = ("ingest", "meter", "stripe-sync", "webhooks", "archive")
GIVEN = {
    "TOLLGATE_ID_SEED": "a secret seed for ids",
    "TOLLGATE_KEY_SEED": "a secret seed for keys",
    "STRIPE_WEBHOOK_SECRET": "whsec_compose",
}
"""What an operator writes into .env."""

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<rest>[^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file with .env filled in, as compose reads it."""
    text = _VARIABLE.sub(_interpolate, (ROOT / "docker-compose.yml").read_text())
    document = yaml.safe_load(text)
    assert isinstance(document, dict)
    return document


def _interpolate(match: re.Match[str]) -> str:
    value = GIVEN.get(match["name"])
    if value is not None:
        return value
    assert match["how"] == "-", f"{match['name']} has no default and .env does not set it"
    return match["rest"]


def test_every_service_names_an_image_its_start_order_and_a_healthcheck(compose: dict[str, Any]) -> None:
    """Nothing starts before init has finished; everything of ours says when it is ready."""
    services = compose["services"]
    for name in OURS:
        assert services[name]["depends_on"]["init"]["condition"] == "service_completed_successfully"
        assert services[name]["healthcheck"]["test"][0] == "CMD"
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    assert set(services["init"]["depends_on"]) == {"kafka", "postgres"}
    assert all("image" in service for service in services.values())


def test_prometheus_scrapes_every_service_at_its_port(compose: dict[str, Any]) -> None:
    """The scrape configuration and the compose file name the same ports."""
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = {
        t for job in scrape["scrape_configs"] for group in job["static_configs"] for t in group["targets"]
    }
    assert targets == {
        f"{name}:{compose['services'][name]['environment']['TOLLGATE_HTTP__PORT']}" for name in OURS
    }


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.slow
def test_each_service_starts_as_composed_and_its_healthcheck_passes(
    compose: dict[str, Any], kafka_settings: BrokerSettings, postgres_url: str, tmp_path: Path
) -> None:
    """init ends with 0; every service of ours becomes healthy and ends with 0 on SIGTERM."""
    runner = _unprivileged()
    if runner.account is not None:
        os.chown(tmp_path, runner.account.uid, runner.account.gid)
        for parent in tmp_path.parents[:3]:
            parent.chmod(0o755)
    with StripeStandIn.start(tmp_path / "stripe.sqlite3") as stripe:
        network = {
            "kafka:9092": kafka_settings.bootstrap_servers,
            "http://stripe:8690": stripe.base_url,
            "/data/": f"{tmp_path}/",
        }
        ports = {name: free_port() for name in OURS}
        children = {name: Child(name, tmp_path / f"{name}.log") for name in ("init", *OURS)}
        environments = {
            name: _environment(
                compose["services"][name], network, postgres_url, kafka_settings, ports.get(name)
            )
            for name in children
        }
        try:
            _start(children["init"], compose["services"]["init"], environments["init"], tmp_path, runner)
            assert _wait_for_exit(children["init"]) == 0, children["init"].tail()
            for name in OURS:
                _start(children[name], compose["services"][name], environments[name], tmp_path, runner)
            for name in OURS:
                _wait_healthy(children[name], compose["services"][name], ports[name])
        finally:
            codes = {name: children[name].stop(signal.SIGTERM, 30) for name in OURS}
    assert codes == dict.fromkeys(OURS, 0), {n: children[n].tail() for n, c in codes.items() if c}


@dataclass(frozen=True, slots=True)
class Runner:
    """An interpreter that can run the services, and as whom."""

    python: str
    account: Account | None
    """None: as whoever runs the tests."""


def _unprivileged() -> Runner:
    """As somebody who is not root, where an interpreter of our version lies where others may reach it.

    A virtual environment may point at a Python in root's home, which nobody else can execute; the system's own Python
    of the same version then takes its place. Where there is none either, the services run as who runs the tests.
    """
    own = Runner(sys.executable, None)
    if os.getuid() != 0:
        return own
    entry = pwd.getpwnam("nobody")
    account = Account(entry.pw_uid, entry.pw_gid)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with contextlib.suppress(OSError):
            tried = subprocess.run(
                [python, "-c", "import numpy, services.cli"],
                env={"PYTHONPATH": _python_path(), "PATH": os.environ["PATH"]},
                user=account.uid,
                group=account.gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=False,
            )
            if tried.returncode == 0:
                return Runner(python, account)
    return own


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), sysconfig.get_path("platlib"), sysconfig.get_path("purelib")])


def _environment(
    service: Mapping[str, Any],
    network: Mapping[str, str],
    postgres_url: str,
    kafka: BrokerSettings,
    port: int | None,
) -> dict[str, str]:
    environment = {name: str(value) for name, value in service["environment"].items()}
    for name, value in environment.items():
        for inside, outside in network.items():
            environment[name] = environment[name].replace(inside, outside)
        assert value or name == "TOLLGATE_STRIPE__WEBHOOK_SECRETS"
    assert environment["TOLLGATE_LEDGER__URL"] == "postgresql://tollgate:tollgate@postgres:5432/tollgate"
    environment["TOLLGATE_LEDGER__URL"] = postgres_url
    environment["TOLLGATE_KAFKA__TOPIC_PREFIX"] = kafka.topic_prefix
    environment["TOLLGATE_HTTP__HOST"] = "127.0.0.1"
    if port is not None:
        environment["TOLLGATE_HTTP__PORT"] = str(port)
    return environment | {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": _python_path()}


def _start(
    child: Child,
    service: Mapping[str, Any],
    environment: Mapping[str, str],
    place: Path,
    runner: Runner,
) -> None:
    # The image's entrypoint is the `tollgate` script.
    child.start(
        [runner.python, "-m", "services.cli", *service["command"]],
        cwd=place,
        env=environment,
        account=runner.account,
    )


def _wait_for_exit(child: Child, seconds: float = 60.0) -> int:
    deadline = time.monotonic() + seconds
    while child.running:
        assert time.monotonic() < deadline, child.tail()
        time.sleep(0.05)
    return child.stop(signal.SIGTERM, 1)


def _wait_healthy(child: Child, service: Mapping[str, Any], port: int, seconds: float = 60.0) -> None:
    composed = service["environment"]["TOLLGATE_HTTP__PORT"]
    command = [part.replace(f":{composed}/", f":{port}/") for part in service["healthcheck"]["test"][1:]]
    assert f":{port}/" in shlex.join(command), "the healthcheck asks another port than the service listens on"
    command[0] = sys.executable
    deadline = time.monotonic() + seconds
    while subprocess.run(command, capture_output=True, check=False).returncode != 0:
        assert child.running, child.tail()
        assert time.monotonic() < deadline, child.tail()
        time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def _no_leftovers() -> Iterator[None]:
    """The sandbox's temporary directories are pytest's own; nothing is left in the checkout."""
    before = {path.name for path in ROOT.iterdir()}
    yield
    made = {path.name for path in ROOT.iterdir()} - before
    assert not {name for name in made if not name.startswith(".")}, made
