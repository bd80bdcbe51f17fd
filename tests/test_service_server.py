"""The server as a process: started, drained, killed, without its database, on a full disk."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import pytest
import sqlalchemy as sa
from test_service_history import Drive, Wire, disk, everything, fill, mysql_database, opened

from pneumo_lib.service.history import History

pytestmark = pytest.mark.slow


class Server:
    """`pneumo serve` in a process of its own, on a free port."""

    def __init__(self, run: Path, history: str, *options: str, **environment: str) -> None:
        command = [sys.executable, "-m", "pneumo_lib", "serve", "--port", "0", "--run", str(run), "--history", history]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen([*command, *options], env=environment, **pipes)
        self.log: list[str] = []
        for line in self.process.stdout:
            self.log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.address = found[0]
                threading.Thread(target=lambda: self.log.extend(self.process.stdout), daemon=True).start()
                return
        raise AssertionError(f"the server did not start: {''.join(self.log)}")

    def send(self, film: bytes, **fields: str) -> tuple[int, dict]:
        """Status and JSON of one diagnosis."""
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="film.png"\r\n\r\n'.encode()
        parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
        body = "".join(parts).encode() + head + film + f"\r\n--{edge}--\r\n".encode()
        return self.ask("/api/v1/diagnose", body, f"multipart/form-data; boundary={edge}")

    def ask(self, path: str, body: bytes | None = None, kind: str = "", method: str | None = None) -> tuple[int, dict]:
        """Status and JSON of one request."""
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Exit status."""
        self.process.send_signal(how)
        return self.process.wait(20)


@contextlib.contextmanager
def serving(run: Path, history: str, *options: str, **environment: str) -> Iterator[Server]:
    server = Server(run, history, *options, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


class Load:
    """Clients that send films until told to stop, and what they got."""

    def __init__(self, server: Server, films: list[bytes], clients: int = 6, **fields: str) -> None:
        self.answers: list[tuple[int, dict]] = []
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(server, films[k:] + films[:k], fields)) for k in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _client(self, server: Server, films: list[bytes], fields: dict[str, str]) -> None:
        while not self._end.is_set():
            for film in films:
                try:
                    self.answers.append(server.send(film, **fields))
                except (OSError, HTTPException, ValueError):  # the server is gone, or went in the middle of an answer
                    self._end.wait(0.05)
                if self._end.is_set():
                    return

    def wait(self, ready: Callable[[list[tuple[int, dict]]], bool], seconds: float = 60) -> None:
        """Until the answers so far are as wanted."""
        end = time.monotonic() + seconds
        while not ready(list(self.answers)):
            assert time.monotonic() < end, f"{len(self.answers)} answers, the last {self.answers[-1:]}"
            time.sleep(0.05)

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[tuple[int, dict]]:
        self._end.set()
        for thread in self._threads:
            thread.join()
        return self.answers


@pytest.fixture
def sqlite(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'history.sqlite3'}"


@pytest.fixture
def mysql() -> Iterator[str]:
    with mysql_database() as url:
        yield url


def kept(history: str) -> list[dict]:
    """All records of a history, read while nobody else has it."""
    with closing(History(history)) as found:
        found.check()
        return everything(found)


def test_sigterm_lets_what_is_in_work_finish_and_ends_within_ten_seconds(tiny_run, films, sqlite):
    with serving(tiny_run.path, sqlite) as server, Load(server, films) as load:
        load.wait(lambda answers: len(answers) > 20)
        since = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - since < 10
        answers = load.stop()
    assert {status for status, _ in answers} == {200}
    saved = {answer["results"][0]["id"] for _, answer in answers if answer["results"][0]["saved"]}
    assert saved == {record["id"] for record in kept(sqlite)}, "every answer that was given is in the history, no other"


LARGE = 1_200_000  # bytes; above what waitress and werkzeug hold in memory


