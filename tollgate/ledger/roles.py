"""PostgreSQL roles: each owner may write its own tables and read all.

Owns the roles' names and grants. It refuses to know transactions and log-in users: the roles cannot log in; whoever
installs grants one to each service's user, or opens the ledger with `role=`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Engine, text

from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.tables import OWNERS

ROLES: Mapping[str, str] = {owner: f"tollgate_{owner}" for owner in OWNERS}
"""Each owner's role."""

_CREATE = """
DO $$ BEGIN
    CREATE ROLE {role} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""


def create_roles(engine: Engine) -> tuple[str, ...]:
    """Make the roles and set their rights; returns their names, or none on SQLite, which has no roles.

    Idempotent: rights are taken back first, so a table that changed hands is writable by its new owner alone. Needs
    CREATEROLE when a role is missing (roles belong to the whole server) and ownership of the tables. Raises
    LedgerRefused when either is missing.
    """
    if engine.dialect.name != "postgresql":
        return ()
    with ledger_transaction(engine) as connection:
        missing = set(ROLES.values()) - set(
            connection.execute(
                text("SELECT rolname FROM pg_roles WHERE rolname LIKE 'tollgate\\_%'")
            ).scalars()
        )
        for role in sorted(missing):
            connection.execute(text(_CREATE.format(role=role)))
        for owner in OWNERS:
            _grant(connection, owner)
    return tuple(ROLES.values())


def can_create_roles(engine: Engine) -> bool:
    """True when this user may make roles, or none is missing."""
    if engine.dialect.name != "postgresql":
        return True
    with ledger_transaction(engine) as connection:
        present = set(connection.execute(text("SELECT rolname FROM pg_roles")).scalars())
        allowed = connection.execute(
            text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
        ).scalar_one()
    return bool(allowed) or set(ROLES.values()) <= present


def _grant(connection: Connection, owner: str) -> None:
    role = ROLES[owner]
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    own = ", ".join(f'{schema}."{table.name}"' for table in OWNERS[owner])
    statements = [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}",
        # Taking back a table's rights does not take back a column's.
        f'REVOKE UPDATE (id) ON {schema}."catalogue_state" FROM {role}',
        f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM {role}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT INSERT, UPDATE, DELETE ON {own} TO {role}",
    ]
    if owner == "catalogue":
        statements.append(f'GRANT USAGE, SELECT ON SEQUENCE {schema}."meters_meter_id_seq" TO {role}')
    if owner == "meter":
        # SELECT … FOR SHARE asks for the right to update one column. `id` can only ever be 1, so this gives
        # nothing away.
        statements.append(f'GRANT UPDATE (id) ON {schema}."catalogue_state" TO {role}')
    for statement in statements:
        connection.execute(text(statement))
