"""The tables of the history, and how each kind of database that can hold them is opened.

The revisions under migrations/ make these tables; a test holds the two against each other.
"""

import errno
import json
import re
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Column, String, event
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError

from pneumo_lib.errors import UsageError

PIECE = 1 << 18  # bytes of a film in one row
LONGEST = 255  # characters of a name, a label or a model's id that can be searched; the record holds the whole
BUSY_S = 30  # how long a writer of SQLite waits for another one, unless it is told to wait less
CONNECT_S, WRITE_S, RECYCLE_S = 2, 10, 280  # MySQL; firewalls like to drop what was silent for five minutes
CONNECTIONS = 20  # kept open; to make one takes PyMySQL 50 ms
FULL_MYSQL = {errno.ENOSPC, 1021, 1114}
LOCKED_SQLITE, LOCKED_MYSQL = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}, {1205}
READ_ONLY_MYSQL = {1142, 1290, 1792, 1836}  # no right to write, or nobody has it at the moment
BEATEN_MYSQL = {1020, 1213}  # another transaction changed the row first, a deadlock: undone as a whole
NEARLY_FULL = 1 << 20  # bytes left on a disk on which SQLite can fail without saying why

# utf8mb4_bin: MySQL then tells apart what SQLite tells apart, `a` from `A` and `é` from `e`.
MYSQL = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

