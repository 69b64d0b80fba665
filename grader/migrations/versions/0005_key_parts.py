"""What each grade's key is the hash of; earlier grades have none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("grades", sa.Column("key_parts", sa.Text, nullable=True))
