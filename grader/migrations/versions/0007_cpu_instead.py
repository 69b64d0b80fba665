"""Whether a notebook that was to run on a GPU ran on the CPU."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("grades", sa.Column("cpu_instead", sa.Boolean, nullable=False, server_default=sa.false()))
