"""The first table of diagnoses: the record, and by what it can be searched."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table, unless an upgrade that was killed here has made it."""
    if sa.inspect(op.get_bind()).has_table("diagnoses"):
        return
    op.create_table(
        "diagnoses",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql"), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("label", sa.String(255)),
        sa.Column("sha256", sa.String(64)),
        sa.Column("name", sa.String(255)),
        sa.Column("record", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql"), nullable=False),
        sa.UniqueConstraint("id", name="diagnoses_id"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
