"""The ground a storm blows over: three brokers, PostgreSQL, the stand-in Stripe and every service, as real processes.

Owns who reaches whom through which stretch of network, and putting everything up and away. It refuses to know what
goes wrong with it (`faults.py`) and what ought to come out (`tests/agreement.py`).

Stretches of network: `kafka-1:meter` is the meters' way to broker 1 (a listener of its own), `kafka-1:peers` the other
brokers' way to it, `ledger:meter-2` one process's way to PostgreSQL, `stripe:webhooks` a service's to Stripe,
`clients:ingest` the gateways' to ingest, `hooks:webhooks` Stripe's to webhooks. The harness itself and operators'
commands go to the parts directly.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx

from sandbox.child import Child
from sandbox.demo.cast import yesterday_s
from sandbox.demo.story import CAPTURE
from sandbox.kafka_cluster import PEERS, KafkaCluster, Node
from sandbox.local_postgres import LocalPostgres
from sandbox.ports import LOOPBACK
from sandbox.shop import Shop
from sandbox.stack import BRISK, SERVICES, Stack, StackSettings
from sandbox.stripe.process import StandInControl, StripeStandIn
from tests.storm.chaos_proxy import ChaosProxy
from tests.storm.disk import Disk, make_disk
from tests.storm.processes import Process, Processes
from tests.storm.schedule import Cast

METERS = Path(__file__).parents[2] / "meters.yaml"
OPERATORS = "OPERATORS"
"""The door without a proxy: for the command line and for looking from outside."""
FULL_DISKS = ("broker-3", "postgres")

_SETTINGS = {
    **BRISK,
    "TOLLGATE_TOPICS__REPLICATION_FACTOR": "3",
    "TOLLGATE_TOPICS__MIN_INSYNC_REPLICAS": "2",
    # Seconds instead of minutes, so that what has to be tried again is tried again within the storm.
    "TOLLGATE_SYNC__RETRY_MAX_SECONDS": "3",
    "TOLLGATE_SYNC__PROBE_SECONDS": "2",
    "TOLLGATE_SYNC__METER_CHECK_SECONDS": "5",
    "TOLLGATE_STRIPE__READ_TIMEOUT_SECONDS": "5",
    "TOLLGATE_STRIPE__READS_PER_SECOND": "25",
    "TOLLGATE_WEBHOOKS__RETRY_SECONDS_MAX": "3",
    "TOLLGATE_WEBHOOKS__POLL_INTERVAL_SECONDS": "10",
    "TOLLGATE_WEBHOOKS__POLL_SETTLING_SECONDS": "5",
    # A customer's first hours of usage are no anomaly here, however the traffic falls.
    "TOLLGATE_ANOMALY__ENABLED": "false",
}


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything, running."""

    cast: Cast
    cluster: KafkaCluster
    postgres: LocalPostgres
    ledger_url: str
    """Directly, without a proxy."""
    stack: Stack
    shop: Shop
    control: StandInControl
    proxy: ChaosProxy
    processes: Processes
    disks: dict[str, Disk]
    token: str
    ingest_urls: tuple[str, ...]
    """Through the proxy, as gateways go."""

    def wait_ready(self, timeout_seconds: float) -> list[str]:
        """Wait until every process is ready; returns the names of those that are not in time."""
        deadline = time.monotonic() + timeout_seconds
        waiting = list(self.processes.members.values())
        while waiting and time.monotonic() < deadline:
            waiting = [process for process in waiting if not process.ready()]
            time.sleep(0.1)
        return [process.name for process in waiting]


@contextmanager
def prepared_ground(directory: Path, cast: Cast, seed: int) -> Iterator[Ground]:
    """Put everything up, in a directory of its own; nothing of it is left outside. Raises PartUnavailable, PartFailed."""
    with ExitStack() as stack:
        proxy = stack.enter_context(ChaosProxy(seed))
        pids: dict[str, Callable[[], int | None]] = {}
        disks = {
            name: make_disk(directory / name, lambda name=name: pids[name]())  # type: ignore[misc]
            for name in FULL_DISKS
        }
        for disk in disks.values():
            stack.callback(disk.close)
        postgres = stack.enter_context(
            LocalPostgres(directory / "postgres", environment=_without_others(os.environ))
        )
        cluster = KafkaCluster(
            directory,
            doors=(*(service.upper() for service in SERVICES), OPERATORS),
            in_front=lambda node, door, port: (
                port if door == OPERATORS else proxy.add(_kafka_link(node, door), port)
            ),
        )
        stack.enter_context(cluster)
        stand_in = stack.enter_context(StripeStandIn.start(directory / "stripe.sqlite3"))
        ledger_url = postgres.create_database("storm")
        services = stack.enter_context(_services(directory, cast, cluster, ledger_url, stand_in, proxy))
        shop = stack.enter_context(Shop(stand_in.base_url, services.settings.stripe_key))
        control = stack.enter_context(StandInControl(stand_in.base_url))
        token = _initialise(services, shop, control, proxy)
        members = _members(services, cast, cluster, postgres, stand_in)
        pids |= {name: member.pid for name, member in members.items()}
        ground = Ground(
            cast=cast,
            cluster=cluster,
            postgres=postgres,
            ledger_url=ledger_url,
            stack=services,
            shop=shop,
            control=control,
            proxy=proxy,
            processes=Processes(members, lambda name: _log_of(directory, services, cluster, postgres, name)),
            disks=disks,
            token=token,
            ingest_urls=tuple(
                f"http://{LOOPBACK}:{proxy.add(f'clients:{name}', services.ports[name])}"
                for name in cast.ingest
            ),
        )
        services.start(*(name for names in cast.services.values() for name in names))
        yield ground


