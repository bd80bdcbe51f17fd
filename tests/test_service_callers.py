"""Hostile and unlucky callers on a real socket: afterwards the service answers, and nothing of theirs is left."""

import http.client
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from flask import Flask
from test_service_history import disk, fill, locked

from pneumo_lib import images
from pneumo_lib.service import create_app, history, server, tables
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import Search

PATIENCE = 60  # seconds that a loaded machine may take
IDLE = 1  # seconds after which the server of these tests drops who sends nothing
EDGE = b"edge"
FORM = f"multipart/form-data; boundary={EDGE.decode()}"


@contextmanager
def served(app: Flask) -> Iterator[int]:
    """The port of an application that is served as `pneumo serve` does, but for its patience."""
    bound, stop = server._bind("127.0.0.1", 0), threading.Event()
    impatient = {"threads": 8, "channel_timeout": IDLE, "cleanup_interval": IDLE}
    made = server._listen(app, bound, app.config["MAX_CONTENT_LENGTH"], **impatient)
    thread = threading.Thread(target=server._run, args=(made, stop))
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def spool(tmp_path, monkeypatch) -> Path:
    """The folder of all temporary files."""
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture
def port(clinic, spool, films) -> Iterator[int]:
    """A service that, whatever a test did to it, answers in the end and has kept nothing."""
    with served(create_app(clinic)) as number:
        yield number
        assert ask(number, form([("film.png", films[0])]))[0] == 200
        wait_until_empty(spool, clinic)


def wait_until_empty(spool: Path, clinic: Clinic | None = None) -> None:
    """Until no temporary file is left, and no place in the queue is taken; a client may be faster than that."""
    end = time.monotonic() + PATIENCE
    while (left := leftovers(spool)) or (clinic and clinic.worker._taken):
        assert time.monotonic() < end, f"{left}, {clinic and clinic.worker._taken} places"
        time.sleep(0.1)


def leftovers(spool: Path) -> list[str]:
    """Temporary files, and those without a name that are still open."""
    found = [path.name for path in spool.iterdir()]
    for number in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        found += [target] * target.startswith(str(spool))
    return found


def form(files: list[tuple[str, bytes]], fields: list[tuple[str, str]] = ()) -> bytes:
    """The body of an upload."""
    parts = [(f'name="files"; filename="{name}"', content) for name, content in files]
    parts += [(f'name="{name}"', text.encode()) for name, text in fields]
    lines = [b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (EDGE, d.encode(), c) for d, c in parts]
    return b"".join(lines) + b"--%s--\r\n" % EDGE


def ask(port: int, body: bytes, **headers: str) -> tuple[int, dict]:
    """Status and JSON of a well-behaved request."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("POST", "/api/v1/diagnose", body, {"Content-Type": FORM} | headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def look(port: int, path: str) -> tuple[int, dict]:
    """Status and JSON of a question."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def head(length: object, *more: str, path: str = "/api/v1/diagnose") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {FORM}", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        yield connection