@pytest.mark.parametrize("database", ["sqlite", "mysql"])
def test_a_killed_server_leaves_whole_rows_no_lock_and_no_file(tiny_run, films, tmp_path, request, database):
    history, spool = request.getfixturevalue(database), tmp_path / "spool"
    spool.mkdir()
    sent = [film + bytes(LARGE) * (k % 3 == 0) for k, film in enumerate(films)]
    for _ in range(2):
        with (
            serving(tiny_run.path, history, TMPDIR=str(spool)) as server,
            Load(server, sent, keep_film="true") as load,
        ):
            load.wait(lambda answers: len(answers) > 20)
            load.wait(lambda _, server=server: spooled(server, spool))
            server.stop(signal.SIGKILL)
            answers = load.stop()
        assert left(spool) == []
        with closing(History(history)) as held:
            began = time.monotonic()
            assert not held.delete("nobody") and time.monotonic() - began < 5, "nobody holds a lock"
            records = {record["id"]: record for record in kept(history)}
            told = [answer["results"][0] for status, answer in answers if status == 200]
            assert told and all(records[one["id"]] == one for one in told if one["saved"])
            assert any(one["file"]["bytes"] > LARGE for one in told)
            assert all(held.film(id).startswith(b"\x89PNG") for id in records)
        assert films_of(history) == set(records), "no film without its record"
    with serving(tiny_run.path, history, TMPDIR=str(spool)) as server:
        assert server.send(sent[0])[1]["results"][0]["saved"]
        assert server.ask("/api/v1/history")[1]["total"] == len(records) + 1
        assert server.stop() == 0
    assert left(spool) == []
    if database == "sqlite":
        with closing(sqlite3.connect(tmp_path / "history.sqlite3")) as file:
            assert file.execute("pragma integrity_check").fetchall() == [("ok",)]
        names = {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()}
        assert names == {"history.sqlite3", "spool"}


def left(spool: Path) -> list[str]:
    """Names of temporary files, but for those of PyTorch: the number of a session, and the folder of its compiler."""
    return [path.name for path in spool.iterdir() if path.name != ".ses" and not path.name.startswith("torchinductor_")]


def spooled(server: Server, spool: Path) -> bool:
    """Whether the server has a temporary file open at this moment; without /proc nobody can tell."""
    files = Path(f"/proc/{server.process.pid}/fd")
    if not files.exists():
        return True
    found = []
    for link in files.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(link))
    return any(target.startswith(str(spool)) for target in found)


def films_of(history: str) -> set[str]:
    """The ids of all films."""
    with opened(history) as connection:
        return set(connection.execute(sa.text("SELECT id FROM films")).scalars())


@pytest.fixture(params=["mysql", "sqlite"])
def link(request, tmp_path) -> Iterator[Wire | Drive]:
    """The way to a database, which can be cut."""
    if request.param == "sqlite":
        yield Drive(f"sqlite:///{tmp_path / 'drive' / 'history.sqlite3'}")
        return
    wire = Wire(request.getfixturevalue("mysql"))
    yield wire
    wire.cut()


