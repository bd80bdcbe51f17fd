"""The history of the service: every answer that was saved, in SQLite or MySQL, searched page by page.

Every call is one short transaction of its own, so any number of threads and processes may share a history.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pneumo_lib.errors import ServiceError
from pneumo_lib.service import migrations
from pneumo_lib.service.search import MOST_PER_PAGE, NEWEST_FIRST, Found, Search, conditions
from pneumo_lib.service.tables import (
    address,
    diagnoses,
    file_of,
    films,
    is_full,
    is_locked,
    is_read_only,
    is_worth_another_try,
    open_engine,
    pieces,
    prepare,
    row,
)
from pneumo_lib.service.together import Together

REST_S = 3.0  # after a failed connect, or a lock that was waited for in vain, nobody waits for the next one
PROBE_S = 0.5  # how long whoever writes next waits for that lock
PATIENCE_S, UPGRADE_PATIENCE_S = 3, 600  # how long a MySQL server may think
ROWS = 500  # deleted by one statement
READ_ONLY = "The database of the history can be read and not written: see to its permissions."

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """A record to save, with its film as PNG if the visitor wants it kept."""

    record: dict
    film: bytes | None


class History:
    """Saved diagnoses.

    Every method raises ServiceError with the code `history_unavailable` when the database does not answer, and
    `history_outdated` or `history_newer` when its tables are of another version than this program; what changes
    something also `history_full` when there is no room. Nothing is half written in any of these cases.

    Args:
        url: `sqlite:///FILE` or `mysql+pymysql://USER:PASSWORD@HOST/DATABASE`. Nothing is touched yet.
    """

    def __init__(self, url: str) -> None:
        self._url = address(url)
        self._file = file_of(self._url)
        self._engine = open_engine(self._url, PATIENCE_S)
        self._fits = False  # whether the tables were seen to be of this version
        self._rests_until, self._writers_rest_until = 0.0, 0.0  # single numbers: threads need no lock for them
        self._locked = False  # whether the last writer gave up waiting for its turn
        self._saves = Together(self._save, common=_is_away)

    def upgrade(self, revision: str = "head") -> None:
        """Bring the tables to this version, and make them in an empty database; two at once wait for each other."""
        engine = open_engine(self._url, UPGRADE_PATIENCE_S)
        try:
            if self._file:
                prepare(self._file, engine)
            with engine.connect().execution_options(writes=True) as connection, connection.begin():
                migrations.upgrade(connection, revision)
        except (DBAPIError, sqlite3.Error, OSError) as error:
            cause = getattr(error, "orig", error)
            raise self._fault(cause, str(cause)) from error
        finally:
            engine.dispose()

    def is_empty(self) -> bool:
        """Whether the database has no tables of this program yet; an SQLite file may be missing altogether."""
        if self._file and not self._file.exists():
            return True
        return self._transact(migrations.is_empty)

    def check(self, *, writes: bool = False) -> None:
        """Raise a ServiceError unless the database answers, its tables are of this version and, if asked, take rows.

        This waits for no lock. Who holds it is no fault, unless a writer has waited for it in vain.
        """
        self._fits = False
        self._transact(migrations.check)
        self._fits = True
        if writes:
            self._try_to_write()

    def save(self, cases: Sequence[Stored]) -> None:
        """Save all or none. To save the same once more changes nothing. Threads that save at once share a commit."""
        self._saves.do(cases)

    def _save(self, cases: Sequence[Stored]) -> None:
        rows = [row(case.record) for case in cases]
        parts = [part for case in cases for part in pieces(case.record["id"], case.film or b"")]

        def add(connection: Connection) -> None:
            for table, values in ((diagnoses, rows), (films, parts)):
                if values:
                    connection.execute(insert(table), values)

        try:
            self._run(add, writes=True)
        except IntegrityError:
            # When a connection is lost during a commit, the second try can find that the first one had succeeded.
            if any(self.get(case.record["id"]) != case.record for case in cases):
                raise

    def search(self, wanted: Search) -> Found:
        """One page of what matches, newest first; records of one time in the opposite order of saving."""
        where, page = conditions(wanted), max(wanted.page, 1)
        size = min(max(wanted.per_page, 1), MOST_PER_PAGE)
        number = diagnoses.c.number

        def look(connection: Connection) -> Found:
            total = connection.scalar(select(func.count(number)).where(*where))
            pages, skipped = max(1, -(-total // size)), (page - 1) * size
            if skipped >= total:  # also spares the databases numbers that are too large for them
                return Found([], total, page, pages)
            # First the numbers, which the index knows, then the records of this page alone.
            numbers = select(number).where(*where).order_by(*NEWEST_FIRST).limit(size).offset(skipped).subquery()
            records = select(diagnoses.c.record).join(numbers, numbers.c.number == number).order_by(*NEWEST_FIRST)
            return Found([json.loads(text) for text in connection.scalars(records)], total, page, pages)

        return self._run(look)

    def get(self, id: str) -> dict | None:
        """The record of this id."""
        found = self._run(lambda c: c.scalar(select(diagnoses.c.record).where(diagnoses.c.id == id)))
        return found and json.loads(found)

    def film(self, id: str) -> bytes | None:
        """The film that was kept with this record, as PNG."""
        parts = select(films.c.piece).where(films.c.id == id).order_by(films.c.part)
        return b"".join(self._run(lambda connection: connection.scalars(parts).all())) or None

    def update(self, record: dict) -> bool:
        """Put this record in the place of the one with its id, and leave the film; False when there is none."""
        change = update(diagnoses).where(diagnoses.c.id == record["id"]).values(row(record))
        return self._run(lambda connection: connection.execute(change).rowcount, writes=True) > 0

    def delete(self, id: str) -> bool:
        """Delete a record and its film; False when there is none."""
        return self._run(lambda connection: _remove(connection, [id]), writes=True) > 0

    def delete_all(self) -> int:
        """Delete every record and film, and count the records."""

        def clear(connection: Connection) -> int:
            ids = connection.scalars(select(diagnoses.c.id)).all()
            return sum(_remove(connection, ids[start : start + ROWS]) for start in range(0, len(ids), ROWS))

        return self._run(clear, writes=True)

    def choices(self) -> tuple[list[str], list[str]]:
        """The labels and the ids of the models that occur, in alphabetical order."""

        def look(connection: Connection) -> tuple[list[str], list[str]]:
            columns = (diagnoses.c.label, diagnoses.c.model)
            labels, models = (connection.scalars(select(c).where(c.is_not(None)).distinct()).all() for c in columns)
            return sorted(labels), sorted(models)

        return self._run(look)

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    # ---- one transaction --------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        """Do the work in a transaction, on tables of this version."""
        if not self._fits:
            self.check()
        return self._transact(work, writes=writes)

    def _transact(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        """Do the work in a transaction, and once more when the connection was lost."""
        for last in (False, True):
            try:
                with self._connect(writes, PROBE_S if self._locked else None) as connection, connection.begin():
                    self._locked = self._locked and not writes
                    return work(connection)
            except (IntegrityError, DataError):
                raise  # what was to be written is wrong, not the database
            except DBAPIError as error:
                if last or not is_worth_another_try(error):
                    self._fits = False
                    if is_locked(error):
                        self._rest(writes)
                    raise self._fault(error.orig) from error
        raise AssertionError("the second try returns or raises")

    def _try_to_write(self) -> None:
        """Delete a row that no database holds: refused wherever a row would be, and nothing is written."""
        try:
            with self._connect(True, 0) as connection, connection.begin():
                connection.execute(delete(diagnoses).where(diagnoses.c.number == -1))
            self._locked = False
        except DBAPIError as error:
            if self._locked or not is_locked(error):
                raise self._fault(error.orig) from error

    def _rest(self, writes: bool) -> None:
        """Send everybody away for a moment, or only who wants to write: what is saved can be read under a lock."""
        until = time.monotonic() + REST_S
        if writes:
            self._writers_rest_until, self._locked = until, True
        else:
            self._rests_until = until

    def _connect(self, writes: bool, patience: float | None) -> Connection:
        """A connection for such a transaction, or a ServiceError: at once when another one has just failed."""
        rests_until = max(self._rests_until, self._writers_rest_until if writes else 0.0)
        if time.monotonic() < rests_until:
            raise _unavailable()
        if self._file and not self._file.exists():
            self._fits = False
            raise migrations.outdated() if self._file.parent.exists() else _unavailable()
        try:
            return self._engine.connect().execution_options(writes=writes, patience=patience)
        except PoolTimeout as error:
            raise _unavailable() from error
        except DBAPIError as error:
            self._rest(False)
            raise self._fault(error.orig) from error

    def _fault(self, cause: BaseException, reason: str = "") -> ServiceError:
        """What went wrong, in words for a visitor; the reason may name a server and is for who upgrades."""
        if is_full(cause, self._file):
            return ServiceError("There is no room left for the history: nothing was written.", code="history_full")
        if is_read_only(cause) and not reason:
            return ServiceError(READ_ONLY, code="history_unavailable")
        return _unavailable(reason)


def _unavailable(reason: str = "") -> ServiceError:
    message = "The database of the history does not answer" + (f": {reason}" if reason else ". Try again in a moment.")
    return ServiceError(message, code="history_unavailable")


def _is_away(error: BaseException) -> bool:
    """Whether the database takes nothing from anybody: less of it would fare no better."""
    return isinstance(error, ServiceError) and error.code != "history_full"


def _remove(connection: Connection, ids: Sequence[str]) -> int:
    """Delete some records and their films, and count the records."""
    connection.execute(delete(films).where(films.c.id.in_(ids)))
    return connection.execute(delete(diagnoses).where(diagnoses.c.id.in_(ids))).rowcount