def told(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with connected(port) as connection:
        connection.sendall(data)
        return everything(connection)


def everything(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass  # what was sent after the answer was decided
    return answer


LARGE = 3 * 2**20  # bytes; above what waitress and werkzeug hold in memory


def test_who_hangs_up_while_sending_leaves_nothing(port, clinic, spool, films):
    body = form([("film.png", films[0] + bytes(LARGE))])
    with connected(port) as connection:
        connection.sendall(head(len(body)) + body[:-100])
        end = time.monotonic() + PATIENCE
        while not leftovers(spool) and Path("/proc/self/fd").exists():
            assert time.monotonic() < end, "these tests would not see what is left"
    for share in (0.01, 0.3, 0.6, 0.99):
        for _ in range(3):
            with connected(port) as connection:
                connection.sendall(head(len(body)) + body[: int(share * len(body))])
    assert clinic.recent._cases == {} and clinic.history.search(Search()).total == 0


@pytest.mark.parametrize("free", [0, 700_000])
@pytest.mark.parametrize("sent", ["at once", "in chunks", "from the page"])
def test_an_upload_that_finds_no_room_on_the_disk_is_told_and_the_next_goes_through(
    clinic, films, tmp_path, monkeypatch, free, sent
):
    """Above half a megabyte a body goes to the disk before the application sees it."""
    body = form([("film.png", films[0] + bytes(LARGE))])
    path = "/diagnose" if sent == "from the page" else "/api/v1/diagnose"
    content = [body[at : at + 100_000] for at in range(0, len(body), 100_000)] if sent == "in chunks" else body
    with disk(tmp_path / "disk", "12m") as small, served(create_app(clinic)) as port:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        other = fill(small, free)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            for room in (False, False, True):
                if room:
                    other.unlink()
                headers = {"Content-Type": FORM}
                connection.request("POST", path, content, headers, encode_chunked=sent == "in chunks")
                response = connection.getresponse()
                answer = response.read().decode()
                if not room:
                    assert response.status == 507 and "no room for the upload on the service" in answer
                    assert response.headers["X-Request-Id"] in answer, "as every fault is told"
                    assert leftovers(small) == ["other"], "nothing of it is kept"
                    assert ask(port, form([("film.png", films[0])]))[0] == 200, "what is small needs no disk"
            assert response.status in (200, 303), "on the same connection, too"
        wait_until_empty(small)


def test_a_disk_without_room_holds_up_nobody(clinic, films, tmp_path, monkeypatch):
    body = form([("film.png", films[0] + bytes(LARGE))])
    with disk(tmp_path / "disk", "1m") as small, served(create_app(clinic)) as port, ThreadPoolExecutor(12) as pool:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        fill(small)
        found = list(pool.map(lambda _: ask(port, body), range(24)))
        assert {(status, answer["code"]) for status, answer in found} == {(507, "history_full")}
        assert clinic.history.search(Search()).total == 0 and clinic.worker._taken == 0


def test_16_at_once_under_a_lock_that_is_not_let_go_are_answered_within_seconds(port, clinic, films, monkeypatch):
    monkeypatch.setattr(tables, "BUSY_S", 1)
    monkeypatch.setattr(history, "REST_S", 1.0)
    monkeypatch.setattr(history, "PROBE_S", 0.2)
    body = form([("film.png", films[0])])
    with locked(clinic.settings.history) as other, ThreadPoolExecutor(16) as pool:
        for most in (8, 4):  # seconds: a wait for each of the 16, or of the 8 threads of this server, would take longer
            began = time.monotonic()
            found = list(pool.map(lambda _: ask(port, body), range(16)))
            assert time.monotonic() - began < most
            assert [(status, answer["results"][0]["saved"]) for status, answer in found] == [(200, False)] * 16
            for path, status, within in (("health", 200, 1), ("ready", 503, 1), ("history", 200, 1)):
                began = time.monotonic()
                assert look(port, f"/api/v1/{path}")[0] == status and time.monotonic() - began < within
        other.execute("ROLLBACK")
        end = time.monotonic() + PATIENCE
        while not ask(port, body)[1]["results"][0]["saved"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert look(port, "/api/v1/ready")[0] == 200
        assert all(answer["results"][0]["saved"] for _, answer in pool.map(lambda _: ask(port, body), range(16)))


def test_who_hangs_up_before_the_answer_gets_none_and_blocks_nobody(port, clinic, films):
    body = form([(f"{k}.png", film + bytes(LARGE // 10)) for k, film in enumerate(films[:10])])
    for _ in range(6):
        with connected(port) as connection:
            connection.sendall(head(len(body)) + body)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(port, form([("film.png", films[0])])), range(8)))
    assert {status for status, _ in answers} <= {200, 503} and 200 in {status for status, _ in answers}


def test_a_promise_of_more_than_comes_is_not_waited_for_for_ever(port, films):
    body = form([("film.png", films[0])])
    with connected(port) as connection:
        started = time.monotonic()
        connection.sendall(head(len(body) + 1000) + body)
        assert everything(connection) == b"", "the connection is closed, nothing was made of the half"
        assert time.monotonic() - started < PATIENCE / 2
    with connected(port) as connection:
        connection.sendall(head(len(body) + 1000) + body)
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection) == b""


def test_a_promise_of_less_than_comes_is_a_form_that_ends_early(port, films):
    body = form([("film.png", films[0])])
    answer = told(port, head(len(body) - 30, "Connection: close") + body)
    assert answer.startswith(b"HTTP/1.1 400") and b'"code": "bad_request"' in answer


@pytest.mark.parametrize("length", ["-1", "abc", "5, 6", "1e3", "0x10", "\u0665".encode().decode("latin-1")])
def test_a_length_that_is_no_number_is_refused(port, length):
    assert told(port, head(length) + b"x").startswith(b"HTTP/1.1 400"), "and the connection closed"


def test_more_than_any_request_may_hold_is_refused_by_its_header(port):
    answer = told(port, head(10**12))
    assert answer.startswith(b"HTTP/1.1 413") and len(answer) < 2000


@pytest.mark.parametrize("shape", ["chunked", "with Content-Length"])
def test_an_upload_may_come_in_chunks(port, films, shape):
    body = form([("film.png", films[0] + bytes(LARGE))])
    steps = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
    if shape == "chunked":
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
            connection.request("POST", "/api/v1/diagnose", iter(steps), headers, encode_chunked=True)
            assert connection.getresponse().status == 200
        return
    with connected(port) as connection:
        connection.sendall(head(len(body), "Connection: close"))
        for step in steps:
            connection.sendall(step)
        assert everything(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunk", [b"zz\r\nabc\r\n", b"-5\r\nabc\r\n", b"3\r\nabcdef\r\n0\r\n\r\n"])
def test_chunks_that_are_none_are_refused(port, chunk):
    lines = b"POST /api/v1/diagnose HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert told(port, lines + chunk).startswith(b"HTTP/1.1 400")


def test_a_header_without_end_is_refused(port):
    answer = told(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 300_000 + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.0 431", b"HTTP/1.1 431"))


def test_many_that_say_one_letter_at_a_time_block_nobody_and_are_dropped(port, films):
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(60)]
    try:
        for connection in crowd:
            connection.sendall(b"POST /api/v1/diagnose HTTP/1.1\r\nHost: loc")
        started = time.monotonic()
        assert ask(port, form([("film.png", films[0])]))[0] == 200
        assert time.monotonic() - started < PATIENCE / 2
        assert [everything(connection) for connection in crowd] == [b""] * 60, "closed by the server"
    finally:
        for connection in crowd:
            connection.close()


FORMS = {
    "nothing at all": (b"", 400, "bad_request"),
    "a form without parts": (form([]), 400, "no_file"),
    "a form without an end": (form([("a.png", b"x")])[:-10], 400, "bad_request"),
    "no form": (b"\x00\xff" * 5000, 400, "bad_request"),
    "10,000 fields": (form([], [(f"f{k}", "x") for k in range(10_000)]), 413, "too_many_bytes"),
    "10,000 files": (form([(f"{k}.png", b"x") for k in range(10_000)]), 413, "too_many_bytes"),
    "a header of a megabyte in a part": (form([("x" * 2**20, b"x")]), 413, "too_many_bytes"),
    "10,000 headers in a part": (form([("x", b"x")]).replace(b"\r\n\r\n", b"\r\nA: b" * 10_000 + b"\r\n\r\n"), 415, ""),
}


@pytest.mark.parametrize("what", FORMS)
def test_a_strange_form_gets_its_code(port, what):
    body, status, code = FORMS[what]
    found, answer = ask(port, body)
    assert found == status and answer["code"] == (code or "not_an_image")


def test_who_waits_to_be_told_to_go_on_is_told(port, films):
    body = form([("film.png", films[0])])
    with connected(port) as connection:
        connection.sendall(head(len(body), "Expect: 100-continue", "Connection: close"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert b"HTTP/1.1 200" in everything(connection)


def test_26_twenty_at_once_under_one_name_get_twenty_right_answers(port, clinic, offers, films):
    diagnoser, wanted = offers.models[0].diagnoser, {}
    for film in films[:20]:
        (said,) = diagnoser.answer(diagnoser.shrink(images.read(film))[None])
        wanted[film] = dict(said.probabilities)
    together = threading.Barrier(20)

    def upload(film: bytes) -> dict:
        together.wait(PATIENCE)
        status, answer = ask(port, form([("film.png", film)]))
        assert status == 200
        return answer["results"][0]

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(upload, films[:20]))
    assert [record["probabilities"] for record in found] == [wanted[film] for film in films[:20]]
    assert len({record["id"] for record in found}) == 20 and {record["file"]["name"] for record in found} == {
        "film.png"
    }
    assert len({json.dumps(record["probabilities"]) for record in found}) > 10
    assert {record["id"] for record in clinic.history.search(Search(per_page=100)).records} == {
        one["id"] for one in found
    }
