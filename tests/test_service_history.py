"""The history of the service, on SQLite and on MySQL alike: nothing lost, nothing half written, honest when it is away.

MySQL or MariaDB is looked for at `mysql+pymysql://root@127.0.0.1/`, or where PNEUMO_MYSQL says. Without a server these
tests are skipped, or fail when PNEUMO_REQUIRE_MYSQL is set. Each makes a database of its own there and drops it.
Tests that need a small disk mount one; where this user may not they are skipped, or fail when PNEUMO_REQUIRE_DISK is
set.
"""

import io
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from PIL import Image
from sqlalchemy import event

from pneumo_lib.data import CLASSES, phantom
from pneumo_lib.errors import ServiceError, UsageError
from pneumo_lib.service import history as module
from pneumo_lib.service import tables
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import History, Search, Stored
from pneumo_lib.service.records import STATUSES, Options, Upload
from pneumo_lib.service.settings import Settings

# Without TLS: PyMySQL would read every certificate of this machine at each connect, which takes longer than most tests.
MYSQL = sa.make_url(os.environ.get("PNEUMO_MYSQL", "mysql+pymysql://root@127.0.0.1/?ssl_disabled=true"))
FILM = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


# ---- two databases --------------------------------------------------------------------------------------------------


def text_of(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def mysql_database() -> Iterator[str]:
    """The URL of a new database on the server."""
    server = sa.create_engine(MYSQL, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    name = f"pneumo_test_{uuid.uuid4().hex}"
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    except sa.exc.OperationalError as error:
        said = f"no MySQL or MariaDB server answers at {MYSQL}: {error.orig}"
        (pytest.fail if os.environ.get("PNEUMO_REQUIRE_MYSQL") else pytest.skip)(said)
    try:
        yield text_of(MYSQL.set(database=name))
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}")
        server.dispose()


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own in a new folder; only root may mount one, and not in every container."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        said = f"A FULL DISK WAS NOT TESTED: this user may not mount a small one ({mounted.stderr.strip()})"
        (pytest.fail if os.environ.get("PNEUMO_REQUIRE_DISK") else pytest.skip)(said)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, free: int = 0) -> Path:
    """A file that leaves so many bytes of a disk."""
    with (folder / "other").open("wb", buffering=0) as other, suppress(OSError):
        while True:
            other.write(bytes(4096))
    with (folder / "other").open("r+b") as other:
        other.truncate(other.seek(0, os.SEEK_END) - free)
    return folder / "other"


@pytest.fixture
def sqlite_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/history/diagnoses.db"


@pytest.fixture
def mysql_url() -> Iterator[str]:
    with mysql_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "mysql"])
def url(request) -> str:
    """An empty database of each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["sqlite", "mysql"])
def databases(request, tmp_path) -> Callable[[], AbstractContextManager[str]]:
    """For tests that need several empty databases of a kind."""
    if request.param == "mysql":
        return mysql_database
    return lambda: nullcontext(f"sqlite:///{tmp_path}/{uuid.uuid4()}/h.db")


@pytest.fixture
def history(url) -> Iterator[History]:
    """A history that is ready."""
    with closing(ready(url)) as made:
        yield made


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """Children that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pneumo_lib.service.cases", "alembic.autogenerate", "pytest"])
    return context


def ready(url: str) -> History:
    made = History(url)
    made.upgrade()
    return made


