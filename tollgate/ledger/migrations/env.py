"""What Alembic runs: the migrations, on the connection and in the transaction `migrate` gives it.

Owns nothing else. It refuses to open a connection of its own: a ledger's address is the caller's business.
"""

from __future__ import annotations

from alembic import context

from tollgate.ledger.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # The caller's transaction is the only one: a migration that fails half way leaves no trace, on SQLite too.
    transactional_ddl=True,
    transaction_per_migration=False,
)
context.run_migrations()
