"""The pages of the service without a browser: words, languages, fragments, exports, and nothing sent becomes markup."""

import csv
import json
from gettext import GNUTranslations
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from babel.messages import extract
from babel.messages.pofile import read_po
from flask_babel import force_locale

from pneumo_lib.errors import ServiceError
from pneumo_lib.service import create_app, export, faults, pages
from pneumo_lib.service.history import Found
from pneumo_lib.service.records import Options
from pneumo_lib.service.settings import Settings

HERE = Path(pages.__file__).parent
CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
EVIL = '"><img src=x onerror=alert(1)>.png'
ESCAPED = "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;.png"
OFFER = SimpleNamespace(
    id="run/cnn2",
    title="cnn2, trained on films",
    category="chest X-ray",
    dataset="films",
    phantom=False,
    classes=CLASSES,
    threshold=0.8,
    noise_handling="denoise",
    handlings=("none", "denoise"),
    denoiser="unet_denoiser",
    sha256="ab" * 32,
    papers="",
    card={"architecture": "cnn2", "parameters": 1234567, "decision": {"temperature": 1.5, "val_accuracy": None}},
)
SLICES = SimpleNamespace(**vars(OFFER) | {"id": "ct/cnn5", "category": "CT", "title": "cnn5", "threshold": 0.7})


def record(id="a1", *, status="ok", **changes):
    """A record as the API documents it."""
    file = {"name": "film.png", "sha256": "ef" * 32, "bytes": 2048, "kind": "PNG", "width": 64, "height": 48, "bits": 8}
    model = {"id": "run/cnn2", "name": "cnn2", "title": "cnn2, trained on films", "category": "chest X-ray"}
    model |= {"sha256": "ab" * 32, "denoiser": "unet_denoiser", "denoiser_sha256": "cd" * 32, "phantom": False}
    found = {"id": id, "created_at": "2026-11-21T16:20:00.123Z", "status": status, "model": model, "threshold": 0.8}
    found |= {"file": file | {"notes": ["inverted (MONOCHROME1)"], "facts": {"Modality": "DX"}}, "error": None}
    found |= {"noise_handling": "denoise", "label": None, "candidates": [], "confidence": None, "probabilities": None}
    found |= {"likeness": {"score": 0.25, "cutoff": 1.0, "nearest": "NORMAL"}, "saved": True, "film_kept": False}
    if status in ("ok", "unchecked"):
        found |= {"label": "NORMAL", "candidates": ["NORMAL"], "confidence": 0.93}
        found |= {"probabilities": {"COVID19": 0.0001, "NORMAL": 0.93, "PNEUMONIA": 0.0699}}
    if status == "undecided":
        found |= {"candidates": ["NORMAL", "PNEUMONIA"], "confidence": 0.6}
        found |= {"probabilities": {"COVID19": 0.1, "NORMAL": 0.6, "PNEUMONIA": 0.3}}
    if status == "unchecked":
        found["likeness"] = None
    if status == "refused":
        found["likeness"] = {"score": 3.5, "cutoff": 1.25, "nearest": "PNEUMONIA"}
    if status == "error":
        found |= {"likeness": None, "saved": False}
        found["file"] |= {"kind": None, "width": None, "height": None, "bits": None, "notes": [], "facts": {}}
        found["error"] = faults.fault("incomplete", "film.png: it ends early").to_dict("request-7")
    return found | changes


