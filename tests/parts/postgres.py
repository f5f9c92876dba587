"""PostgreSQL for tests: one server a session, a fresh database for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping

import psycopg

from sandbox.local_postgres import LocalPostgres


class PostgresPart:
    """A server: the one `environment` names in DATABASE_URL, or one of our own. What it makes it also drops."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Killing its processes loses nothing without fsync; losing the machine would, and tests do not do that.
        self.server = LocalPostgres(durable=False, environment=environment)
        self._templates: dict[str, str] = {}
        self._made: list[str] = []
        self._idle: dict[str, list[str]] = {}

    def fresh(self, template: str | None = None) -> str:
        """The URL of a new database: empty, or a copy of one made by `template`."""
        name = f"test_{uuid.uuid4().hex[:16]}"
        url = self.server.create_database(name, template=template)
        self._made.append(name)
        return url

    def template(self, key: str, build: Callable[[str], None]) -> str:
        """The name of a database that `build(url)` filled once this session: copying it is cheap.

        `build` must close its connections: a database somebody is in cannot be copied.
        """
        if key not in self._templates:
            url = self.fresh()
            build(url)
            self._templates[key] = url.rsplit("/", 1)[1].split("?", 1)[0]
        return self._templates[key]

    def borrow(self, key: str, build: Callable[[str], None]) -> str:
        """The URL of a database as `build(url)` leaves it: one given back and emptied, or a new one.

        Making and dropping a database costs a checkpoint each, hundreds of times what emptying its tables does.
        """
        idle = self._idle.setdefault(key, [])
        if idle:
            return idle.pop()
        url = self.fresh()
        build(url)
        return url

    def give_back(self, key: str, url: str) -> None:
        """Empty a borrowed database's tables for the next borrower; drop it where somebody still holds them."""
        try:
            with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as connection:
                connection.execute("SET lock_timeout = '500ms'")
                found = connection.execute(
                    "SELECT quote_ident(tablename) FROM pg_tables "
                    "WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
                )
                names = ", ".join(row[0] for row in found)
                # Names come from the catalogue, quoted by it.
                connection.execute(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        except psycopg.Error:
            self.drop(url)
        else:
            self._idle.setdefault(key, []).append(url)

    def drop(self, url: str) -> None:
        """Drop the database at `url`, whoever is still connected."""
        name = url.rsplit("/", 1)[1].split("?", 1)[0]
        self.server.drop_database(name)
        self._made.remove(name)

    def close(self) -> None:
        if self.server.external:
            for name in self._made:
                self.server.drop_database(name)
        self.server.close()
