"""The SQLite file everything is kept in.

Owns: the schema, transactions, and the generic store of API objects. Refuses to know: what any object means.

Every answer leaves only after its transaction is committed. The journal is a WAL with ``synchronous=NORMAL``:
a commit survives the death of the process (SIGKILL included), though not a power cut.
"""

import json
import secrets
import sqlite3
import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 24  # as long as Stripe's own random part

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, created INTEGER NOT NULL,
    customer TEXT, parent TEXT, due INTEGER, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS objects_kind ON objects (kind, seq);
CREATE INDEX IF NOT EXISTS objects_parent ON objects (parent, kind, seq) WHERE parent IS NOT NULL;
CREATE INDEX IF NOT EXISTS objects_customer ON objects (customer, kind, seq) WHERE customer IS NOT NULL;
CREATE INDEX IF NOT EXISTS objects_due ON objects (due, seq) WHERE due IS NOT NULL;
CREATE TABLE IF NOT EXISTS meter_events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, identifier TEXT NOT NULL, event_name TEXT NOT NULL, meter TEXT,
    customer TEXT, value TEXT, timestamp INTEGER NOT NULL, received_ms INTEGER NOT NULL, payload TEXT NOT NULL,
    status TEXT NOT NULL, error_code TEXT, error_message TEXT, reported INTEGER NOT NULL DEFAULT 1);
CREATE INDEX IF NOT EXISTS meter_events_identifier ON meter_events (identifier);
CREATE INDEX IF NOT EXISTS meter_events_usage ON meter_events (meter, customer, timestamp);
CREATE INDEX IF NOT EXISTS meter_events_unreported ON meter_events (received_ms) WHERE reported = 0;
CREATE TABLE IF NOT EXISTS usage_records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, timestamp INTEGER NOT NULL,
    quantity INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS usage_records_item ON usage_records (item, timestamp);
