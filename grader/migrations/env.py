"""Run the migrations on the connection, and in the transaction, that `grader.gradebook` hands over."""

from __future__ import annotations

from alembic import context

# SQLite can roll back CREATE and ALTER; Alembic assumes that it cannot unless told. With a transaction
# already open on the connection, Alembic commits nothing by itself: schema and version stand together.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
