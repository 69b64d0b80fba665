"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

# For SQLite, PostgreSQL and MySQL. MySQL keeps each statement before an interruption: there, leave out what is done already.


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