def _without_others(environment: os._Environ[str]) -> dict[str, str]:
    """Without DATABASE_URL: a server somebody else runs is not ours to kill."""
    return {name: value for name, value in environment.items() if name != "DATABASE_URL"}


def _kafka_link(node: int, door: str) -> str:
    return f"kafka-{node}:{'peers' if door == PEERS else door.lower()}"


def _services(
    directory: Path,
    cast: Cast,
    cluster: KafkaCluster,
    ledger_url: str,
    stand_in: StripeStandIn,
    proxy: ChaosProxy,
) -> Stack:
    """Every service, not started, each on its own ways to the parts."""
    stack = Stack(
        StackSettings(
            directory=directory,
            bootstrap_servers=cluster.bootstrap(OPERATORS),
            ledger_url=ledger_url,
            stripe_url=stand_in.base_url,
            capture=CAPTURE,
            extra=_SETTINGS,
        )
    )
    ledger, stripe = urlsplit(ledger_url), urlsplit(stand_in.base_url)
    for service, names in cast.services.items():
        assert stripe.port is not None
        stripe_port = proxy.add(f"stripe:{service}", stripe.port)
        for name in names:
            if name != service:
                stack.add_instance(name, service=service)
            assert ledger.port is not None
            port = proxy.add(f"ledger:{name}", ledger.port)
            netloc = f"{ledger.username}@{LOOPBACK}:{port}"
            stack.configure(
                name,
                TOLLGATE_KAFKA__BOOTSTRAP_SERVERS=cluster.bootstrap(service.upper()),
                TOLLGATE_LEDGER__URL=urlunsplit(ledger._replace(netloc=netloc)),
                TOLLGATE_STRIPE__API_BASE=f"http://{LOOPBACK}:{stripe_port}",
            )
    return stack


def _initialise(stack: Stack, shop: Shop, control: StandInControl, proxy: ChaosProxy) -> str:
    """Topics, ledger, meters and the webhook endpoint; returns a gateway's token."""
    control.set_clock(yesterday_s(int(time.time())))
    port = proxy.add("hooks:webhooks", stack.ports["webhooks"])
    secret = shop.register_webhooks(f"http://{LOOPBACK}:{port}/stripe/webhooks")
    stack.configure("webhooks", TOLLGATE_STRIPE__WEBHOOK_SECRETS=secret)
    stack.tollgate("init")
    stack.tollgate("meters", "apply", str(METERS), "--yes")
    # Stripe delivers some events twice and none in order.
    control.config(webhooks={"duplicate_per_10_000": 1_000, "reorder_window_ms": 1_000})
    return stack.tollgate("tokens", "create", "storm").strip()


def _members(
    stack: Stack, cast: Cast, cluster: KafkaCluster, postgres: LocalPostgres, stand_in: StripeStandIn
) -> dict[str, Process]:
    members = [_service(stack, name) for names in cast.services.values() for name in names]
    members += [_broker(node) for node in cluster.nodes]
    members.append(
        Process(
            name="postgres",
            pid=lambda: postgres.pid if postgres.running else None,
            end=lambda number: _ended(postgres.kill if number is signal.SIGKILL else postgres.stop),
            start=postgres.start,
            ready=lambda: postgres.running,
            exit_code=lambda: None,
            is_part=True,
        )
    )
    members.append(
        Process(
            name="stripe",
            pid=lambda: stand_in.pid if stand_in.running else None,
            end=lambda number: _ended(stand_in.kill if number is signal.SIGKILL else stand_in.stop),
            start=stand_in.restart,
            ready=lambda: stand_in.running,
            exit_code=lambda: None,
            is_part=True,
        )
    )
    return {member.name: member for member in members}


def _service(stack: Stack, name: str) -> Process:
    child = stack.child(name)
    return Process(
        name=name,
        pid=lambda: child.pid if child.running else None,
        end=lambda number: _end_child(child, number),
        start=lambda: stack.start(name, wait=False),
        ready=lambda: _answers_ready(f"{stack.url(name)}/readyz"),
        exit_code=lambda: child.wait(1.0),
    )


def _broker(node: Node) -> Process:
    child = node.process.child
    return Process(
        name=f"broker-{node.number}",
        pid=lambda: child.pid if child.running else None,
        end=lambda number: _end_child(child, number),
        start=node.process.launch,
        ready=node.serves,
        exit_code=lambda: child.wait(1.0),
        is_part=True,
    )


def _end_child(child: Child, number: signal.Signals) -> int:
    return child.kill() if number is signal.SIGKILL else child.stop(number, 30.0)


def _ended(end: Callable[[], None]) -> int:
    end()
    return 0


def _answers_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    return False


def _log_of(directory: Path, stack: Stack, cluster: KafkaCluster, postgres: LocalPostgres, name: str) -> Path:
    logs = {f"broker-{node.number}": node.process.child.log_path for node in cluster.nodes}
    return logs.get(name) or (postgres.log_path if name == "postgres" else directory / f"{name}.log")
