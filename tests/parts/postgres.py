"""PostgreSQL for tests: one server a session, a fresh database for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping

from sandbox.local_postgres import LocalPostgres


class PostgresPart:
    """A server: the one `environment` names in DATABASE_URL, or one of our own. What it makes it also drops."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Killing its processes loses nothing without fsync; losing the machine would, and tests do not do that.
        self.server = LocalPostgres(durable=False, environment=environment)
        self._templates: dict[str, str] = {}
        self._made: list[str] = []

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
