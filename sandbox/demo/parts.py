"""What the demo runs on: a broker, a database, a stand-in for Stripe. Real ones are used where they are named.

Owns choosing and starting them. It refuses to know what is demonstrated.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.broker import EmbeddedBroker
from sandbox.local_kafka import LocalKafka
from sandbox.stripe.process import StripeStandIn


@dataclass(frozen=True, slots=True)
class Parts:
    """Where everything is."""

    bootstrap_servers: str
    topic_prefix: str
    ephemeral: bool
    ledger_url: str
    stripe: StripeStandIn


@contextmanager
def demo_parts(directory: Path, *, broker: str, say: Callable[[str], None]) -> Iterator[Parts]:
    """Start what is not already running somewhere; stop it afterwards.

    `broker`: `embedded`, `kafka` (a real one from Maven jars on this machine). KAFKA_BOOTSTRAP_SERVERS and
    DATABASE_URL name real ones instead; topics then get a prefix of their own and are left behind.
    """
    with ExitStack() as stack:
        external = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        prefix = ""
        if external:
            bootstrap, ephemeral, prefix = external, False, f"demo-{uuid.uuid4().hex[:8]}."
            say(f"Kafka     {bootstrap} (yours), topics {prefix}*")
        elif broker == "kafka":
            kafka = stack.enter_context(LocalKafka(directory / "kafka"))
            bootstrap, ephemeral = kafka.bootstrap, False
            say(f"Kafka     {bootstrap} (Apache Kafka, started for this)")
        else:
            embedded = stack.enter_context(EmbeddedBroker(directory / "broker"))
            bootstrap, ephemeral = embedded.bootstrap, True
            say(f"Kafka     {bootstrap} (embedded broker, in memory, started for this)")
        ledger_url = os.environ.get("DATABASE_URL") or f"sqlite:///{directory / 'ledger.sqlite3'}"
        say(f"Ledger    {'yours, from DATABASE_URL' if os.environ.get('DATABASE_URL') else ledger_url}")
        stand_in = stack.enter_context(StripeStandIn.start(directory / "stripe.sqlite3"))
        say(f"Stripe    {stand_in.base_url} (stand-in, started for this)")
        yield Parts(bootstrap, prefix, ephemeral, ledger_url, stand_in)