class Clinic:
    """Answers what it was told to, and remembers what it was asked."""

    def __init__(self):
        self.settings, self.catalog = Settings(history="sqlite:///unused"), SimpleNamespace(models=(OFFER, SLICES))
        self.records = {case["id"]: case for case in (record(), record("b2", status="undecided"))}
        self.history, self.faults, self.gone, self.asked = self, [], set(), []

    def ready(self):
        return self.faults

    def diagnose(self, uploads, options, request_id):
        self.asked.append(options)
        found = [record(f"new{k}") for k in range(len(uploads))]
        for case, upload in zip(found, uploads, strict=True):
            case["file"]["name"] = upload.name
        self.records |= {case["id"]: case for case in found}
        return found

    def case(self, id):
        return self.records.get(id)

    def redecide(self, id, threshold):
        return record(id, status="undecided", threshold=threshold) if id in self.records else None

    def picture(self, id, what):
        return None if id in self.gone or id not in self.records else b"PNG of " + what.encode()

    def has_pictures(self, id):
        return self.picture(id, "film") is not None

    def stages(self, id):
        return [] if id in self.gone else ["features.0"]

    def delete(self, id):
        return self.records.pop(id, None) is not None

    def delete_all(self):
        return 3

    def search(self, wanted):
        if self.faults:
            raise ServiceError("the database does not answer", code=self.faults[0]["code"])
        self.asked.append(wanted)
        found = list(self.records.values())
        return Found(found, len(found), wanted.page, 3)

    def choices(self):
        return ["NORMAL"], ["run/cnn2"]


@pytest.fixture
def clinic():
    return Clinic()


@pytest.fixture
def app(clinic):
    return create_app(clinic)


@pytest.fixture
def client(app):
    return app.test_client()


def films(*names, **fields):
    return fields | {"files": [(BytesIO(b"film"), name) for name in names]}


SCRIPT = {"X-Fragment": "1"}
CHINESE = {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}
PAGES = ("/", "/?id=a1&id=b2", "/results/a1", "/history", "/about", "/results/none", "/export.csv")


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.mark.parametrize("path", PAGES)
def test_no_page_needs_more_than_the_policy_allows(client, path):
    for tag, attributes in Tags(client.get(path).text).found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert tag != "style" and (tag != "script" or attributes["src"].startswith("/static/"))
        assert not str(attributes.get("src", attributes.get("href"))).startswith(("http", "//", "javascript")), (
            attributes
        )


@pytest.mark.parametrize("path", PAGES)
def test_behind_a_prefix_every_address_carries_it(client, path):
    page = Tags(client.get(path, environ_overrides={"SCRIPT_NAME": "/pneumo"}).text)
    found = [attributes.get(name) for _, attributes in page.found for name in ("href", "src", "action", "data-home")]
    assert not [target for target in found if target and not target.startswith(("/pneumo/", "#"))]


def test_no_template_trusts_a_text():
    for template in (HERE / "templates").iterdir():
        source = template.read_text("utf-8")
        assert "|safe" not in source.replace(" ", "") and "autoescape" not in source, template.name
        assert template.suffix == ".html", "other names are not escaped"


@pytest.mark.parametrize("path", [*PAGES, "/results/a1/pictures/cam/NORMAL.png", "/export.html?id=a1", "/language/en"])
def test_nothing_is_kept_by_a_cache(client, path):
    assert client.get(path).headers["Cache-Control"] == "no-store"


def test_the_form_offers_every_model_and_says_the_limits(client):
    tags, text = Tags(client.get("/").text), client.get("/").text
    assert [group["label"] for group in tags.of("optgroup")] == ["Chest X-ray", "CT"]
    assert {option["value"] for option in tags.of("option")} >= {"run/cnn2", "ct/cnn5"}
    assert "At most 16 MB and 40 million pixels a film, 20 films at a time." in text
    ticked = {field["name"] for field in tags.of("input") if field.get("type") == "checkbox" and "checked" in field}
    assert ticked == {"own", "save"}, "the film itself is kept only if the visitor ticks so"
    assert tags.of("form")[0]["enctype"] == "multipart/form-data"


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"own": "1", "threshold": "0.8", "save": "1"}, Options()),
        ({"threshold": "0.35", "save": "1"}, Options(threshold=0.35)),
        ({"own": "1", "model": "ct/cnn5", "noise_handling": "none"}, Options("ct/cnn5", "none", save=False)),
        ({"save": "1", "keep_film": "1"}, Options(keep_film=True)),
        ({"keep_film": "1"}, Options(save=False, keep_film=True)),
    ],
)
def test_what_the_form_says_is_what_is_asked_for(client, clinic, fields, options):
    assert client.post("/diagnose", data=films("a.png", **fields)).status_code == 200
    assert clinic.asked == [options]