CREATE TABLE IF NOT EXISTS idempotency (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, status INTEGER NOT NULL, headers TEXT NOT NULL,
    body TEXT NOT NULL, created_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL, event_type TEXT NOT NULL, endpoint TEXT NOT NULL,
    body TEXT NOT NULL, created_ms INTEGER NOT NULL, state TEXT NOT NULL, next_attempt_ms INTEGER,
    attempts TEXT NOT NULL DEFAULT '[]');
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (next_attempt_ms) WHERE next_attempt_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS faults (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, rule TEXT NOT NULL,
    matched INTEGER NOT NULL DEFAULT 0, hits INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS requests (
    method TEXT NOT NULL, path TEXT NOT NULL, outcome TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (method, path, outcome)) WITHOUT ROWID;
"""


def new_id(prefix: str) -> str:
    """A fresh random id, ``prefix_`` and 24 letters and digits."""
    # Bytes modulo 62 prefer some letters slightly, which does not matter to an id.
    letters = (_ALPHABET[byte % len(_ALPHABET)] for byte in secrets.token_bytes(_ID_LENGTH))
    return f"{prefix}_{''.join(letters)}"


class State:
    """One open state file. Not for several threads: the process answers from one event loop."""

    def __init__(self, path: Path | str) -> None:
        self.connection = sqlite3.connect(str(path), isolation_level=None, cached_statements=256)
        self.connection.row_factory = sqlite3.Row
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file; nothing uncommitted is kept."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed together, or, on any exception, not at all."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def setting(self, name: str) -> Any:
        """A stored setting, decoded, or None."""
        row = self.connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row["value"])

    def set_setting(self, name: str, value: object) -> None:
        """Store a setting (anything JSON can hold)."""
        self.connection.execute(
            "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, json.dumps(value)),
        )

    def next_number(self, name: str) -> int:
        """The next of a named sequence, from 1."""
        number = int(self.setting(name) or 0) + 1
        self.set_setting(name, number)
        return number

    def insert(
        self,
        kind: str,
        body: Mapping[str, object],
        *,
        customer: str | None = None,
        parent: str | None = None,
        due: int | None = None,
    ) -> None:
        """Add an object; ``due`` is when (epoch seconds) the schedule must look at it."""
        self.connection.execute(
            "INSERT INTO objects (id, kind, created, customer, parent, due, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (body["id"], kind, body["created"], customer, parent, due, json.dumps(body)),
        )

    def update(self, body: Mapping[str, object]) -> None:
        """Replace an object's body."""
        self.connection.execute("UPDATE objects SET body = ? WHERE id = ?", (json.dumps(body), body["id"]))

    def set_due(self, object_id: str, due: int | None) -> None:
        """Move or clear the moment at which the schedule must look at an object."""
        self.connection.execute("UPDATE objects SET due = ? WHERE id = ?", (due, object_id))

    def delete(self, object_id: str) -> None:
        """Forget an object."""
        self.connection.execute("DELETE FROM objects WHERE id = ?", (object_id,))

    def find(self, kind: str, object_id: str) -> JsonObject | None:
        """An object by kind and id, or None."""
        row = self.connection.execute(
            "SELECT body FROM objects WHERE id = ? AND kind = ?", (object_id, kind)
        ).fetchone()
        return None if row is None else json.loads(row["body"])

    def find_any(self, object_id: str) -> tuple[str, JsonObject] | None:
        """An object's kind and body by id alone, or None."""
        row = self.connection.execute("SELECT kind, body FROM objects WHERE id = ?", (object_id,)).fetchone()
        return None if row is None else (row["kind"], json.loads(row["body"]))

    def scan(
        self,
        kind: str,
        *,
        customer: str | None = None,
        parent: str | None = None,
        newest_first: bool = True,
        after: str | None = None,
        created: tuple[int, int] = (0, 2**62),
    ) -> Iterator[JsonObject]:
        """Objects of a kind in order of creation; ``after`` starts behind that id in the chosen direction."""
        clauses, values = ["kind = ?", "created BETWEEN ? AND ?"], [kind, created[0], created[1]]
        for column, value in (("customer", customer), ("parent", parent)):
            if value is not None:
                clauses.append(f"{column} = ?")
                values.append(value)
        if after is not None:
            behind = "<" if newest_first else ">"
            clauses.append(f"seq {behind} (SELECT seq FROM objects WHERE id = ?)")  # noqa: S608 - see below
            values.append(after)
        order = "DESC" if newest_first else "ASC"
        # Column names and direction come from the two literals above, never from a request.
        sql = f"SELECT body FROM objects WHERE {' AND '.join(clauses)} ORDER BY seq {order}"  # noqa: S608
        for row in self.connection.execute(sql, values):
            yield json.loads(row["body"])

    def clear(self) -> None:
        """Forget everything but the account. Call inside a transaction."""
        for table in (
            "objects",
            "meter_events",
            "usage_records",
            "idempotency",
            "deliveries",
            "faults",
            "requests",
        ):
            self.connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of ours
        self.connection.execute("DELETE FROM settings WHERE name NOT LIKE 'account%'")

    def is_empty(self) -> bool:
        """Whether nothing has been created or received yet."""
        row = self.connection.execute(
            "SELECT 1 FROM objects UNION ALL SELECT 1 FROM meter_events LIMIT 1"
        ).fetchone()
        return row is None

    def earliest_due(self, until: int) -> tuple[str, str, int] | None:
        """The (kind, id, due) of the object due first, if that is not after ``until`` (epoch seconds)."""
        row = self.connection.execute(
            "SELECT kind, id, due FROM objects WHERE due <= ? ORDER BY due, seq LIMIT 1", (until,)
        ).fetchone()
        return None if row is None else (row["kind"], row["id"], row["due"])

    def count_request(self, method: str, path: str, outcome: str) -> None:
        """Add one to the tally of answered (or deliberately unanswered) requests."""
        self.connection.execute(
            "INSERT INTO requests VALUES (?, ?, ?, 1) "
            "ON CONFLICT (method, path, outcome) DO UPDATE SET count = count + 1",
            (method, path, outcome),
        )
