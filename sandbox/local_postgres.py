"""Local PostgreSQL: a real server on this machine, without a container; or a server somebody else runs.

Owns a data directory, the server's process, and making databases in it. It refuses to know
any schema. `python -m sandbox.local_postgres` keeps one running in the foreground.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from sandbox.child import Child, PartFailed, PartUnavailable
from sandbox.ports import LOOPBACK, answers, free_port
from sandbox.postgres_binaries import find_binaries, run_as, unprivileged_account, without_pg_names

SUPERUSER = "postgres"

_SCHEME = "postgresql+psycopg"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_START_ATTEMPTS = 3
_LINGER_SECONDS = 10.0
"""After kill -9 the server's own children need a moment to notice; until then its shared memory is in use."""


class LocalPostgres:
    """A server with trusting authentication on loopback. A context manager: started inside, stopped outside.

    With DATABASE_URL in the environment that server is used instead: databases are made in it, and starting,
    stopping and killing it are not ours to do (PartUnavailable). `durable=False` leaves out fsync: commits then
    survive the death of the server's processes, not of the machine.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int | None = None,
        durable: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = dict(os.environ if environment is None else environment)
        self._external_url = _external_url(self._environment)
        self._own_dir = data_dir is None
        self.data_dir = (data_dir or Path(tempfile.mkdtemp(prefix="tollgate-postgres-"))).resolve()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._cluster = self.data_dir / "cluster"
        self._child = Child("PostgreSQL", self.data_dir / "postgres.log")
        self._account = unprivileged_account()
        self._fixed_port = port is not None
        self._port = port or free_port()
        self._durable = durable
        self._binaries: Path | None = None

    @property
    def external(self) -> bool:
        """Whether this is a server somebody else runs."""
        return self._external_url is not None

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the server's process lives; for somebody else's server, always."""
        return self.external or self._child.running

    @property
    def log_path(self) -> Path:
        return self._child.log_path

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of one of its databases."""
        if self._external_url is None:
            return f"{_SCHEME}://{SUPERUSER}@{LOOPBACK}:{self._port}/{quote(database)}"
        parts = urlsplit(self._external_url)
        return urlunsplit((_SCHEME, parts.netloc, "/" + quote(database), parts.query, ""))

    def prepare(self) -> None:
        """Find binaries this account can run. Raises PartUnavailable, saying what to install."""
        if self._binaries is None and not self.external:
            self._binaries = find_binaries(self._environment, self._account)

    def start(self) -> None:
        """Make the data directory if it is new, start the server and wait until it answers.

        Raises PartUnavailable or PartFailed.
        """
        if self.external:
            self._execute(sql.SQL("SELECT 1"))
            return
        self.prepare()
        if not (self._cluster / "PG_VERSION").exists():
            self._initialise()
        deadline = time.monotonic() + _LINGER_SECONDS
        attempts = _START_ATTEMPTS
        while True:
            try:
                self._start_once()
                self._fixed_port = True
                return
            except PartFailed as error:
                attempts -= 1
                if "shared memory" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.1)
                elif attempts and not self._fixed_port:
                    self._port = free_port()
                else:
                    raise

    def stop(self) -> None:
        """Fast shutdown: connections are cut, the server ends in good order."""
        self._refuse_external("stopped")
        # SIGINT is PostgreSQL's "fast" mode; SIGTERM would wait for every client to leave.
        self._child.stop(signal.SIGINT, _STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL the server; its children follow by themselves."""
        self._refuse_external("killed")
        self._child.kill()

    def restart(self) -> None:
        """Stop (if running) and start again: same address, same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and remove a temporary data directory. A server somebody else runs is left alone."""
        if not self.external:
            self.stop()
        if self._own_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Make a database, empty or a copy of `template`, and return its URL. Nobody may be in the template."""
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template or "template0")
            )
        )
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database if it is there, whoever is still connected."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

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

    def _initialise(self) -> None:
        assert self._binaries is not None
        if self._account is not None:
            os.chown(self.data_dir, self._account.uid, self._account.gid)
            # The server's account must reach the directory; mkdtemp makes it private to us.
            self.data_dir.chmod(0o700)
        command = [
            *(str(self._binaries / "initdb"), "-D", str(self._cluster), "-U", SUPERUSER),
            *("-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"),
        ]
        done = run_as(self._account, command, self.data_dir, self._environment)
        if done.returncode:
            shutil.rmtree(self._cluster, ignore_errors=True)
            raise PartFailed(f"PostgreSQL could not initialise {self._cluster}\n{done.stdout}{done.stderr}")

    def _start_once(self) -> None:
        assert self._binaries is not None
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(self._port),
            # A socket file's path has a length limit that a temporary directory may exceed.
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
        }
        self._child.start(
            [
                self._binaries / "postgres",
                *("-D", self._cluster),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            cwd=self.data_dir,
            env=without_pg_names(self._environment),
            account=self._account,
        )
        self._child.wait_until(self._serves, _START_SECONDS)

    def _serves(self) -> bool:
        if not answers(self._port):
            return False
        try:
            self._execute(sql.SQL("SELECT 1"))
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        """Run one statement outside a transaction, in the maintenance database (or the one DATABASE_URL names)."""
        name = "postgres"
        if self._external_url is not None:
            name = urlsplit(self._external_url).path.lstrip("/") or name
        url = self.url(name).replace(_SCHEME, "postgresql", 1)
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)

    def _refuse_external(self, verb: str) -> None:
        if self.external:
            raise PartUnavailable(f"the server of DATABASE_URL is not ours to be {verb}")


def _external_url(environment: Mapping[str, str]) -> str | None:
    url = environment.get("DATABASE_URL", "")
    return url if urlsplit(url).scheme.split("+")[0] in ("postgresql", "postgres") else None


def main(arguments: list[str] | None = None) -> int:
    """Keep a server running until SIGINT or SIGTERM; prints a database's URL on the first line of stdout."""
    parser = argparse.ArgumentParser(
        prog="local_postgres", description="Run one PostgreSQL server on loopback."
    )
    parser.add_argument("--data-dir", type=Path, help="keep the data here over runs (default: temporary)")
    parser.add_argument("--port", type=int, help="port to listen on (default: a free one)")
    chosen = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with LocalPostgres(chosen.data_dir, port=chosen.port, environment=_own(os.environ)) as postgres:
            sys.stdout.write(postgres.url(SUPERUSER) + "\n")
            sys.stdout.flush()
            sys.stderr.write(
                f"PostgreSQL runs (pid {postgres.pid}, data {postgres.data_dir}); Ctrl-C ends it.\n"
            )
            while not ended.wait(0.5):
                postgres.pid  # noqa: B018 - raises when the server has ended by itself
    except (PartUnavailable, PartFailed) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _own(environment: Mapping[str, str]) -> dict[str, str]:
    """Without DATABASE_URL: whoever asks for a server of their own gets one."""
    return {name: value for name, value in environment.items() if name != "DATABASE_URL"}


if __name__ == "__main__":
    sys.exit(main())