def test_answers_go_on_without_the_database_and_are_saved_again_when_it_is_back(tiny_run, films, link):
    with serving(tiny_run.path, link.url) as server, Load(server, films) as load:
        load.wait(lambda answers: any(answer["results"][0]["saved"] for _, answer in answers))
        link.cut()
        load.wait(lambda answers: all(not answer["results"][0]["saved"] for _, answer in answers[-6:]))
        status, problem = server.ask("/api/v1/ready")
        assert (status, problem["problems"][0]["code"]) == (503, "history_unavailable")
        assert server.ask("/api/v1/health")[0] == 200 and server.ask("/api/v1/history")[0] == 503
        link.mend()
        load.wait(lambda answers: all(answer["results"][0]["saved"] for _, answer in answers[-6:]))
        assert server.ask("/api/v1/ready")[0] == 200
        answers = load.stop()
    assert {status for status, _ in answers} == {200}, "an answer is worth having without being kept"
    saved = [answer["results"][0]["id"] for _, answer in answers if answer["results"][0]["saved"]]
    assert 0 < len(saved) < len(answers)
    assert set(saved) <= {record["id"] for record in kept(link.url)}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of its own of 2 MB."""
    with disk(tmp_path / "disk", "2m") as folder:
        yield folder


def test_a_full_disk_is_told_and_what_was_saved_stays_readable(tiny_run, films, small_disk):
    history = f"sqlite:///{small_disk / 'history.sqlite3'}"
    with serving(tiny_run.path, history) as server:
        (small_disk / "other").write_bytes(bytes(1_400_000))
        answers = [server.send(films[0], keep_film="true") for _ in range(3)]
        while answers[-1][0] == 200:
            answers.append(server.send(films[len(answers) % len(films)], keep_film="true"))
            assert len(answers) < 2000
        assert (answers[-1][0], answers[-1][1]["code"]) == (507, "history_full")
        status, found = server.ask("/api/v1/history")
        assert (status, found["total"]) == (200, len(answers) - 1), "no half row, and all of the rest"
        assert server.send(films[0], save="false")[0] == 200
        (small_disk / "other").unlink()
        assert server.send(films[0], keep_film="true")[0] == 200
        assert server.ask("/api/v1/history")[1]["total"] == len(answers)


def test_a_disk_that_fills_up_under_load_costs_only_what_it_says(tiny_run, films, small_disk):
    history = f"sqlite:///{small_disk / 'history.sqlite3'}"
    with serving(tiny_run.path, history) as server, Load(server, films, keep_film="true") as load:
        for _ in range(2):
            seen = len(load.answers)
            load.wait(lambda answers, seen=seen: sum(status == 200 for status, _ in answers[seen:]) > 5)
            other = fill(small_disk)
            seen = len(load.answers)
            load.wait(lambda answers, seen=seen: sum(status == 507 for status, _ in answers[seen:]) > 20)
            assert server.ask("/api/v1/health")[0] == 200 and server.ask("/api/v1/history")[0] == 200
            other.unlink()
        seen = len(load.answers)
        load.wait(lambda answers: sum(saved(one) for one in answers[seen:]) > 20)
        answers = load.stop()
        total = server.ask("/api/v1/history")[1]["total"]
    assert {status for status, _ in answers} == {200, 507}
    assert {answer["code"] for status, answer in answers if status == 507} == {"history_full"}
    told = {answer["results"][0]["id"] for status, answer in answers if saved((status, answer))}
    records = {record["id"]: record for record in kept(history)}
    assert set(records) == told and total == len(told), "what was said to be saved, and nothing else"
    assert films_of(history) == told
    with closing(sqlite3.connect(small_disk / "history.sqlite3")) as file:
        assert file.execute("pragma integrity_check").fetchall() == [("ok",)]


def saved(answer: tuple[int, dict]) -> bool:
    return answer[0] == 200 and answer[1]["results"][0]["saved"]


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(tiny_run, sqlite):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "pneumo_lib", "serve", "--run", str(tiny_run.path), "--port", port]
        done = subprocess.run([*command, "--history", sqlite], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_elsewhere_than_on_this_machine_a_token_is_made_up_and_asked_for(tiny_run, films, sqlite):
    with serving(tiny_run.path, sqlite, "--proxy") as server:
        token = re.search(r"token: (\S+)", "".join(server.log) + _later(server))[1]
        assert server.send(films[0])[0] == 401 and server.ask("/api/v1/health")[0] == 200
        request = urllib.request.Request(
            f"{server.address}/api/v1/models", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200


def _later(server: Server) -> str:
    end = time.monotonic() + 10
    while "token: " not in "".join(server.log) and time.monotonic() < end:
        time.sleep(0.05)
    return "".join(server.log)
