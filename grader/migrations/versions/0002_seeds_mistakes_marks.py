"""Seeds of checks, names of mistakes, reported perplexities; and the marks that people give."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from grader.migrations.postgresql import grows_only

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("grades", sa.Column("seed", sa.BigInteger, nullable=True))
    op.add_column("check_results", sa.Column("mistake", sa.Text, nullable=False, server_default=""))
    op.add_column("perplexity_scores", sa.Column("reported", sa.Double, nullable=True))
    op.create_table(
        "marks",
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("student_id", "item")),
        sa.Column("points", sa.Double, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("comment", "submission_sha256")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("marked_by", "marked_at")),
    )
    op.create_index("marks_by_student", "marks", ["student_id"])
    if op.get_context().dialect.name == "postgresql":
        for statement in grows_only("marks"):
            op.execute(statement)
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER marks_no_{verb.lower()} BEFORE {verb} ON marks "
            f"BEGIN SELECT RAISE(ABORT, 'the gradebook only grows: no {verb} on marks'); END"
        )