def test_films_are_diagnosed_without_a_script(client):
    page = client.post("/diagnose", data=films("a.png", "b.png", own="1"))
    assert [article["data-id"] for article in Tags(page.text).of("article")] == ["new0", "new1"]
    assert page.text.startswith("\n<!doctype html>") or page.text.startswith("<!doctype html>")
    assert "a.png" in page.text and "b.png" in page.text
    assert "back=/?id%3Dnew0%26id%3Dnew1" in page.text, "a switch of language comes back to these films"


def test_a_script_gets_the_cards_alone(client):
    for answer in (
        client.post("/diagnose", data=films("a.png", own="1"), headers=SCRIPT),
        client.get("/results/a1", headers=SCRIPT),
        client.post("/results/a1/threshold", data={"threshold": "0.99"}, headers=SCRIPT),
    ):
        assert answer.status_code == 200 and "<html" not in answer.text and len(Tags(answer.text).of("article")) == 1


def test_a_form_without_a_file_is_told_so(client):
    answer = client.post("/diagnose", data={"own": "1", "files": (BytesIO(b""), "")})
    assert answer.status_code == 400 and "No file was chosen" in answer.text
    assert answer.headers["X-Request-Id"] in answer.text


@pytest.mark.parametrize("text", ["", "much", "nan", "1.5", "-0.1"])
def test_a_threshold_that_is_none_is_refused(client, text):
    answers = [client.post("/results/a1/threshold", data={"threshold": text})]
    if text:
        answers.append(client.post("/diagnose", data=films("a.png", threshold=text)))
    for answer in answers:
        assert answer.status_code == 422 and "The threshold is not a number from 0 to 1" in answer.text


WORDS = {
    "ok": ("Answered", "NORMAL means none of the other classes; it is not an all-clear."),
    "undecided": ("Undecided: NORMAL or PNEUMONIA", "less than the threshold of 80\u00a0%"),
    "refused": ("This does not look like a chest X-ray", "3.50; the cut-off is 1.25"),
    "unchecked": ("Answered, picture not checked", "not the same as having passed a check"),
    "error": ("The file is incomplete", "request-7"),
}


@pytest.mark.parametrize("status", WORDS)
def test_each_status_has_its_words(client, clinic, status):
    clinic.records["a1"] = record(status=status)
    text = client.get("/results/a1").text
    assert all(words in text for words in WORDS[status])
    assert ("<strong>NORMAL</strong>" in text) == (status in ("ok", "unchecked"))
    assert ("data-redecide" in text) == (status in ("ok", "unchecked", "undecided"))
    assert ("The probability is calibrated" in text) == (status not in ("refused", "error")), "where there is one"
    assert ("A file that cannot be read is not saved" in text) == (status == "error")


def test_a_refused_picture_gets_no_class_at_all(client, clinic):
    clinic.records["a1"] = record(status="refused")
    for path in ("/results/a1", "/export.html?id=a1"):
        text = client.get(path).text
        assert not [name for name in CLASSES if name in text], "not even the one it is nearest to"
        assert "Grad-CAM" not in text and "Feature maps" not in text


def test_an_undecided_film_of_an_unchecked_model_is_undecided(client, clinic):
    clinic.records["a1"] = record(status="undecided") | {"status": "unchecked", "likeness": None}
    text = client.get("/results/a1").text
    assert "Undecided: NORMAL or PNEUMONIA" in text and "not the same as having passed a check" in text


def test_a_film_that_is_undecided_above_the_threshold_gets_the_other_reason(client, clinic):
    clinic.records["a1"] = record(status="undecided", threshold=0.55)
    text = client.get("/results/a1").text
    assert "a bar set on its validation films" in text and "less than the threshold" not in text


def test_a_class_has_the_colour_of_every_figure_and_its_number_as_text(client):
    text = client.get("/results/a1").text
    assert 'width="93.00%" height="14" rx="2" fill="#CC79A7"' in text, "NORMAL, and not green"
    assert "93.0\u00a0%" in text and "&lt; 0.1\u00a0%" in text


