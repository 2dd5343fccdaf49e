"""What Alembic runs for each migration; the connection and its transaction are those of `Database.migrate`."""

from __future__ import annotations

from alembic import context

from edgekit.fleet.storage.tables import metadata

connection = context.config.attributes["connection"]
# SQLite changes a table by copying it.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
