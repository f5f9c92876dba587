"""Kafka for tests: one broker a session, a fresh topic prefix for each test."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from sandbox.broker import EmbeddedBroker
from sandbox.child import PartUnavailable
from sandbox.local_kafka import LocalKafka
from tollgate.runtime.kafka import admin_client
from tollgate.runtime.settings import KafkaSettings


class BrokerSettings(KafkaSettings):
    """`KafkaSettings` that also say whether the broker is the embedded one."""

    ephemeral: bool = False


class KafkaPart:
    """A Kafka: the one at `external` (an address), or one of our own that may be killed."""

    def __init__(self, external: str = "") -> None:
        self._external = external
        self._local: LocalKafka | None = None

    @property
    def bootstrap(self) -> str:
        return self._external or self.local.bootstrap

    @property
    def external(self) -> bool:
        return bool(self._external)

    @property
    def local(self) -> LocalKafka:
        """The broker as a process. Raises PartUnavailable for one somebody else runs."""
        if self._external:
            raise PartUnavailable("the broker of KAFKA_BOOTSTRAP_SERVERS is not ours to be started or killed")
        if self._local is None:
            self._local = LocalKafka()
        return self._local

    def absent(self) -> str | None:
        """Why there can be no Kafka here; None when there can. Fetches the jars the first time."""
        if self._external:
            return None
        try:
            self.local.prepare()
        except PartUnavailable as error:
            return str(error)
        return None

    def start(self) -> None:
        """Start it unless it runs. Raises PartUnavailable or PartFailed."""
        if not self._external and not self.local.running:
            self.local.start()

    def close(self) -> None:
        if self._local is not None:
            self._local.close()

    def fresh(self) -> BrokerSettings:
        """Settings with a prefix nobody has used."""
        return fresh_settings(self.bootstrap, ephemeral=False)


class EmbeddedPart:
    """The session's embedded broker, started when first asked for."""

    def __init__(self) -> None:
        self._broker: EmbeddedBroker | None = None

    def fresh(self) -> BrokerSettings:
        """Settings with a prefix nobody has used. Raises PartUnavailable or PartFailed."""
        if self._broker is None:
            broker = EmbeddedBroker()
            broker.start()
            self._broker = broker
        return fresh_settings(self._broker.bootstrap, ephemeral=True)

    def close(self) -> None:
        if self._broker is not None:
            self._broker.close()


def fresh_settings(bootstrap: str, *, ephemeral: bool) -> BrokerSettings:
    """Settings for the broker at `bootstrap`, with a topic prefix of their own."""
    return BrokerSettings(
        bootstrap_servers=bootstrap, topic_prefix=f"t{uuid.uuid4().hex[:12]}.", ephemeral=ephemeral
    )


async def delete_topics(settings: KafkaSettings, names: Sequence[str]) -> None:
    """Delete topics by bare name and wait until the broker shows them no longer."""
    full = {settings.topic_name(name) for name in names}
    async with admin_client(settings) as admin:
        await admin.delete_topics(sorted(full))
        while full & set(await admin.list_topics()):  # noqa: ASYNC110 - a broker has no event to wait for
            await asyncio.sleep(0.02)