@pytest.mark.parametrize("path", ["/?id=a1", "/results/a1", "/history", "/export.html?id=a1"])
def test_a_name_is_shown_as_text(client, clinic, path):
    case = record()
    case["file"] |= {"name": EVIL, "notes": ["<script>1</script>"], "facts": {"<b>Odd": "<i>"}}
    clinic.records = {"a1": case | {"model": case["model"] | {"title": "<u>model</u>"}}}
    text = client.get(path).text
    assert ESCAPED in text and EVIL not in text
    assert not [tag for tag, _ in Tags(text).found if tag in ("script", "b", "i", "u") and tag + ">1<" in text]
    assert "<u>" not in text and "<b>" not in text and "<script>" not in text


def test_the_film_stands_beside_what_the_network_saw_and_where_it_looked(client):
    tags = Tags(client.get("/results/a1?cam=PNEUMONIA").text)
    shown = {picture["src"].partition("/pictures/")[2]: picture for picture in tags.of("img") if "alt" in picture}
    assert {"film.png", "denoised.png", "cam/PNEUMONIA.png", "stage/features.0.png"} <= shown.keys()
    assert all("alt" in picture for picture in tags.of("img"))
    assert "Grad-CAM of PNEUMONIA" in shown["cam/PNEUMONIA.png"]["alt"]
    assert shown["stage/features.0.png"]["loading"] == "lazy"


def test_an_unknown_class_falls_back_to_the_most_probable_one(client):
    assert "cam/NORMAL.png" in client.get("/results/b2?cam=CAT").text


def test_a_film_that_was_not_denoised_has_no_denoised_picture(client, clinic):
    clinic.records["a1"] = record(noise_handling="none")
    assert "denoised.png" not in client.get("/results/a1").text


def test_pictures_are_served_while_they_are_held(client, clinic):
    answer = client.get("/results/a1/pictures/stage/features.0.png")
    assert (answer.data, answer.mimetype) == (b"PNG of stage/features.0", "image/png")
    clinic.gone.add("a1")
    assert client.get("/results/a1/pictures/film.png").status_code == 404
    text = client.get("/results/a1").text
    assert "The pictures of this film are gone" in text and "/pictures/" not in text


def test_another_threshold_decides_again(client):
    answer = client.post("/results/a1/threshold", data={"threshold": "0.99"})
    assert (answer.status_code, answer.location) == (303, "/results/a1")
    text = client.post("/results/a1/threshold", data={"threshold": "0.99"}, headers=SCRIPT).text
    assert 'data-status="undecided"' in text and "Back to the model&#39;s own, 80\u00a0%" in text.replace("'", "&#39;")
    back = client.post("/results/a1/threshold", data={"threshold": "0.1", "own": "0.8"}, headers=SCRIPT).text
    assert "Back to the model" not in back, "it is in force"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/results/none"),
        ("post", "/results/none/threshold"),
        ("post", "/results/none/delete"),
        ("get", "/results/none/pictures/film.png"),
        ("get", "/export.html?id=none"),
    ],
)
def test_a_film_that_is_not_here_is_not_found(client, method, path):
    answer = getattr(client, method)(path, data={"threshold": "0.5"} if method == "post" else None)
    assert answer.status_code == 404 and "It may have been deleted, or forgotten" in answer.text


def test_films_that_are_gone_are_counted_on_the_first_page(client):
    assert "2 films are no longer here" in client.get("/?id=a1&id=x&id=y").text
    assert "no longer here" not in client.get("/?id=a1").text


def test_deleting_goes_back_to_the_history_or_says_so_in_place(client, clinic):
    assert client.post("/results/a1/delete").location == "/history?deleted=1"
    assert "were deleted" in client.post("/results/b2/delete", headers=SCRIPT).text
    assert clinic.records == {}
    assert client.post("/history/delete").location == "/history?deleted=3"
    assert "3 diagnoses were deleted." in client.get("/history?deleted=3").text


