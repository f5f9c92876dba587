"""A Kafka cluster on this machine: several real brokers (KRaft), each a process of its own, one of them may be killed.

Owns their addresses and directories. It refuses to know how a broker's process is run (`sandbox.kafka_process`), what
topics there are, and who stands in front of a broker.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.child import PartFailed
from sandbox.kafka_jars import RECIPE_DIR
from sandbox.kafka_process import START_SECONDS, KafkaProcess, new_cluster_id
from sandbox.ports import LOOPBACK, answers, free_ports

PEERS = "PEERS"
"""The door by which brokers reach each other."""


@dataclass(frozen=True, slots=True)
class Node:
    """One broker."""

    number: int
    """From 1."""
    process: KafkaProcess
    ports: Mapping[str, int]
    """Where it listens, by door."""
    advertised: Mapping[str, int]
    """Where it tells others that it listens, by door."""
    controller_port: int

    def serves(self) -> bool:
        """Whether it has started and listens at every door."""
        return self.process.says_started() and all(answers(port) for port in self.ports.values())


class KafkaCluster:
    """A context manager: all brokers started inside, stopped outside.

    `doors` are listeners for one kind of client each (capital letters). `in_front(node, door, port)` says which port
    of loopback is told to clients instead of the one listened on: that of a proxy, say. `data_dirs` puts the
    directory of single nodes elsewhere; they exist.
    """

    def __init__(
        self,
        directory: Path,
        *,
        doors: Sequence[str],
        in_front: Callable[[int, str, int], int] = lambda _node, _door, port: port,
        data_dirs: Mapping[int, Path] | None = None,
        nodes: int = 3,
        heap_mib: int = 320,
    ) -> None:
        names = (PEERS, *doors)
        made: list[Node] = []
        for number in range(1, nodes + 1):
            data_dir = (data_dirs or {}).get(number, directory / f"broker-{number}")
            data_dir.mkdir(parents=True, exist_ok=True)
            *door_ports, controller_port = free_ports(len(names) + 1)
            ports = dict(zip(names, door_ports, strict=True))
            made.append(
                Node(
                    number,
                    KafkaProcess(f"broker-{number}", data_dir, heap_mib=heap_mib),
                    ports,
                    {door: in_front(number, door, port) for door, port in ports.items()},
                    controller_port,
                )
            )
        self.nodes = tuple(made)

    def bootstrap(self, door: str) -> str:
        """The addresses for `bootstrap_servers` of a door's clients."""
        return ",".join(f"{LOOPBACK}:{node.advertised[door]}" for node in self.nodes)

    def start(self) -> None:
        """Format every directory and start every broker. Raises PartUnavailable or PartFailed."""
        cluster = new_cluster_id()
        self.nodes[0].process.prepare()
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: self._format(node, cluster), self.nodes))
        for node in self.nodes:
            node.process.launch()
        for node in self.nodes:
            node.process.child.wait_until(node.serves, START_SECONDS)

    def stop(self) -> None:
        """SIGTERM one after the other, the last ones killed where no quorum is left to let them go."""
        for node in self.nodes:
            # The clean way out asks the controllers, of which there must be a majority.
            if node is self.nodes[0]:
                node.process.stop()
            else:
                node.process.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _format(self, node: Node, cluster: str) -> None:
        if node.process.properties.exists():
            raise PartFailed(f"{node.process.data_dir} was a broker's before")
        node.process.prepare()
        template = string.Template((RECIPE_DIR / "cluster.properties").read_text())
        every = {**node.ports, "CONTROLLER": node.controller_port}
        node.process.format(
            template.substitute(
                node=node.number,
                voters=",".join(f"{each.number}@{LOOPBACK}:{each.controller_port}" for each in self.nodes),
                listeners=_spell(every),
                advertised=_spell(node.advertised),
                protocols=",".join(f"{door}:PLAINTEXT" for door in every),
                peers_door=PEERS,
                log_dir=node.process.data_dir / "logs",
            ),
            cluster,
        )


def _spell(ports: Mapping[str, int]) -> str:
    return ",".join(f"{door}://{LOOPBACK}:{port}" for door, port in ports.items())
