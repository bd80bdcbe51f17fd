"""The service when something is broken: its history, its models, its queue, its disk, or what it is asked for."""

import errno
import io
import json
import shutil
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from service_app import API, calling, results, send
from test_service_api import BAD, outcome
from test_service_history import read_only

from pneumo_lib import runs
from pneumo_lib.errors import ServiceError
from pneumo_lib.service import catalog, faults, forms, records
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import History
from pneumo_lib.service.recent import Recent
from pneumo_lib.service.settings import Settings


@contextmanager
def running(settings, offers):
    """A client of a service with those settings and models."""
    with closing(Clinic(settings, offers, History(settings.history), threads=1)) as clinic:
        yield calling(clinic)
        clinic.recent.clear()


def not_ready(client) -> list[str]:
    """The codes of what is not ready; the process itself answers all the same."""
    assert client.get(f"{API}/health").json == {"status": "ok"}
    response = client.get(f"{API}/ready")
    problems = response.json["problems"]
    assert response.json["ready"] == (not problems) and response.status_code == (503 if problems else 200)
    assert {problem["request_id"] for problem in problems} <= {response.headers["X-Request-Id"]}
    return [problem["code"] for problem in problems]


# ---- 30 to 33: the history ------------------------------------------------------------------------------------------


def gone(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_the_future(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


@pytest.fixture
def own_folder(tmp_path, blank_history) -> Path:
    (tmp_path / "own").mkdir()
    return Path(shutil.copy(blank_history, tmp_path / "own" / "history.sqlite3"))


@pytest.mark.parametrize(
    ("harm", "code"),
    [(gone, "history_unavailable"), (emptied, "history_outdated"), (of_the_future, "history_newer")],
)
def test_30_32_without_its_history_the_service_answers_and_says_what_is_not_saved(
    own_folder, offers, films, harm, code
):
    harm(own_folder)
    with running(Settings(history=f"sqlite:///{own_folder}"), offers) as client:
        assert not_ready(client) == [code]
        (record,) = results(send(client, films[0], keep_film="true"))
        assert record["label"] and (record["saved"], record["film_kept"]) == (False, False)
        assert client.get(f"{API}/history/{record['id']}").json == record, "from memory"
        for method in ("get", "delete"):
            assert outcome(getattr(client, method)(f"{API}/history")) == (503, code)
        assert outcome(client.get(f"{API}/history/none")) == (503, code)
        assert client.delete(f"{API}/history/{record['id']}").status_code == 204, "it was only in memory"


def test_30_when_the_history_is_back_answers_are_saved_again(own_folder, offers, films):
    with running(Settings(history=f"sqlite:///{own_folder}"), offers) as client:
        assert results(send(client, films[0]))[0]["saved"]
        gone(own_folder)
        assert not results(send(client, films[1]))[0]["saved"]
        own_folder.parent.with_name("elsewhere").rename(own_folder.parent)
        assert not_ready(client) == [] and results(send(client, films[2]))[0]["saved"]
        assert client.get(f"{API}/history").json["total"] == 2


def test_30_a_history_that_can_only_be_read_is_told_and_answers_go_on(own_folder, offers, films):
    with running(Settings(history=f"sqlite:///{own_folder}"), offers) as client:
        (old,) = results(send(client, films[0]))
        with read_only() as forbidden:
            assert not_ready(client) == ["history_unavailable"]
            assert "can be read and not written" in client.get(f"{API}/ready").json["problems"][0]["message"]
            (record,) = results(send(client, films[1], keep_film="true"))
            assert record["label"] and (record["saved"], record["film_kept"]) == (False, False)
            assert client.get(f"{API}/history").json["results"] == [old]
            assert outcome(client.delete(f"{API}/history/{old['id']}")) == (503, "history_unavailable")
            forbidden.clear()
            assert not_ready(client) == [] and results(send(client, films[2]))[0]["saved"]


def test_a_clock_that_jumps_back_leaves_order_and_search_right(client, films, monkeypatch):
    for moment in ("2026-03-02T00:00:01", "2026-03-01T23:59:58", "2026-03-01T23:59:59"):
        clock = SimpleNamespace(now=lambda zone, moment=moment: datetime.fromisoformat(moment).replace(tzinfo=zone))
        monkeypatch.setattr(records, "datetime", clock)
        results(send(client, (films[0], f"{moment}.png")))
    found = {
        query: client.get(f"{API}/history?{query}").json for query in ("", "before=2026-03-01", "page=2&per_page=2")
    }
    names = {query: [one["file"]["name"][-6:-4] for one in page["results"]] for query, page in found.items()}
    assert names == {"": ["01", "59", "58"], "before=2026-03-01": ["59", "58"], "page=2&per_page=2": ["58"]}


def test_33_a_full_disk_saves_nothing_and_what_is_there_can_be_read(client, clinic, films, monkeypatch):
    (kept,) = results(send(client, films[0]))

    def full(cases):
        raise ServiceError("There is no room left for the history: nothing was written.", code="history_full")

    monkeypatch.setattr(clinic.history, "save", full)
    clinic.recent.clear()
    assert outcome(send(client, films[1], films[2])) == (507, "history_full")
    assert clinic.recent._cases == {} and client.get(f"{API}/history").json["results"] == [kept]
    assert not results(send(client, films[1], save="false"))[0]["saved"], "without saving it goes on"


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, (507, "history_full")), (errno.EIO, (500, "internal"))])
def test_33_a_disk_without_room_for_the_upload_is_told(client, films, monkeypatch, number, code):
    def stream(*_, **__):
        raise OSError(number, "no such luck")

    monkeypatch.setattr(forms.Request, "_get_file_stream", stream)
    response = send(client, films[0])
    assert outcome(response) == code and "luck" not in response.text