def test_the_history_is_searched_as_the_form_says(client, clinic):
    query = "after=2026-11-01&before=2026-11-21&label=NORMAL&model=run/cnn2&status=ok&page=2"
    text = client.get("/history?" + query).text
    wanted = clinic.asked[0]
    assert (wanted.after.isoformat(), wanted.before.isoformat()) == ("2026-11-01", "2026-11-21")
    assert (wanted.label, wanted.model, wanted.status, wanted.page) == ("NORMAL", "run/cnn2", "ok", 2)
    assert 'value="2026-11-01"' in text and 'value="ok" selected' in text and "Page 2 of 3" in text
    links = [link["href"] for link in Tags(text).of("a") if link.get("rel") in ("next", "prev")]
    assert len(links) == 2 and all("label=NORMAL" in link and "after=2026-11-01" in link for link in links)


@pytest.mark.parametrize("query", ["after=yesterday", "before=2026-02-30", "page=first"])
def test_a_search_that_cannot_be_read_is_told_so(client, query):
    answer = client.get("/history?" + query)
    assert answer.status_code == 422 and query.partition("=")[2] in answer.text


def test_an_empty_history_and_an_empty_search_say_so(client, clinic):
    clinic.records = {}
    assert "The history is empty." in client.get("/history").text
    assert "Nothing in the history fits this search." in client.get("/history?label=NORMAL").text


@pytest.mark.parametrize("code", ["history_unavailable", "history_outdated", "history_newer"])
def test_a_history_that_fails_is_a_page_with_what_to_do_and_a_banner_elsewhere(client, clinic, code):
    clinic.faults = [faults.fault(code, "the database does not answer").to_dict("request-7")]
    answer = client.get("/history")
    assert answer.status_code == 503 and f"<code>{code}</code>" in answer.text
    assert "nothing is saved" in answer.text and "nothing is saved" in client.get("/").text


def test_the_demo_and_a_missing_model_are_said(client, clinic):
    assert "Demo model" not in client.get("/").text
    clinic.faults = [faults.fault("model_not_loaded", "weights missing").to_dict("request-7")]
    text = client.get("/").text
    assert "A model could not be loaded.</strong> The others answer" in text and "weights missing" in text
    assert "没有加载模型" not in client.get("/", headers=CHINESE).text, "there are others"
    clinic.catalog.models = (SimpleNamespace(**vars(OFFER) | {"phantom": True}),)
    assert "what it says of a real film means nothing" in client.get("/").text
    clinic.catalog.models = ()
    text = client.get("/").text
    assert "No model is loaded" in text and "weights missing" in text and "<form" not in text
    assert client.get("/about").status_code == 200


def test_a_published_model_shows_its_card(client, clinic):
    assert "/card" not in client.get("/about").text and client.get(f"/models/{OFFER.id}/card").status_code == 404
    card = "# Model card: cnn2\n\n| films | n |\n|---|---|\n| `test` | 1,244 |\n\n<script>alert(1)</script>\n"
    clinic.catalog.models = (SimpleNamespace(**vars(OFFER) | {"papers": card}),)
    assert f'href="/models/{OFFER.id}/card"' in client.get("/about").text
    page = client.get(f"/models/{OFFER.id}/card", headers=CHINESE).text
    assert "<h1>Model card: cnn2</h1>" in page and "<td>1,244</td>" in page and "模型卡为英文" in page
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    assert client.get("/models/run/none/card").status_code == 404


@pytest.mark.parametrize("path", PAGES)
def test_every_page_says_what_it_is_not(client, path):
    assert "Research and teaching only, not a medical device." in client.get(path).text
    assert "仅供研究与教学，不是医疗器械。" in client.get(path, headers=CHINESE).text


def test_a_busy_service_says_when_to_try_again(app):
    with app.test_request_context(headers=SCRIPT):
        answer = pages.error_page(faults.fault("busy", "the queue is full").to_dict("request-7"), 503)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(faults.RETRY_SECONDS))
    text = answer.get_data(as_text=True)
    assert "<html" not in text and 'data-status="error"' in text


# Exports


