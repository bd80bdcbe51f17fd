"""The versions of the history's tables: which one a database has, and how it is brought to the one of this program."""

import threading
from functools import cache

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import column, func, inspect, select, table
from sqlalchemy.engine import Connection

from pneumo_lib.errors import ServiceError

TURN_S = 60  # how long an upgrade waits for one that another process is making
ONE_AT_A_TIME = threading.Lock()  # `alembic.context` is one for the whole process
VERSION = table("alembic_version", column("version_num"))


def is_empty(connection: Connection) -> bool:
    """Whether no version of this program has made its tables here."""
    return not _stored(connection)


def check(connection: Connection) -> None:
    """Raise ServiceError `history_outdated` or `history_newer` unless the tables are those of this program."""
    stored, known = _stored(connection), _known()
    if not stored <= set(known):
        raise newer()
    if stored != {known[0]}:
        raise outdated()


def upgrade(connection: Connection, revision: str) -> None:
    """Bring the tables to a revision, on a connection and in a transaction of the caller.

    SQLite undoes all of it when it fails. MySQL keeps what was done, and the next upgrade goes on from there. There the
    lock that keeps other processes out is let go when the connection is closed.

    Raises:
        ServiceError: `history_newer`; nothing was changed.
    """
    with ONE_AT_A_TIME:
        if connection.dialect.name == "mysql":
            _wait_for_turn(connection)
        if not _stored(connection) <= set(_known()):
            raise newer()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def outdated() -> ServiceError:
    """The error of a database whose tables are older than this program, or not there."""
    message = "The tables of the history are older than this program or missing: run `pneumo serve --upgrade`."
    return ServiceError(message, code="history_outdated")


def newer() -> ServiceError:
    """The error of a database whose tables this program does not know."""
    message = "The tables of the history were made by a newer program than this one: install that one, or use another"
    return ServiceError(f"{message} database. Nothing was changed.", code="history_newer")


def _wait_for_turn(connection: Connection) -> None:
    name = func.concat("pneumo ", func.md5(func.database()))  # locks belong to the server, not to a database
    if connection.scalar(select(func.get_lock(name, TURN_S))) != 1:
        message = f"Another process has been upgrading the history for {TURN_S} s: try again when it is done."
        raise ServiceError(message, code="history_unavailable")


def _stored(connection: Connection) -> set[str]:
    """The revisions that the database says it has: one, or none before the first upgrade."""
    if not inspect(connection).has_table(VERSION.name):
        return set()
    return set(connection.scalars(select(VERSION.c.version_num)))


@cache
def _known() -> tuple[str, ...]:
    """All revisions of this program, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    """What alembic would read from a file, so that none has to be on the disk."""
    config = Config()
    config.set_main_option("script_location", "pneumo_lib.service:migrations")
    return config