# ---- 34: the models -------------------------------------------------------------------------------------------------

CLASSIFIER, DENOISER = "classifier/cnn2_on_unet_denoiser", "denoiser/unet_denoiser"


def change_card(folder: Path, **changes) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | changes))


def flip(run: Path) -> None:
    content = bytearray((run / CLASSIFIER / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / CLASSIFIER / "model.safetensors").write_bytes(content)


def make_nan(run: Path) -> None:
    saved = runs.load_model(run / CLASSIFIER)
    with torch.no_grad():
        next(saved.model.parameters())[0] = torch.nan
    runs.save_model(run / CLASSIFIER, saved.model, saved.card)


def exchange(run: Path) -> None:
    shutil.rmtree(run / CLASSIFIER)
    shutil.copytree(run / DENOISER, run / CLASSIFIER)


def add_a_class(run: Path) -> None:
    change_card(run / CLASSIFIER, classes=["COVID19", "NORMAL", "PNEUMONIA", "CAT"])


HARM = {
    "no weights": (lambda run: (run / CLASSIFIER / "model.safetensors").unlink(), "model.safetensors"),
    "no card": (lambda run: (run / CLASSIFIER / "model.json").unlink(), "model.json"),
    "another hash": (flip, "SHA-256"),
    "not a number": (make_nan, "NaN"),
    "another architecture": (exchange, "'unet_denoiser'; 'cnn2' was expected"),
    "another number of classes": (add_a_class, "3 classes"),
    "another number of classes, the other one": (add_a_class, "CAT"),
    "no denoiser": (lambda run: shutil.rmtree(run / DENOISER), "unet_denoiser"),
    "a card that is none": (lambda run: (run / CLASSIFIER / "model.json").write_text("[]"), "not a model card"),
    "no run": (shutil.rmtree, "holds no trained classifier"),
}


@pytest.mark.parametrize("harm", HARM)
def test_34_without_a_sound_model_the_service_starts_and_says_which(settings, tiny_run, tmp_path, films, harm):
    others = shutil.ignore_patterns("checkpoints", "state_*", "cnn2_on_autoencoder")
    run = shutil.copytree(tiny_run.path, tmp_path / "run", ignore=others)
    change, reason = HARM[harm]
    change(run)
    with running(settings, catalog.load([run])) as client:
        assert not_ready(client) == ["model_not_loaded"]
        said = client.get(f"{API}/ready").json["problems"][0]["message"]
        assert reason in said and str(tmp_path) not in said, "who asks whether it is ready need not know its folders"
        response = send(client, films[0])
        assert outcome(response) == (503, "model_not_loaded") and "Retry-After" not in response.headers
        assert response.json["message"].rstrip(".") == said.rstrip(".")
        assert client.get(f"{API}/models").json == {"models": []}
        assert client.get(f"{API}/history").json["total"] == 0


def test_34_one_bad_run_among_good_ones_is_told_and_sends_nobody_away(settings, own_folder, tiny_run, tmp_path, films):
    models = catalog.load([tmp_path / "nothing", tiny_run.path])
    with running(replace(settings, history=f"sqlite:///{own_folder}"), models) as client:
        response = client.get(f"{API}/ready")
        assert response.status_code == 200 and response.json["ready"]
        (problem,) = response.json["problems"]
        assert problem["code"] == "model_not_loaded" and "nothing holds no trained classifier" in problem["message"]
        assert problem["message"] in client.get("/").text, "people see it, too"
        assert results(send(client, films[0]))[0]["saved"]
        gone(own_folder)
        response = client.get(f"{API}/ready")
        assert response.status_code == 503 and not response.json["ready"], "now nothing is saved"
        assert [one["code"] for one in response.json["problems"]] == ["model_not_loaded", "history_unavailable"]


# ---- a file that is too large ---------------------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_told_its_size_and_the_limit(client, clinic, films):
    clinic.settings = replace(clinic.settings, file_bytes=3000)
    response = send(client, bytes(1_234_567))
    assert outcome(response) == (413, "too_many_bytes")
    assert response.json["message"] == "the file has 1,234,567 bytes; the limit is 3,000."

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    (record,) = clinic.diagnose([records.Upload("film.png", Pipe(bytes(5000)))], records.Options(), "request")
    assert record["error"]["message"] == "the file has at least 3,001 bytes; the limit is 3,000."


# ---- 26: the queue --------------------------------------------------------------------------------------------------


def test_26_when_all_places_are_taken_who_comes_is_sent_away(client, clinic, films):
    with clinic.worker.reserved(clinic.worker.places - 1):
        response = send(client, films[0], films[1])
        assert outcome(response) == (503, "busy") and response.headers["Retry-After"] == str(faults.RETRY_SECONDS)
        assert results(send(client, films[0])), "one place is left for one film"
    assert client.get(f"{API}/history").json["total"] == 1
    assert results(send(client, films[0], films[1]))


def test_a_request_that_fails_gives_its_places_back(client, clinic, films, monkeypatch):
    monkeypatch.setattr(clinic, "_read", lambda *_: 1 / 0)
    for _ in range(3):
        assert outcome(send(client, *films[:20])) == (500, "internal")
    monkeypatch.undo()
    with clinic.worker.reserved(clinic.worker.places):
        pass
    assert results(send(client, films[0]))


def test_what_fails_in_the_networks_fails_alone(client, clinic, offers, films, monkeypatch):
    answer = offers.models[0].diagnoser.answer
    monkeypatch.setattr(type(offers.models[0].diagnoser), "answer", lambda *_: 1 / 0)
    assert outcome(send(client, *films[:3])) == (500, "internal")
    monkeypatch.undo()
    assert results(send(client, films[0])) and answer and clinic.recent


def test_a_service_that_goes_down_takes_nothing_new(client, clinic, films):
    clinic.worker.close()
    assert outcome(send(client, films[0])) == (503, "busy")


def test_pictures_are_forgotten_in_time_though_nobody_asks(clinic, client, films):
    clinic.recent = Recent(clinic.settings.recent_bytes, 0.2)
    results(send(client, *films[:2]))
    assert len(clinic.recent._cases) == 2
    end = time.monotonic() + 10
    while clinic.recent._cases and time.monotonic() < end:
        time.sleep(0.05)
    assert not clinic.recent._cases and clinic.recent._bytes == 0


def test_what_is_cleared_leaves_no_clock_behind(clinic, client, films):
    before = threading.active_count()
    results(send(client, films[0]))
    assert threading.active_count() == before + 1
    clinic.recent.clear()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


# ---- the history, asked by a program --------------------------------------------------------------------------------


def test_pages_are_newest_first_and_complete(client, films):
    sent = [one["id"] for k in range(2) for one in results(send(client, *films[12 * k : 12 * k + 12]))]
    assert len(sent) == 24
    pages = [client.get(f"{API}/history?per_page=10&page={page}").json for page in (1, 2, 3, 4)]
    assert [(len(page["results"]), page["total"], page["page"], page["pages"]) for page in pages] == [
        (10, 24, 1, 3),
        (10, 24, 2, 3),
        (4, 24, 3, 3),
        (0, 24, 4, 3),
    ]
    assert [one["id"] for page in pages for one in page["results"]] == sent[::-1]
    assert client.get(f"{API}/history").json["results"] == [*pages[0]["results"], *pages[1]["results"]]


def test_the_search_finds_what_it_says(client, films):
    records = results(send(client, *films[:12])) + results(send(client, *films[:3], model="tiny/cnn2_on_autoencoder"))
    today = datetime.now(UTC).date()
    days = {name: (today + timedelta(days=shift)).isoformat() for name, shift in (("y", -1), ("t", 0), ("m", 1))}
    wanted = {
        "label=NORMAL": lambda one: one["label"] == "NORMAL",
        "status=undecided": lambda one: one["status"] == "undecided",
        "model=tiny/cnn2_on_autoencoder": lambda one: one["model"]["id"].endswith("autoencoder"),
        "label=NORMAL&status=ok&model=tiny/cnn2_on_unet_denoiser": lambda one: (
            one["label"] == "NORMAL" and one["model"]["id"].endswith("unet_denoiser")
        ),
        f"after={days['y']}&before={days['m']}": lambda one: True,
        f"before={days['y']}": lambda one: False,
        f"after={days['m']}": lambda one: False,
        "label=normal": lambda one: False,
        "label=' OR 1=1 --": lambda one: False,
        "label=&after=&page=&status=": lambda one: True,
    }
    for query, fits in wanted.items():
        found = client.get(f"{API}/history?{query}&per_page=100").json["results"]
        assert {one["id"] for one in found} == {one["id"] for one in records if fits(one)}, query


MEANT_OTHERWISE = ["page=0", "page=-1", "page=x", "page=1_0", "page=%C2%B2", "page=" + "9" * 5000, "per_page=101"]
MEANT_OTHERWISE += ["after=20260101", "after=2026-W01-1", "after=2026-02-30", "before=now", "status=fine"]
MEANT_OTHERWISE += ["lable=NORMAL", "page=1&page=2", "label=a&x"]


@pytest.mark.parametrize("query", MEANT_OTHERWISE)
def test_a_search_that_cannot_be_meant_is_refused(client, query):
    assert outcome(client.get(f"{API}/history?{query}")) == (422, "bad_option")


def test_deleting_does_not_take_a_search(client, films):
    results(send(client, films[0]))
    assert outcome(client.delete(f"{API}/history?label=NORMAL")) == (422, "bad_option"), "it would delete all"
    assert client.get(f"{API}/history").json["total"] == 1


def test_28_what_is_deleted_unknown_or_no_id_gets_one_answer(client, films):
    one, other = results(send(client, *films[:2], keep_film="true"))
    assert client.delete(f"{API}/history/{one['id']}").status_code == 204
    strange = ["none", "%00", "..%2f..%2fetc%2fpasswd", "x" * 4000, "%ff%fe", "'%20OR%201=1", one["id"].upper()]
    said = set()
    for id in [one["id"], *strange]:
        for method, path in (("get", id), ("delete", id), ("get", f"{id}/film")):
            response = getattr(client, method)(f"{API}/history/{path}")
            assert outcome(response) == (404, "not_found"), path
            said.add((response.json["message"], response.json["hint"]))
    assert len(said) <= 2, "one for ids, one for addresses that lead nowhere"
    assert client.get(f"{API}/history").json["results"] == [other]
    assert client.delete(f"{API}/history").json == {"deleted": 1}
    assert client.get(f"{API}/history").json["total"] == 0
    assert client.get(f"{API}/history/{other['id']}/film").status_code == 404


# ---- every code -----------------------------------------------------------------------------------------------------


def with_a_broken_history(client, clinic, films, code):
    def fail(*_, **__):
        raise ServiceError("as a stand-in says", code=code)

    clinic.history.save = clinic.history.search = fail
    return send(client, films[0]) if code == "history_full" else client.get(f"{API}/history")


def guarded(client, clinic, films, code):
    clinic.settings = replace(clinic.settings, token="secret")
    return client.get(f"{API}/models")


def without_models(client, clinic, films, code):
    clinic.catalog = catalog.Catalog()
    return send(client, films[0])


def small(client, clinic, films, code):
    clinic.settings = replace(clinic.settings, file_bytes=10)
    return send(client, films[0])


def failing(client, clinic, films, code):
    clinic.diagnose = None
    return send(client, films[0])


WAYS = {
    "no_file": lambda client, *_: send(client),
    "bad_request": lambda client, *_: client.post(f"{API}/diagnose", data=b"--", content_type="multipart/form-data"),
    "unauthorised": guarded,
    "forbidden": lambda client, *_: client.delete(f"{API}/history", headers={"Sec-Fetch-Site": "cross-site"}),
    "not_found": lambda client, *_: client.get(f"{API}/nothing"),
    "method_not_allowed": lambda client, *_: client.put(f"{API}/models"),
    "too_many_bytes": small,
    "too_many_files": lambda client, clinic, films, _: send(client, *[films[0]] * 21),
    "unsupported_media_type": lambda client, *_: client.post(f"{API}/diagnose", json={"files": []}),
    "unknown_model": lambda client, clinic, films, _: send(client, films[0], model="none"),
    "bad_threshold": lambda client, clinic, films, _: send(client, films[0], threshold="2"),
    "bad_option": lambda client, clinic, films, _: send(client, films[0], save="2"),
    "internal": failing,
    "busy": lambda client, clinic, films, _: clinic.worker.close() or send(client, films[0]),
    "model_not_loaded": without_models,
    "history_unavailable": with_a_broken_history,
    "history_outdated": with_a_broken_history,
    "history_newer": with_a_broken_history,
    "history_full": with_a_broken_history,
}


@pytest.mark.parametrize("code", faults.CODES)
def test_every_code_can_be_met_and_comes_with_its_status_and_hint(client, clinic, films, code):
    if code in WAYS:
        response = WAYS[code](client, clinic, films, code)
    else:
        response = send(client, next(data for data, _, found in BAD.values() if found == code))
    fault = faults.fault(code, "")
    assert outcome(response) == (fault.status, code) and response.json["hint"] == fault.hint
    assert ("Allow" in response.headers) == (code == "method_not_allowed")
    assert ("Retry-After" in response.headers) == (code == "busy")