def test_the_names_of_exports_are_plain_and_dated(client):
    for kind in ("html", "csv", "json"):
        answer = client.get(f"/export.{kind}?id=a1")
        start, _, name = answer.headers["Content-Disposition"].partition("=")
        assert start == "attachment; filename" and name.isascii() and name.startswith("pneumo-20")
        assert name.endswith("." + kind) and answer.mimetype == pages.TYPES[kind]


def test_an_export_needs_films_and_leaves_out_those_that_are_gone(client):
    assert client.get("/export.json").status_code == 400
    assert client.get("/export.json?" + "&".join(f"id={k}" for k in range(pages.MOST_EXPORTED + 1))).status_code == 400
    assert [case["id"] for case in client.get("/export.json?id=b2&id=none&id=a1&id=b2").json] == ["b2", "a1"]


def test_json_is_the_records_themselves(client, clinic):
    clinic.records["a1"]["file"]["name"] = "肺炎.png"
    answer = client.get("/export.json?id=a1")
    assert answer.json == [clinic.records["a1"]] and "肺炎.png" in answer.text


def test_the_exported_page_loads_nothing(client, clinic):
    clinic.records["c3"], clinic.records["d4"] = record("c3", status="refused"), record("d4", status="error")
    text = client.get("/export.html?id=a1&id=b2&id=c3&id=d4").text
    tags = Tags(text)
    assert not tags.of("script") and not tags.of("link") and "http://" not in text and "https://" not in text
    assert all(picture["src"].startswith("data:image/png;base64,") and "alt" in picture for picture in tags.of("img"))
    assert len(tags.of("article")) == 4 and len(tags.of("img")) == 4 + 4 + 1, "film twice: plain and under the map"
    assert "ab" * 32 in text, "paper has no tooltips: hashes in full"


def test_the_exported_page_says_when_pictures_are_gone(client, clinic):
    clinic.gone.add("a1")
    text = client.get("/export.html?id=a1").text
    assert "The pictures of this film are gone" in text and "<img" not in text and "93.0" in text


def test_a_table_has_one_row_per_film_whatever_its_status():
    cases = [record(f"id{k}", status=status) for k, status in enumerate(WORDS)]
    text = export.to_csv(cases)
    assert text.startswith("\ufeff"), "or Excel reads Chinese names wrong"
    rows = list(csv.DictReader(StringIO(text.removeprefix("\ufeff"))))
    assert [row["status"] for row in rows] == list(WORDS) and None not in rows[0]
    assert [row["p_NORMAL"] for row in rows] == ["0.93", "0.6", "", "0.93", ""]
    assert rows[1]["candidates"] == "NORMAL; PNEUMONIA" and rows[4]["error_code"] == "incomplete"
    assert all(row["disclaimer"] == "Research and teaching only, not a medical device." for row in rows)


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\tx", "\rx"])
def test_a_table_runs_no_formula(name):
    case = record()
    case["file"]["name"] = name
    case["probabilities"] = {name: 1.0}
    rows = list(csv.reader(StringIO(export.to_csv([case]).removeprefix("\ufeff"), newline="")))
    assert "'" + name in rows[1] and not [cell for cell in rows[0] + rows[1] if cell.startswith(("=", "+", "@", "\t"))]


def test_no_films_make_an_empty_table_and_list():
    assert export.to_csv([]).strip("\ufeff\r\n") == "" and json.loads(export.to_json([])) == []


# Languages


@pytest.mark.parametrize(
    ("wished", "chosen", "language"),
    [
        ("", "", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "", "zh-Hans"),
        ("zh-CN", "", "zh-Hans"),
        ("zh-Hans-CN, en;q=0.5", "", "zh-Hans"),
        ("en-GB,en;q=0.9,zh;q=0.8", "", "en"),
        ("de,fr;q=0.9,zh;q=0.5,en;q=0.4", "", "zh-Hans"),
        ("de", "", "en"),
        ("zh-CN", "en", "en"),
        ("en", "zh", "zh-Hans"),
        ("en", "klingon", "en"),
        (";;q=x,,\u00e9", "", "en"),
    ],
)
def test_the_language_is_the_browsers_unless_chosen(client, wished, chosen, language):
    if chosen:
        client.set_cookie("lang", chosen)
    page = Tags(client.get("/about", headers={"Accept-Language": wished}).text)
    assert page.of("html")[0]["lang"] == language