@contextmanager
def opened(url: str) -> Iterator[sa.Connection]:
    """A connection of our own, to look and to meddle."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def contents(url: str) -> dict[str, list]:
    """Every row of every table."""
    found = sa.MetaData()
    with opened(url) as connection:
        found.reflect(connection)
        return {name: sorted(map(repr, connection.execute(sa.select(t)))) for name, t in found.tables.items()}


@contextmanager
def listening(name: str, listener: Callable) -> Iterator[None]:
    """Hear an event of every engine."""
    event.listen(sa.Engine, name, listener)
    try:
        yield
    finally:
        event.remove(sa.Engine, name, listener)


def run_to_the_end(process: multiprocessing.process.BaseProcess, exitcode: int = 0) -> None:
    process.join(60)
    assert process.exitcode == exitcode


# ---- records --------------------------------------------------------------------------------------------------------


def record(at: str = "2026-11-21T16:20:00.123Z", name: str = "film.png", **changes: object) -> dict:
    """A diagnosed film as the service describes it."""
    made = {
        "id": str(uuid.uuid4()),
        "created_at": at,
        "status": "ok",
        "file": {"name": name, "sha256": "ab" * 32, "bytes": 1234, "kind": "DICOM", "facts": {"Modality": "DX"}},
        "model": {"id": "demo/cnn2", "name": "cnn2", "title": "胸片", "denoiser": None, "phantom": True},
        "threshold": 0.8,
        "label": "NORMAL",
        "candidates": ["NORMAL"],
        "confidence": 0.1 + 0.2,
        "probabilities": {"PNEUMONIA": 1 / 3, "COVID19": 5e-324, "NORMAL": 0.6666666666666667},
        "likeness": {"score": 0.4, "cutoff": 1.0, "nearest": "NORMAL"},
        "error": None,
        "saved": True,
    }
    return made | changes


def keep(history: History, *records: dict) -> list[str]:
    """Save records without films; their ids."""
    history.save([Stored(each, None) for each in records])
    return [each["id"] for each in records]


def ids(history: History, **wanted: object) -> list[str]:
    return [each["id"] for each in history.search(Search(**wanted)).records]


def everything(history: History) -> list[dict]:
    """All records, newest first."""
    first = history.search(Search(per_page=1000))
    later = [history.search(Search(page=page, per_page=1000)).records for page in range(2, first.pages + 1)]
    return [*first.records, *(each for page in later for each in page)]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ServiceError) as caught:
        call()
    return caught.value.code


NAMES = [
    "肺炎 (左).png",
    "😀🫁.dcm",
    'O\'Brien "x" \\ `; --.jpg',
    "a\u0000b\n\t.png",
    "=1+1",
    "é́‏أشعة",
    "x" * 255,
    "half \udc80",
]


def test_every_value_and_the_order_of_the_classes_survive(history):
    saved = [record(name=name) for name in NAMES]
    saved.append(record(status="error", label=None, probabilities=None, model=None, file={"name": "", "sha256": None}))
    history.save([Stored(each, FILM if i == 0 else None) for i, each in enumerate(saved)])
    for each in saved:
        assert json.dumps(history.get(each["id"])) == json.dumps(each)
    assert [json.dumps(each) for each in everything(history)] == [json.dumps(each) for each in reversed(saved)]
    assert history.film(saved[0]["id"]) == FILM and history.film(saved[1]["id"]) is None


def test_records_are_stored_as_readable_text(history, url):
    keep(history, record(name="肺炎😀.png"))
    with opened(url) as connection:
        text, name = connection.execute(sa.text("SELECT record, name FROM diagnoses")).one()
    assert '"name": "肺炎😀.png"' in text and name == "肺炎😀.png"


def test_a_film_larger_than_what_mysql_takes_at_once_comes_back_whole(history):
    film, one = random.Random(0).randbytes(17 << 20), record()
    history.save([Stored(one, film)])
    assert history.film(one["id"]) == film


def test_what_is_not_there_is_none_or_false(history):
    assert history.get("nobody") is None and history.film("nobody") is None
    assert not history.delete("nobody") and not history.update(record()) and history.delete_all() == 0
    assert history.search(Search()) == module.Found([], 0, 1, 1) and history.choices() == ([], [])
    history.save([])


# ---- search ---------------------------------------------------------------------------------------------------------

SHELF = {
    "first": record("2026-03-01T00:00:00.000000Z", model={"id": "a"}),
    "evening": record("2026-03-01T23:59:59.999999Z", label="PNEUMONIA"),
    "zone": record("2026-03-02T06:59:59+08:00", label="COVID19", status="unchecked"),  # the evening of March 1st, UTC
    "second": record("2026-03-02T00:00:00Z", label=None, status="undecided"),
    "third": record("2026-03-03T12:00:00.001Z", label=None, status="refused", model={"id": "A"}),
}
QUESTIONS = [
    ({}, "third second evening zone first"),
    ({"after": date(2026, 3, 1), "before": date(2026, 3, 1)}, "evening zone first"),
    ({"after": date(2026, 3, 2)}, "third second"),
    ({"before": date(2026, 3, 2)}, "second evening zone first"),
    ({"after": date(2026, 3, 4)}, ""),
    ({"after": date(2026, 3, 3), "before": date(2026, 3, 1)}, ""),
    ({"after": date.min, "before": date.max}, "third second evening zone first"),
    ({"label": "NORMAL"}, "first"),
    ({"label": "normal"}, ""),
    ({"label": "NORM"}, ""),
    ({"label": "%"}, ""),
    ({"label": "' OR 1=1 --"}, ""),
    ({"label": "😀"}, ""),
    ({"status": "undecided"}, "second"),
    ({"status": "ok"}, "evening first"),
    ({"model": "a"}, "first"),
    ({"model": "A"}, "third"),
    ({"model": "demo/cnn2", "status": "ok", "after": date(2026, 3, 1)}, "evening"),
    ({"model": "a", "label": "PNEUMONIA"}, ""),
]


def test_a_search_finds_exactly_what_matches_newest_first(history):
    keep(history, *random.Random(3).sample(list(SHELF.values()), len(SHELF)))
    names = {each["id"]: name for name, each in SHELF.items()}
    for wanted, expected in QUESTIONS:
        assert [names[id] for id in ids(history, **wanted)] == expected.split(), wanted
        assert history.search(Search(**wanted)).total == len(expected.split()), wanted


def test_the_choices_are_what_occurs(history):
    keep(history, *SHELF.values())
    assert history.choices() == (["COVID19", "NORMAL", "PNEUMONIA"], ["A", "a", "demo/cnn2"])


def test_pages_of_equal_times_neither_repeat_nor_leave_out(history):
    saved = [keep(history, *[record() for _ in range(5)]) for _ in range(5)]
    newest_first = [id for batch in reversed(saved) for id in reversed(batch)]
    for per_page in (1, 7, 25, 100):
        pages = [history.search(Search(page=page, per_page=per_page)) for page in range(1, -(-25 // per_page) + 1)]
        assert [each["id"] for found in pages for each in found.records] == newest_first
        assert {(found.total, found.pages) for found in pages} == {(25, len(pages))}


@pytest.mark.parametrize(
    ("page", "per_page", "shown"), [(2, 25, 0), (10**30, 20, 0), (0, 20, 20), (-1, 20, 20), (1, 0, 1), (1, 10**30, 25)]
)
def test_impossible_pages_are_empty_or_the_nearest_possible(history, page, per_page, shown):
    keep(history, *[record() for _ in range(25)])
    found = history.search(Search(page=page, per_page=per_page))
    assert (len(found.records), found.total) == (shown, 25)


def test_both_databases_show_the_same_pages_after_the_same_thousand_records(sqlite_url, mysql_url):
    draw, start = random.Random(4), datetime(2026, 1, 1, tzinfo=UTC)
    records = []
    for _ in range(1000):
        at = start + timedelta(hours=draw.randrange(72), microseconds=draw.choice([0, 1, 999_999]))
        label, status = draw.choice(["NORMAL", "PNEUMONIA", "肺炎", None]), draw.choice(["ok", "undecided"])
        probabilities = {name: draw.random() for name in draw.sample(["COVID19", "NORMAL", "PNEUMONIA"], 3)}
        changes = {
            "label": label,
            "status": status,
            "probabilities": probabilities,
            "model": {"id": draw.choice("aAé")},
        }
        records.append(record(at.isoformat(), draw.choice(NAMES), **changes))
    with closing(ready(sqlite_url)) as one, closing(ready(mysql_url)) as other:
        for start_at in range(0, 1000, 20):
            for each in (one, other):
                keep(each, *records[start_at : start_at + 20])
        assert len(everything(one)) == 1000 and one.choices() == other.choices()
        wholes = [{}, {"label": "肺炎"}, {"model": "a"}, {"status": "ok", "after": date(2026, 1, 2)}]
        for wanted in wholes:
            for page in range(1, one.search(Search(**wanted)).pages + 2):
                search = Search(**wanted, page=page)
                assert json.dumps(vars(one.search(search))) == json.dumps(vars(other.search(search))), search


TIMES = ["2026-03-02T00:00:01Z", "2026-03-02T00:00:05Z", "2026-03-01T23:59:58Z", "2026-03-01T23:59:59Z"]


def test_a_clock_that_jumps_back_leaves_order_and_search_right(history):
    saved = [keep(history, record(at, label=f"L{k}"))[0] for k, at in enumerate([*TIMES, TIMES[0]])]
    newest_first = [saved[k] for k in (1, 4, 0, 3, 2)]
    assert ids(history) == newest_first
    assert [ids(history, page=page, per_page=1) for page in range(1, 6)] == [[id] for id in newest_first]
    assert ids(history, before=date(2026, 3, 1)) == newest_first[3:]
    assert ids(history, after=date(2026, 3, 2)) == newest_first[:3]
    assert ids(history, label="L3", before=date(2026, 3, 1)) == [saved[3]]


def phantoms(count: int) -> list[bytes]:
    """Small drawings of chests, as files; every 50th breaks off."""
    draw = np.random.default_rng(6)
    pictures = [phantom.draw(CLASSES[k % 3], size=40, rng=draw) for k in range(count)]
    files = []
    for k, pixels in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue()[: 300 if k % 50 == 49 else None])
    return files


def use(clinic: Clinic, files: list[bytes]) -> None:
    """A thousand diagnoses in batches of twenty, some with another model, threshold or a film to keep; then changes."""
    models, draw, made = [offer.id for offer in clinic.catalog.models], random.Random(7), []
    for start in range(0, len(files), 20):
        threshold = draw.choice([None, 0.5, 0.999])
        options = Options(model=draw.choice(models), threshold=threshold, keep_film=draw.random() < 0.3)
        batch = [Upload(draw.choice(NAMES), io.BytesIO(file)) for file in files[start : start + 20]]
        made += clinic.diagnose(batch, options, "request")
    saved = [each["id"] for each in made if each["saved"]]
    for id in draw.sample(saved, 60):
        assert clinic.redecide(id, draw.choice([0.2, 0.9, 0.9999]))["saved"]
    for id in draw.sample(saved, 40):
        assert clinic.delete(id)


def kept_by(clinic: Clinic) -> list[tuple[str, bytes | None]]:
    """All records without what no two diagnoses share, each with its film, newest first."""
    found = everything(clinic.history)
    return [
        (json.dumps({name: value for name, value in each.items() if name not in ("id", "created_at")}), film)
        for each, film in ((each, clinic.history.film(each["id"])) for each in found)
    ]


def test_both_databases_hold_the_same_after_the_same_thousand_diagnoses(sqlite_url, mysql_url, offers):
    files, clinics = phantoms(1000), []
    with ExitStack() as stack:
        for url in (sqlite_url, mysql_url):
            history = ready(url)
            clinic = Clinic(Settings(history=url), offers, history, threads=1)
            stack.callback(clinic.recent.clear)
            clinics.append(stack.enter_context(closing(clinic)))
            use(clinic, files)
        one, other = map(kept_by, clinics)
        assert len(one) == 1000 - 20 - 40, "all that could be read and were not deleted"
        assert one == other
        assert 100 < sum(film is not None for _, film in one) < 800
        labels, models = clinics[0].history.choices()
        assert (labels, models) == clinics[1].history.choices() and len(labels) > 1 and len(models) > 1
        wholes = [{}, *({"label": label} for label in labels), *({"model": model} for model in models)]
        for wanted in [*wholes, *({"status": status} for status in STATUSES)]:
            totals, numbers = [], []
            for clinic in clinics:
                order = {each["id"]: k for k, each in enumerate(everything(clinic.history))}
                found = clinic.history.search(Search(**wanted, page=2, per_page=50))
                totals.append(found.total)
                numbers.append([order[each["id"]] for each in found.records])
            assert totals[0] == totals[1] and numbers[0] == numbers[1], wanted
        assert len({json.loads(text)["status"] for text, _ in one}) > 1


# ---- changes --------------------------------------------------------------------------------------------------------


def test_deleting_one_leaves_the_others_and_deleting_all_leaves_nothing(history, url):
    records = [record() for _ in range(1203)]
    history.save([Stored(each, FILM) for each in records])
    gone, left = records[0]["id"], records[1]["id"]
    assert history.delete(gone) and not history.delete(gone)
    assert history.get(gone) is None and history.film(gone) is None and history.film(left) == FILM
    assert history.search(Search()).total == 1202
    assert history.delete_all() == 1202
    assert {name: rows for name, rows in contents(url).items() if rows}.keys() == {"alembic_version"}


def test_an_update_changes_the_record_and_what_it_is_found_by_but_neither_place_nor_film(history):
    old, other = record(), record()
    history.save([Stored(old, FILM), Stored(other, None)])
    new = old | {"threshold": 0.95, "status": "undecided", "label": None, "candidates": ["NORMAL", "PNEUMONIA"]}
    assert history.update(new) and history.update(new), "unchanged the second time, and there all the same"
    assert history.get(old["id"]) == new and history.film(old["id"]) == FILM
    assert ids(history, status="undecided") == [old["id"]] and ids(history, label="NORMAL") == [other["id"]]
    assert ids(history) == [other["id"], old["id"]]


def test_a_batch_whose_second_film_cannot_be_saved_leaves_none(history, url):
    there = record()
    keep(history, there)
    before = contents(url)
    for batch in ([record(), there | {"threshold": 0.1}], [record(), there], [there, record()]):
        with pytest.raises(sa.exc.IntegrityError):
            history.save([Stored(each, FILM) for each in batch])
        assert contents(url) == before


def test_saving_the_same_once_more_changes_nothing(history, url):
    one = record()
    history.save([Stored(one, FILM)])
    before = contents(url)
    history.save([Stored(one, FILM)])
    assert contents(url) == before


# ---- versions of the tables -----------------------------------------------------------------------------------------

OLD = [record(f"2026-01-01T00:00:0{i}.5Z", name, model=model) for i, (name, model) in enumerate(
    [("肺炎😀.png", {"id": "demo/cnn2"}), ("b.png", {"id": "é" * 300}), ("c.png", None)]
)]  # fmt: skip


def first_version(url: str, records: list[dict] = OLD) -> None:
    """A database as the first revision left it, with rows."""
    History(url).upgrade("0001")
    columns = "id", "created_at", "status", "label", "sha256", "name", "record"
    table = sa.table("diagnoses", *map(sa.column, columns))
    with opened(url) as connection:
        connection.execute(sa.insert(table), [{name: tables.row(each)[name] for name in columns} for each in records])


def die_at(url: str, moment: int) -> None:
    """Upgrade in this process; it kills itself after the `moment`-th statement that changes something."""
    changes = 0

    def count(connection, cursor, statement, *rest) -> None:
        nonlocal changes
        changes += statement.split()[0].upper() in ("CREATE", "ALTER", "INSERT", "UPDATE")
        if changes == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(sa.Engine, "after_cursor_execute", count)
    History(url).upgrade()


def upgrade_when_told(url: str, gate) -> None:
    made = History(url)
    gate.wait(30)
    made.upgrade()
    made.check()


def assert_upgraded(url: str, rows: list[dict] = OLD) -> None:
    """The tables are those of the code, and hold these rows."""
    with opened(url) as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    with closing(History(url)) as history:
        history.check()
        assert everything(history) == rows[::-1]
        for each in rows[:2]:
            assert ids(history, model=each["model"]["id"][:255]) == [each["id"]]
        one = record()
        history.save([Stored(one, FILM)])
        assert history.film(one["id"]) == FILM and history.delete(one["id"])


def test_an_older_database_is_brought_to_this_version_and_a_second_time_changes_nothing(url):
    first_version(url)
    History(url).upgrade()
    before = contents(url)
    History(url).upgrade()
    assert contents(url) == before
    assert_upgraded(url)


def test_more_old_rows_than_are_filled_at_a_time_all_get_their_model(url):
    records = [record(model={"id": f"m{i % 3}"}) for i in range(1201)]
    first_version(url, records)
    with closing(ready(url)) as history:
        assert [history.search(Search(model=f"m{i}")).total for i in range(3)] == [401, 400, 400]


@pytest.mark.parametrize(("before", "changes"), [("nothing", 3), ("the first version", 5)])
def test_an_upgrade_killed_after_any_change_is_finished_by_the_next(forks, databases, before, changes):
    """SQLite undoes the changes, MySQL keeps them."""
    for moment in range(1, changes + 1):
        with databases() as url:
            if before == "the first version":
                first_version(url)
            process = forks.Process(target=die_at, args=(url, moment))
            process.start()
            run_to_the_end(process, -signal.SIGKILL)
            with closing(History(url)) as history:
                assert refused(history.check) == "history_outdated"
                history.upgrade()
            assert_upgraded(url, OLD if before == "the first version" else [])


def test_upgrades_of_several_processes_and_threads_at_once_take_turns(forks, url):
    first_version(url)
    gate = forks.Barrier(3)
    processes = [forks.Process(target=upgrade_when_told, args=(url, gate)) for _ in range(2)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(2) as threads:
        gate.wait(30)
        for each in [threads.submit(History(url).upgrade) for _ in range(2)]:
            each.result()
    for process in processes:
        run_to_the_end(process)
    assert_upgraded(url)


def test_an_upgrade_needs_no_file_of_alembic_and_leaves_logging_alone(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def state() -> tuple:
        loggers = [logging.root, logging.getLogger("alembic"), logging.getLogger("sqlalchemy")]
        return [(each.level, list(each.handlers), each.disabled, each.propagate) for each in loggers]

    before = state()
    History(url).upgrade()
    assert state() == before
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".db" and path.name != "history"] == []


CALLS = {
    "check": lambda history: history.check(),
    "save": lambda history: keep(history, record()),
    "search": lambda history: history.search(Search()),
    "get": lambda history: history.get("x"),
    "film": lambda history: history.film("x"),
    "update": lambda history: history.update(record()),
    "delete": lambda history: history.delete("x"),
    "delete_all": lambda history: history.delete_all(),
    "choices": lambda history: history.choices(),
}


def assert_outdated(url: str) -> None:
    """Every call refuses, and says what to do."""
    with closing(History(url)) as history:
        for name, call in CALLS.items():
            assert refused(lambda call=call: call(history)) == "history_outdated", name
        with pytest.raises(ServiceError, match="pneumo serve --upgrade"):
            history.check()


def test_older_tables_are_refused_and_nothing_is_written(url):
    first_version(url)
    before = contents(url)
    assert_outdated(url)
    assert contents(url) == before


def test_missing_tables_are_refused_and_nothing_is_written(mysql_url, tmp_path):
    assert_outdated(mysql_url)
    assert contents(mysql_url) == {}
    assert_outdated(f"sqlite:///{tmp_path}/h.db")
    assert list(tmp_path.iterdir()) == [], "not even an empty file"


def test_a_database_without_tables_is_empty_and_one_with_older_tables_is_not(url):
    assert History(url).is_empty()
    first_version(url)
    assert not History(url).is_empty()
    assert not ready(url).is_empty()


def test_newer_tables_are_refused_even_by_an_upgrade_and_nothing_is_written(url):
    with closing(ready(url)) as history:
        keep(history, record())
        with opened(url) as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
        before = contents(url)
        assert refused(history.check) == "history_newer"
        for name, call in (CALLS | {"upgrade": History.upgrade}).items():
            assert refused(lambda call=call: call(history)) == "history_newer", name
    assert contents(url) == before


def test_the_version_is_asked_once_not_at_each_save(history):
    asked = []
    with listening("before_cursor_execute", lambda c, cursor, statement, *rest: asked.append(statement)):
        keep(history, record())
        assert any("alembic_version" in each for each in asked)
        asked.clear()
        keep(history, record())
        assert history.search(Search()).total == 2
        assert not any("alembic_version" in each for each in asked)
        history.check()
        assert any("alembic_version" in each for each in asked)


# ---- no room --------------------------------------------------------------------------------------------------------


def test_a_full_disk_of_sqlite_is_said_so_leaves_nothing_half_and_old_rows_readable(sqlite_url):
    room = [0]  # pages, 0 for no limit

    def limit(connection: sqlite3.Connection, *rest: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {room[0] or 2**30}")

    event.listen(sa.Pool, "checkout", limit)
    try:
        with closing(ready(sqlite_url)) as history:
            history.save([Stored(record(), FILM)])
            before = contents(sqlite_url)
            room[0] = 40
            batch = [Stored(record(), FILM), Stored(record(), bytes(1 << 20))]
            assert refused(lambda: history.save(batch)) == "history_full"
            assert contents(sqlite_url) == before and len(everything(history)) == 1
            history.check()
            assert keep(history, record()), "what is small still fits"
            room[0] = 0
            history.save(batch)
            assert history.search(Search()).total == 4
    finally:
        event.remove(sa.Pool, "checkout", limit)


@pytest.mark.parametrize(
    ("number", "text"), [(1021, "Disk full"), (1114, "is full"), (28, "no"), (1030, "Got error 28 from storage engine")]
)
def test_a_full_disk_of_mysql_is_said_so_leaves_nothing_half_and_old_rows_readable(mysql_url, number, text):
    said = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{text}'"
    when = "BEFORE INSERT ON diagnoses FOR EACH ROW IF NEW.name = 'too much' THEN"
    with closing(ready(mysql_url)) as history:
        keep(history, record())
        before, batch = contents(mysql_url), [record(), record(name="too much")]
        with opened(mysql_url) as connection:
            connection.exec_driver_sql(f"CREATE TRIGGER full {when} {said}; END IF")
        assert refused(lambda: keep(history, *batch)) == "history_full"
        assert contents(mysql_url) == before and len(everything(history)) == 1
        with opened(mysql_url) as connection:
            connection.exec_driver_sql("DROP TRIGGER full")
        keep(history, *batch)
        assert history.search(Search()).total == 3


# ---- a database that can only be read -------------------------------------------------------------------------------


@contextmanager
def read_only() -> Iterator[list[bool]]:
    """Databases that refuse to be written, as a file without the permission does, until what is yielded is cleared."""
    forbidden = [True]

    def forbid(connection: object, *rest: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA query_only = {'ON' if forbidden else 'OFF'}")
        else:
            connection.cursor().execute(f"SET SESSION TRANSACTION READ {'ONLY' if forbidden else 'WRITE'}")

    event.listen(sa.Pool, "checkout", forbid)
    try:
        yield forbidden
    finally:
        event.remove(sa.Pool, "checkout", forbid)


def test_a_database_that_can_only_be_read_is_read_and_said_so(url):
    with closing(ready(url)) as history:
        there = record()
        history.save([Stored(there, FILM)])
        before = contents(url)
    with read_only() as forbidden, closing(History(url)) as history:
        for change in ("save", "update", "delete_all"):
            with pytest.raises(ServiceError, match="can be read and not written") as caught:
                CALLS[change](history)
            assert caught.value.code == "history_unavailable"
        history.check()
        with pytest.raises(ServiceError, match="can be read and not written"):
            history.check(writes=True)
        assert everything(history) == [there] and history.film(there["id"]) == FILM
        assert contents(url) == before
        forbidden.clear()
        history.check(writes=True)
        assert contents(url) == before, "to ask whether it can be written writes nothing"
        keep(history, record())


# ---- a lock that is not let go --------------------------------------------------------------------------------------


@contextmanager
def locked(url: str) -> Iterator[sqlite3.Connection]:
    """Somebody else writes to a SQLite file, and takes time over it."""
    file = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def patience(history: History) -> int:
    """How long the next connection waits for a lock, in milliseconds."""
    with history._engine.connect() as connection:
        return connection.exec_driver_sql("PRAGMA busy_timeout").scalar()


def test_a_writer_waits_30_seconds_for_a_lock(sqlite_url):
    with closing(ready(sqlite_url)) as history:
        assert patience(history) == 30_000
        keep(history, record())
        assert patience(history) == 30_000


def test_after_a_lock_was_waited_for_in_vain_nobody_waits_long_until_it_is_let_go(sqlite_url, monkeypatch):
    now, begun = [1000.0], []
    monkeypatch.setattr(tables, "BUSY_S", 0.6)
    monkeypatch.setattr(module, "PROBE_S", 0.1)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with closing(ready(sqlite_url)) as history:
        keep(history, record())
        with locked(sqlite_url) as other, ThreadPoolExecutor(16) as threads:
            history.check(writes=True)  # who is writing just now is no fault
            began = time.monotonic()
            codes = list(threads.map(lambda _: refused(lambda: keep(history, record())), range(16)))
            assert set(codes) == {"history_unavailable"} and 0.5 < time.monotonic() - began < 3, "one wait for all"
            now[0] += 2.9
            with listening("begin", begun.append):
                assert refused(lambda: keep(history, record())) == "history_unavailable"
                assert refused(lambda: history.check(writes=True)) == "history_unavailable"
            assert not [each for each in begun if each.get_execution_options()["writes"]]
            assert history.search(Search()).total == 1, "it can be read"
            now[0] += 0.2
            assert refused(lambda: history.check(writes=True)) == "history_unavailable", "still locked"
            assert 0.05 < seconds(lambda: refused(lambda: keep(history, record()))) < 0.5
            other.execute("ROLLBACK")
            now[0] += 3.1
            history.check(writes=True)
            assert patience(history) == 600 and keep(history, record())
            other.execute("BEGIN IMMEDIATE")
            assert seconds(lambda: refused(lambda: keep(history, record()))) > 0.5, "patient again"


# ---- a database that goes away --------------------------------------------------------------------------------------


class Wire:
    """A wire to the MySQL server that can be cut, frozen and mended."""

    def __init__(self, url: str):
        real = sa.make_url(url)
        self._server = (real.host, real.port or 3306)
        self._port, self._sockets, self._listener = 0, [], None
        self.frozen = threading.Event()
        self.cut_after = b""  # cut when the server has answered to these bytes, before the answer arrives
        self.mend()
        self.url = text_of(real.set(host="127.0.0.1", port=self._port))

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for each in (self._listener, *self._sockets):
            hang_up(each)
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server, answered = socket.create_connection(self._server), threading.Event()
            self._sockets += [client, server]
            threading.Thread(target=self._send, args=(client, server, answered), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client, answered), daemon=True).start()

    def _send(self, client: socket.socket, server: socket.socket, last: threading.Event) -> None:
        while data := receive(client):
            if self.cut_after and self.cut_after in data:
                self.cut_after = b""
                last.set()
            if not self.frozen.is_set():
                server.sendall(data)
        hang_up(server)

    def _answer(self, server: socket.socket, client: socket.socket, last: threading.Event) -> None:
        while (data := receive(server)) and not last.is_set():
            if not self.frozen.is_set():
                client.sendall(data)
        hang_up(client)


def receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""


def hang_up(end: socket.socket) -> None:
    with closing(end), suppress(OSError):  # the other side was faster
        end.shutdown(socket.SHUT_RDWR)


class Drive:
    """A folder that can be taken away, as a drive can."""

    def __init__(self, url: str):
        self.url, self._folder = url, Path(url.removeprefix("sqlite:///")).parent
        self._folder.mkdir()

    def cut(self) -> None:
        self._folder.rename(self._folder.with_name("elsewhere"))

    def mend(self) -> None:
        self._folder.with_name("elsewhere").rename(self._folder)


@pytest.fixture
def wire(mysql_url) -> Iterator[Wire]:
    made = Wire(mysql_url)
    yield made
    made.cut()


@pytest.fixture(params=["sqlite", "mysql"])
def link(request) -> Wire | Drive:
    """The way to a database."""
    return request.getfixturevalue("wire") if request.param == "mysql" else Drive(request.getfixturevalue("sqlite_url"))


def seconds(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def test_a_database_that_goes_away_is_missed_quickly_and_found_again(link, monkeypatch):
    monkeypatch.setattr(module, "REST_S", 1.0)
    with closing(ready(link.url)) as history:
        before = keep(history, record())
        link.cut()
        for name, call in CALLS.items():
            start = time.monotonic()
            assert refused(lambda call=call: call(history)) == "history_unavailable", name
            assert time.monotonic() - start < 5
        link.mend()
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            try:
                history.check()
                break
            except ServiceError:
                time.sleep(0.05)
        after = keep(history, record())
        assert ids(history) == after + before


def test_after_a_failed_connect_nobody_waits_until_the_rest_is_over(wire, monkeypatch):
    now, tried = [1000.0], []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with closing(ready(wire.url)) as history:
        history.check()
        wire.cut()
        assert refused(history.check) == "history_unavailable"
        now[0] += 2.9
        with listening("do_connect", lambda *arguments: tried.append(arguments)):
            with ThreadPoolExecutor(8) as threads:
                codes = list(threads.map(lambda _: refused(history.check), range(200)))
            assert set(codes) == {"history_unavailable"} and tried == []
            wire.mend()
            assert refused(history.check) == "history_unavailable" and tried == []
            now[0] += 0.2
            history.check()
            assert tried


def test_a_server_that_falls_silent_is_missed_too(wire, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 1)
    with closing(ready(wire.url)) as history:
        keep(history, record())
        wire.frozen.set()
        assert seconds(lambda: refused(lambda: keep(history, record()))) < 5  # the ping, then the connect
        assert seconds(lambda: refused(lambda: keep(history, record()))) < 0.5


def test_connections_that_were_dropped_while_idle_are_replaced(wire):
    with closing(ready(wire.url)) as history:
        keep(history, record())
        wire.cut()
        wire.mend()
        wire.cut_after = b"INSERT INTO diagnoses"  # and the second try is still there for what happens then
        keep(history, record())
        assert history.search(Search()).total == 2 and wire.cut_after == b""


@pytest.mark.parametrize("moment", [b"INSERT INTO diagnoses", b"INSERT INTO films", b"COMMIT"])
def test_a_connection_lost_while_saving_saves_once_all_the_same(wire, moment):
    with closing(ready(wire.url)) as history:
        keep(history, record())
        batch = [record(), record()]
        wire.cut_after = moment
        history.save([Stored(each, FILM) for each in batch])
        assert wire.cut_after == b"", "it was cut"
        assert ids(history)[:2] == [batch[1]["id"], batch[0]["id"]] and history.search(Search()).total == 3
        assert [history.film(each["id"]) for each in batch] == [FILM, FILM]


def test_a_server_that_nobody_listens_at_or_that_refuses_us_is_said_so_without_the_password(mysql_url):
    real = sa.make_url(mysql_url)
    for change in ({"port": 1}, {"username": "nobody", "password": "secret"}, {"database": "pneumo_test_missing"}):
        with closing(History(text_of(real.set(**change)))) as history:
            for call in (history.check, history.upgrade):
                with pytest.raises(ServiceError) as caught:
                    call()
                assert caught.value.code == "history_unavailable" and "secret" not in str(caught.value)


def test_a_sqlite_file_that_is_put_back_from_a_copy_is_the_one_that_is_written(sqlite_url):
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(ready(sqlite_url)) as history:
        keep(history, record())
    copy = file.read_bytes()
    with closing(History(sqlite_url)) as history:
        keep(history, record())
        for path in file.parent.iterdir():
            path.unlink()
        assert refused(history.check) == "history_outdated", "it is gone, with all tables"
        file.with_suffix(".new").write_bytes(copy)
        file.with_suffix(".new").rename(file)
        keep(history, record())
    with closing(History(sqlite_url)) as history:
        assert history.search(Search()).total == 2


def test_a_file_that_is_no_database_or_cannot_be_made_is_said_so(tmp_path):
    (tmp_path / "text").write_text("not a database, but long enough to look like one" * 100)
    for path in ("text", "text/under/h.db"):
        with closing(History(f"sqlite:///{tmp_path / path}")) as history:
            assert refused(history.check) in ("history_unavailable", "history_outdated")
            assert refused(history.upgrade) == "history_unavailable"


def test_the_file_is_for_its_owner_only_and_lets_readers_and_a_writer_work_at_once(sqlite_url):
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(ready(sqlite_url)) as history:
        keep(history, record())
        assert {path.stat().st_mode & 0o077 for path in file.parent.iterdir()} == {0}
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            other.execute("BEGIN IMMEDIATE")
            assert history.search(Search()).total == 1
            with ThreadPoolExecutor(1) as threads:
                saving = threads.submit(keep, history, record())
                time.sleep(0.5)
                assert not saving.done(), "it waits for its turn"
                other.execute("COMMIT")
                assert saving.result(10)


@pytest.mark.parametrize(
    "url",
    ["", "diagnoses.db", "sqlite://", "sqlite:///:memory:", "postgresql://u:secret@h/d", "mysql://u:secret@h/d",
     "mysql+pymysql://u:secret@h", "mysql+pymysql://u:secret@h:port/d"],
)  # fmt: skip
def test_urls_that_are_no_history_are_refused_without_quoting_them(url):
    with pytest.raises(UsageError, match="sqlite:///FILE") as caught:
        History(url)
    assert "secret" not in str(caught.value)


def test_a_new_history_touches_nothing(tmp_path):
    History(f"sqlite:///{tmp_path}/deep/h.db").close()
    History("mysql+pymysql://nobody@127.0.0.1:1/none").close()
    assert list(tmp_path.iterdir()) == []


# ---- many at once, and killed ---------------------------------------------------------------------------------------


def hammer(url: str, start: int, count: int) -> None:
    """Save records of these names one by one, and every tenth time two with films."""
    with closing(History(url)) as history:
        for i in range(start, start + count):
            history.save([Stored(record(name=f"{i}.{part}"), FILM) for part in range(1 if i % 10 else 2)])


def save_batches(url: str, count: int, die_in: int = -1) -> None:
    """Save batches of ten; in one of them this process kills itself between the records and their films."""

    def die(connection, cursor, statement, *rest) -> None:
        if "INSERT INTO diagnoses" in statement:
            os.kill(os.getpid(), signal.SIGKILL)

    with closing(History(url)) as history:
        for batch in range(count):
            if batch == die_in:
                event.listen(sa.Engine, "after_cursor_execute", die)
            history.save([Stored(record(name=f"{os.getpid()}.{batch}"), FILM) for _ in range(10)])


def test_eight_threads_and_two_processes_lose_nothing(forks, history, url):
    processes = [forks.Process(target=hammer, args=(url, 1000 * i, 40)) for i in (1, 2)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(hammer, url, 10_000 * (i + 1), 20) for i in range(8)]:
            done.result()
    for process in processes:
        run_to_the_end(process)
    numbers = [*range(1000, 1040), *range(2000, 2040), *(10_000 * (i + 1) + j for i in range(8) for j in range(20))]
    expected = [f"{i}.{part}" for i in numbers for part in range(1 if i % 10 else 2)]
    found = everything(history)
    assert sorted(each["file"]["name"] for each in found) == sorted(expected)
    assert {history.film(each["id"]) for each in found[:20]} == {FILM}


@pytest.mark.parametrize("killed_from", ["inside", "outside"])
def test_killed_while_saving_only_whole_batches_are_there_and_the_next_writes_at_once(forks, history, url, killed_from):
    inside = killed_from == "inside"
    process = forks.Process(target=save_batches, args=(url, 4, 3) if inside else (url, 100_000))
    process.start()
    while process.is_alive() and (inside or history.search(Search()).total < 30):
        time.sleep(0.01)
    process.kill()
    run_to_the_end(process, -signal.SIGKILL)
    assert seconds(lambda: keep(history, record(name="next"))) < 5
    names = [each["file"]["name"] for each in everything(history)]
    batches = {name: names.count(name) for name in names if name != "next"}
    assert set(batches.values()) == {10} and (len(batches) == 3 if inside else len(batches) >= 3)
    parts = sum(len(rows) for name, rows in contents(url).items() if name == "films")
    assert parts == 10 * len(batches)
