"""The pages of the service, for people: forms, answers and history, in English and Simplified Chinese.

Everything works without JavaScript. A request with the header ``X-Fragment: 1`` gets the piece of HTML that a script
puts in place, everyone else a whole page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import mistune
from flask import Blueprint, Flask, Response, abort, current_app, g, make_response, redirect, render_template, request
from flask import url_for as url
from flask_babel import Babel, get_locale
from flask_bootstrap import Bootstrap5
from markupsafe import Markup
from werkzeug.wrappers import Response as AnyResponse

from pneumo_lib import plots
from pneumo_lib.errors import ServiceError
from pneumo_lib.service import export, faults, forms
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import Search
from pneumo_lib.service.records import STATUSES, Options, Upload

LANGUAGES = {"en": ("en", "English"), "zh": ("zh-Hans", "中文")}  # locale -> HTML's name of it, its own name
YEAR = 365 * 24 * 3600
MOST_EXPORTED = 200  # films: one HTML file holds about 0.3 MB of pictures for each
TYPES = {"html": "text/html", "csv": "text/csv", "json": "application/json"}

_to_html = mistune.create_markdown(escape=True, plugins=["table"])

blueprint = Blueprint("pages", __name__)


def install(app: Flask) -> None:
    """Give an application the pages, their two languages and the styles they need."""
    app.config["BOOTSTRAP_SERVE_LOCAL"] = True
    Bootstrap5(app)
    Babel(app, locale_selector=choose_language)
    app.register_blueprint(blueprint)


def choose_language() -> str:
    """The visitor's own choice, else the first of the browser's languages that there is, else English."""
    chosen = request.cookies.get("lang")
    if chosen in LANGUAGES:
        return chosen
    wished = (tag.split("-")[0].lower() for tag in request.accept_languages.values())
    return next((code for code in wished if code in LANGUAGES), "en")


def error_page(fault: Mapping[str, Any], status: int) -> Response:
    """The page, or for a script the fragment, that tells a visitor of a fault {code, message, hint, request_id}."""
    response = make_response(render_template("_fault.html" if _for_script() else "error.html", **fault), status)
    if fault["code"] == "busy":
        response.headers["Retry-After"] = str(faults.RETRY_SECONDS)
    return response


@dataclass(frozen=True)
class Card:
    """One film as `_result.html` shows it.

    Attributes:
        record: see the API.
        cam: class whose Grad-CAM is shown first.
        own: the threshold that its model came with; None when the model is no longer served, or when it is in force.
        pictures: whether they are still held.
        stages: names of the stages whose feature maps can be seen; none, either, when the model is no longer served.
    """

    record: dict[str, Any]
    cam: str
    own: float | None
    pictures: bool
    stages: Sequence[str] = ()

    def picture(self, what: str) -> str:
        """Where one of the pictures is."""
        return url("pages.picture", id=self.record["id"], what=what)


@blueprint.get("/")
def home() -> str:
    """The form; with ids in the query, their results below it."""
    wanted = request.args.getlist("id")[:MOST_EXPORTED]
    records = [record for id in wanted if (record := _clinic().case(id))]
    return render_template("home.html", cards=_cards(records), lost=len(wanted) - len(records))


@blueprint.post("/diagnose")
def diagnose() -> str:
    """The answers for the films of the form."""
    films = [Upload(film.filename or "", film.stream) for film in request.files.getlist("files") if film.filename]
    if not films:
        raise ServiceError("the form came without a file.", code="no_file")
    records = _clinic().diagnose(films, _options(), g.request_id)
    g.back = url("pages.home", id=[record["id"] for record in records])
    return render_template("_cards.html" if _for_script() else "results.html", cards=_cards(records))


@blueprint.get("/results/<id>")
def result(id: str) -> str:
    """One film, as a page of its own."""
    return _one(_clinic().case(id), request.args.get("cam", ""))


@blueprint.post("/results/<id>/threshold")
def redecide(id: str) -> str | AnyResponse:
    """Decide the film again, under another threshold."""
    threshold = forms.fraction(request.form.get("own") or request.form.get("threshold", ""))
    if threshold is None:
        raise ServiceError("the form came without a threshold.", code="bad_threshold")
    record = _clinic().redecide(id, threshold)
    return _one(record) if _for_script() or not record else redirect(url("pages.result", id=id), 303)


@blueprint.get("/results/<id>/pictures/<path:what>.png")
def picture(id: str, what: str) -> Response:
    """One of the pictures of a film, PNG."""
    return Response(_clinic().picture(id, what) or abort(404), mimetype="image/png")


@blueprint.post("/results/<id>/delete")
def delete(id: str) -> str | AnyResponse:
    """Forget one film and its answer."""
    if not _clinic().delete(id):
        _one(None)
    return render_template("_deleted.html") if _for_script() else redirect(url("pages.history", deleted=1), 303)


@blueprint.get("/history")
def history() -> str:
    """The diagnoses that were saved, newest first."""
    kept, wanted = _clinic().history, forms.search(request.args)
    found, (labels, models) = kept.search(wanted), kept.choices()
    options = {"labels": labels, "models": models, "statuses": STATUSES, "deleted": request.args.get("deleted", 0, int)}
    options |= {"found": found, "wanted": wanted, "searched": wanted != Search(page=wanted.page)}
    return render_template("history.html", page_url=_page_url, **options)


@blueprint.post("/history/delete")
def delete_all() -> AnyResponse:
    """Empty the history."""
    return redirect(url("pages.history", deleted=_clinic().delete_all()), 303)


@blueprint.get("/export.<any(html, csv, json):kind>")
def export_as(kind: str) -> Response:
    """The films whose ids are in the query, as a file to keep."""
    ids = list(dict.fromkeys(request.args.getlist("id")))
    if not 0 < len(ids) <= MOST_EXPORTED:
        found = f"found {len(ids)} ids of films; expected 1 to {MOST_EXPORTED}, as in ?id=...&id=..."
        raise ServiceError(found, code="bad_request")
    records = [record for id in ids if (record := _clinic().case(id))]
    if not records:
        raise _nothing_here()
    write = {"csv": export.to_csv, "json": export.to_json}
    text = export.to_html(records, _clinic().picture) if kind == "html" else write[kind](records)
    name = f"pneumo-{datetime.now(UTC):%Y-%m-%d}.{kind}"
    return Response(text, mimetype=TYPES[kind], headers={"Content-Disposition": f"attachment; filename={name}"})


@blueprint.get("/about")
def about() -> str:
    """What the service is, what it is not, and with which models it answers."""
    return render_template("about.html")


@blueprint.get("/models/<path:id>/card")
def papers(id: str) -> str:
    """The model card of a published model: what it was made of, measured on, and is not for."""
    offer = next((one for one in _clinic().catalog.models if one.id == id and one.papers), None) or abort(404)
    return render_template("papers.html", offer=offer, papers=Markup(_to_html(offer.papers)))


@blueprint.get("/language/<any(en, zh):code>")
def language(code: str) -> AnyResponse:
    """Remember a choice of language and go back to where it was made."""
    response = redirect(_local(request.args.get("back", "")), 303)
    options = {"httponly": True, "samesite": "Lax", "secure": request.is_secure}
    response.set_cookie("lang", code, max_age=YEAR, **options)
    return response


@blueprint.app_template_filter("percent")
def percent(share: float, exact: bool = False) -> str:
    """A fraction as a percentage; a probability that rounds to nothing or to certainty is not said to be either.

    Args:
        exact: for what is no probability, such as a threshold: as it is, without an empty decimal.
    """
    text = f"{100 * share:.1f}"
    if exact:
        text = text.removesuffix(".0")
    elif text in ("0.0", "100.0"):
        text = "< 0.1" if share < 0.5 else "> 99.9"
    return text + ("%" if str(get_locale()) == "zh" else "\u00a0%")


@blueprint.app_template_global()
def class_colour(name: str, index: int) -> str:
    """The colour of a class in every figure of this project."""
    return plots.style_of(name, index)["color"]


@blueprint.app_context_processor
def _everywhere() -> dict[str, Any]:
    """What every page knows: the service, the language, and where a switch of language returns to."""
    here = request.script_root + request.full_path.removesuffix("?") if request.method == "GET" else url("pages.home")
    tag = LANGUAGES[str(get_locale())][0]
    return {"clinic": _clinic(), "languages": LANGUAGES, "html_lang": tag, "back": g.get("back", here)}


def _clinic() -> Clinic:
    return current_app.extensions["pneumo"]


def _for_script() -> bool:
    return request.headers.get("X-Fragment") == "1"


def _nothing_here() -> ServiceError:
    return ServiceError("there is no such film here.", code="not_found")


def _cards(records: Sequence[dict[str, Any]], cam: str = "") -> list[Card]:
    return [_card(record, cam) for record in records]


def _card(record: dict[str, Any], cam: str) -> Card:
    clinic, id = _clinic(), record["id"]
    owns = (round(offer.threshold, 4) for offer in clinic.catalog.models if offer.id == record["model"]["id"])
    own = next((value for value in owns if value != record["threshold"]), None)
    if cam not in (record["probabilities"] or {}):
        cam = next(iter(record["candidates"]), "")
    stages = clinic.stages(id) if record["probabilities"] else ()
    return Card(record, cam, own, clinic.has_pictures(id), stages)


def _one(record: dict[str, Any] | None, cam: str = "") -> str:
    if record is None:
        raise _nothing_here()
    return render_template("_cards.html" if _for_script() else "results.html", cards=_cards([record], cam))


def _options() -> Options:
    """What the form chose; a box that is not there was left unticked, and a ticked one takes the model's threshold."""
    form = request.form.to_dict()
    return forms.options({"save": "0"} | form | ({"threshold": ""} if "own" in form else {}))


def _page_url(page: int) -> str:
    return f"{url('pages.history')}?{urlencode(request.args.to_dict() | {'page': page})}"


def _local(back: str) -> str:
    """The path itself if it leads to this service, else the first page; no switch of language leads elsewhere."""
    inside = back.startswith("/") and back[1:2] not in ("/", "\\") and back.isprintable()
    return back if inside else url("pages.home")