def test_only_the_switch_sets_the_one_cookie(client):
    assert all("Set-Cookie" not in client.get(path).headers for path in PAGES)
    answer = client.get("/language/zh?back=/history?label%3DNORMAL")
    assert answer.location == "/history?label=NORMAL"
    assert answer.headers["Set-Cookie"].startswith("lang=zh;") and "HttpOnly" in answer.headers["Set-Cookie"]
    assert "<h1>历史记录</h1>" in client.get("/history").text
    assert client.get("/language/xx").status_code == 404


@pytest.mark.parametrize(
    "back",
    ["", "https://evil.example/", "//evil", "//[", "/\\evil", "/\t/evil", "\\\\evil", "javascript:1", "/\r\nX: y", "x"],
)
def test_a_switch_of_language_leads_nowhere_else(client, back):
    assert client.get("/language/en", query_string={"back": back}).location == "/"


def sources():
    """Every message that templates and modules use, as (context, text, plural)."""
    kinds = [("templates/*.html", "jinja2"), ("*.py", "python")]
    found = extract.extract_from_dir(HERE, [(k, m) for k, m in kinds], keywords=extract.DEFAULT_KEYWORDS)
    for _, _, message, _, context in found:
        yield context, *(message if isinstance(message, tuple) else (message, None))


def test_everything_said_is_said_in_chinese_too():
    folder = HERE / "translations" / "zh" / "LC_MESSAGES"
    with (folder / "messages.po").open("rb") as text, (folder / "messages.mo").open("rb") as compiled:
        words, shipped = read_po(text), GNUTranslations(compiled)
    wanted = set(sources())
    assert len(wanted) > 200
    for context, text, plural in wanted:
        found = words.get(text, context)
        assert found is not None and not found.fuzzy, f"not translated: {text}"
        said = found.string[0] if plural else found.string
        assert said and not set('<>&"') & set(said), text
        assert placeholders(said) == placeholders(plural or text), text
        used = shipped.pgettext(context, text) if context else shipped.ngettext(text, plural or text, 2)
        assert said == (used if context or plural else shipped.gettext(text)), f"compile the translations again: {text}"
    unused = {(message.context, message.id) for message in words if message.id and isinstance(message.id, str)}
    assert unused <= {(context, text) for context, text, _ in wanted}, "translated, but said nowhere"


def placeholders(text):
    return sorted(part.partition(")")[0] for part in text.split("%(")[1:])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_fault_has_a_title_and_a_hint(app, language):
    with app.test_request_context(), force_locale(language):
        words = app.jinja_env.get_template("_words.html").module
        said = {code: (str(words.fault_title(code)), str(words.fault_hint(code))) for code in faults.CODES}
    assert len(set(said.values())) == len(said), "each its own, so none falls back to another's"
    assert all(title and hint for title, hint in said.values())
    assert not [title for title, _ in said.values() if title.isascii() == (language == "zh")]


def test_class_names_are_translated_beside_the_code(client):
    assert "NORMAL 正常类" in client.get("/results/a1", headers=CHINESE).text
    assert "正常类" not in client.get("/results/a1").text


@pytest.mark.parametrize(
    ("share", "exact", "text"),
    [
        (0.0, False, "< 0.1\u00a0%"),
        (0.0004, False, "< 0.1\u00a0%"),
        (0.93, False, "93.0\u00a0%"),
        (0.9996, False, "> 99.9\u00a0%"),
        (1.0, False, "> 99.9\u00a0%"),
        (0.0, True, "0\u00a0%"),
        (0.8, True, "80\u00a0%"),
        (0.8137, True, "81.4\u00a0%"),
        (1.0, True, "100\u00a0%"),
    ],
)
def test_probabilities_claim_no_certainty(app, share, exact, text):
    with app.test_request_context():
        assert pages.percent(share, exact) == text
