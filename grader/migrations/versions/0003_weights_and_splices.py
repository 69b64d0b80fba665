"""How far a model is from its weights, and what it loses on text that is cut up and shuffled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("weights_distance", "splice_gap", "splice_gap_error"):
        op.add_column("perplexity_scores", sa.Column(name, sa.Double, nullable=True))
