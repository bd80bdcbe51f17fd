"""A place for the films, the model as something to search by, and the index of the search.

MySQL keeps each step of an upgrade that was killed, so every step first looks whether it was done.
"""

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"

ROWS = 500  # read and filled at a time
diagnoses = sa.table("diagnoses", sa.column("number"), sa.column("record"), sa.column("model"))


def upgrade() -> None:
    """Make the table of films, add the model and fill it from the records, then index."""
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table("films"):
        _make_films()
    if "model" not in {column["name"] for column in inspector.get_columns("diagnoses")}:
        op.add_column("diagnoses", sa.Column("model", sa.String(255)))
    _fill_model(op.get_bind())
    if "diagnoses_search" not in {index["name"] for index in inspector.get_indexes("diagnoses")}:
        op.create_index("diagnoses_search", "diagnoses", ["created_at", "number", "status", "label", "model"])


def _make_films() -> None:
    op.create_table(
        "films",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("piece", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql"), nullable=False),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )


def _fill_model(connection: sa.Connection) -> None:
    number, last = diagnoses.c.number, 0
    fill = sa.update(diagnoses).where(number == sa.bindparam("of")).values(model=sa.bindparam("found"))
    empty = sa.select(number, diagnoses.c.record).where(diagnoses.c.model.is_(None)).order_by(number).limit(ROWS)
    while rows := connection.execute(empty.where(number > last)).all():
        connection.execute(fill, [{"of": row.number, "found": _model(row.record)} for row in rows])
        last = rows[-1].number


def _model(record: str) -> str | None:
    model = json.loads(record)["model"]
    return model and model["id"][:255]