metadata = sa.MetaData()
diagnoses = sa.Table(
    "diagnoses",
    metadata,
    Column("number", sa.Integer, primary_key=True),  # order of saving; tells apart what has one time
    Column("id", String(36), nullable=False),
    Column("created_at", sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql"), nullable=False),  # UTC
    Column("status", String(16), nullable=False),
    Column("label", String(LONGEST)),
    Column("sha256", String(64)),
    Column("name", String(LONGEST)),
    Column("record", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql"), nullable=False),
    Column("model", String(LONGEST)),
    sa.UniqueConstraint("id", name="diagnoses_id"),
    # In the order of the pages and with all that can be searched: a page is found without opening a single record.
    sa.Index("diagnoses_search", "created_at", "number", "status", "label", "model"),
    **MYSQL,
)
# MySQL takes 16 MiB at once and bytes travel in two digits each, so a film of 8 MiB would not get through in one piece.
films = sa.Table(
    "films",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("part", sa.Integer, primary_key=True, autoincrement=False),
    Column("piece", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql"), nullable=False),
    **MYSQL,
)


def row(record: dict) -> dict[str, object]:
    """The columns that hold a record."""
    moment = datetime.fromisoformat(record["created_at"]).astimezone(UTC)
    return {
        "id": record["id"],
        "created_at": moment.replace(tzinfo=None),  # databases keep no zone
        "status": record["status"],
        "label": _searchable(record["label"]),
        "sha256": record["file"]["sha256"],
        "name": _searchable(record["file"]["name"]),
        "record": _storable(json.dumps(record, ensure_ascii=False)),
        "model": _searchable((record["model"] or {}).get("id")),
    }


def pieces(id: str, film: bytes) -> list[dict[str, object]]:
    """The rows that hold a film."""
    starts = range(0, len(film), PIECE)
    return [{"id": id, "part": part, "piece": film[start : start + PIECE]} for part, start in enumerate(starts)]


def _storable(text: str) -> str:
    """The text with halves of characters, which no database takes, escaped: in JSON that means the same."""
    return text.encode("utf-8", "backslashreplace").decode()


def _searchable(text: str | None) -> str | None:
    return text and _storable(text)[:LONGEST]


def address(url: str) -> URL:
    """The parsed URL of a history; UsageError when it names neither a file nor a MySQL database.

    The error does not quote the URL, which may hold a password.
    """
    expected = "a history is `sqlite:///FILE` or `mysql+pymysql://USER:PASSWORD@HOST/DATABASE`"
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(f"The history's URL cannot be read: {expected}.") from None  # it would quote
    if found.drivername not in ("sqlite", "sqlite+pysqlite", "mysql+pymysql"):
        raise UsageError(f"The history's URL begins with {found.drivername!r}: {expected}.")
    if found.database in (None, "", ":memory:"):
        raise UsageError(f"The history's URL names no database: {expected}.")
    return found


def file_of(url: URL) -> Path | None:
    """The file of a SQLite database, None for MySQL."""
    return Path(url.database).absolute() if url.get_backend_name() == "sqlite" else None


def open_engine(url: URL, patience: float) -> Engine:
    """Prepare connections to the database; nothing is connected yet.

    Args:
        url: from `address`.
        patience: seconds after which a MySQL server that says nothing counts as dead.
    """
    if file := file_of(url):
        return _open_sqlite(url, file)
    times = {"connect_timeout": CONNECT_S, "read_timeout": patience, "write_timeout": max(patience, WRITE_S)}
    arguments = {"charset": "utf8mb4", **times}
    return sa.create_engine(
        url, pool_pre_ping=True, pool_recycle=RECYCLE_S, pool_size=CONNECTIONS, connect_args=arguments
    )


def _open_sqlite(url: URL, file: Path) -> Engine:
    """SQLite whose transactions are ours: with the execution option `writes` they wait for their turn at the start.

    Without, a reader that begins to write fails at once while another writes, however long it was told to wait. The
    execution option `patience` is how many seconds a transaction waits, instead of BUSY_S.
    """
    engine = sa.create_engine(url, pool_size=CONNECTIONS, connect_args={"timeout": BUSY_S, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, entry) -> None:
        connection.execute("PRAGMA secure_delete = ON")  # a deleted film is overwritten, not only forgotten
        entry.info["file"] = _identity(file)

    @event.listens_for(engine, "checkout")
    def checked_out(connection: sqlite3.Connection, entry, proxy) -> None:
        if entry.info["file"] != _identity(file):  # deleted or put back from a copy: what we write would be lost
            raise DisconnectionError("The file of the history is another one now.")
        _wait(connection, BUSY_S)

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("patience") is not None:
            _wait(connection.connection.dbapi_connection, options["patience"])
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    return engine


def _wait(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")


def prepare(file: Path, engine: Engine) -> None:
    """Make the folder and a file that only its owner can read; readers and one writer do not wait for each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    with closing(engine.raw_connection()) as connection:
        connection.cursor().execute("PRAGMA journal_mode = WAL")


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_worth_another_try(error: DBAPIError) -> bool:
    """Whether the transaction failed for a reason that is over by now: a lost connection, a deadlock."""
    return error.connection_invalidated or _number(error.orig) in BEATEN_MYSQL


def is_locked(error: DBAPIError) -> bool:
    """Whether we gave up waiting: for a lock that is not let go, or for a MySQL server that says nothing."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return error.connection_invalidated or code in LOCKED_SQLITE or _number(error.orig) in LOCKED_MYSQL


def is_read_only(cause: BaseException) -> bool:
    """Whether the database lets us read and not write."""
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_READONLY or _number(cause) in READ_ONLY_MYSQL


def is_full(cause: BaseException, file: Path | None) -> bool:
    """Whether there was no room left for what should have been written, by the driver's or the system's own error."""
    if isinstance(cause, OSError):
        return cause.errno == errno.ENOSPC
    if file is None:
        return _number(cause) in FULL_MYSQL or bool(re.search(r"\b(errno:|error) 28\b", str(cause)))
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the higher bits say where it happened
    if code == sqlite3.SQLITE_IOERR and file.parent.exists():
        return shutil.disk_usage(file.parent).free < NEARLY_FULL
    return code == sqlite3.SQLITE_FULL


def _number(cause: BaseException | None) -> int:
    """The number of a MySQL error, 0 for others."""
    arguments = getattr(cause, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0
