"""The service for programs: JSON in, JSON out; `openapi` documents every route."""

import json
from typing import Any

from flask import Blueprint, Response, current_app, g, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from pneumo_lib.errors import ServiceError
from pneumo_lib.service import faults, forms, openapi
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.catalog import Offer
from pneumo_lib.service.records import Upload

ANY_QUERY = ("api.health", "api.ready")  # monitors add something that defeats caches

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")


@blueprint.before_request
def _check_query() -> None:
    if request.endpoint not in ANY_QUERY:
        forms.only(request.args, forms.SEARCH if request.endpoint == "api.history" else ())


@blueprint.post("/diagnose")
def diagnose() -> Response:
    """Diagnose the uploaded files."""
    if request.mimetype != "multipart/form-data":
        raise ServiceError(f"the request is {request.mimetype or 'untyped'!r}", code="unsupported_media_type")
    uploads = [Upload(file.filename or "", file.stream) for file in request.files.getlist("files")]
    if uploads:  # to say that the files are missing helps more than to say what is there instead
        forms.only(request.form, forms.OPTIONS)
        forms.only(MultiDict(dict.fromkeys(request.files)), ("files",))
    records = clinic().diagnose(uploads, forms.options(request.form), g.request_id)
    if len(records) == 1 and records[0]["error"]:
        return reply(records[0]["error"], faults.fault(records[0]["error"]["code"], "").status)
    return reply({"request_id": g.request_id, "results": records})


@blueprint.get("/history")
def history() -> Response:
    """Search the saved answers."""
    found = clinic().history.search(forms.search(request.args))
    return reply({"results": found.records, "total": found.total, "page": found.page, "pages": found.pages})


@blueprint.delete("/history")
def delete_history() -> Response:
    """Delete all saved answers."""
    return reply({"deleted": clinic().delete_all()})


@blueprint.get("/history/<id>")
def case(id: str) -> Response:
    """One answer."""
    return reply(_found(clinic().case(id)))


@blueprint.delete("/history/<id>")
def delete_case(id: str) -> Response:
    """Delete one answer."""
    _found(clinic().delete(id))
    return Response(status=204)


@blueprint.get("/history/<id>/film")
def film(id: str) -> Response:
    """The film of an answer, as PNG, while it is kept."""
    return Response(_found(clinic().picture(id, "film")), mimetype="image/png")


@blueprint.get("/models")
def models() -> Response:
    """The models on offer, the default first."""
    return reply({"models": [_model(offer) for offer in clinic().catalog.models]})


@blueprint.get("/health")
def health() -> Response:
    """Whether the process answers."""
    return reply({"status": "ok"})


@blueprint.get("/ready")
def ready() -> Response:
    """Whether films can be diagnosed and answers saved."""
    problems = [problem | {"request_id": g.request_id} for problem in clinic().ready()]
    able = clinic().is_ready(problems)
    return reply({"ready": able, "problems": problems}, 200 if able else 503)


@blueprint.get("/openapi.json")
def document() -> Response:
    """The description of this interface."""
    return reply(openapi.document(clinic().settings, [offer.id for offer in clinic().catalog.models]))


def reply(body: Any, status: int = 200) -> Response:
    """A JSON answer; its keys keep their order, so that equal answers are equal bytes."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False)
    # Halves of characters cannot be sent as they are, but the escape that takes their place means the same in JSON.
    response = Response(text.encode("utf-8", "backslashreplace"), status=status, mimetype="application/json")
    if status == 503 and isinstance(body, dict) and body.get("code") == "busy":
        response.headers["Retry-After"] = str(faults.RETRY_SECONDS)
    return response


def clinic() -> Clinic:
    """The clinic of the application that answers."""
    return current_app.extensions["pneumo"]


def _model(offer: Offer) -> dict[str, Any]:
    facts = ("preset", "parameters", "epochs", "train_images", "val_images")
    return offer.describe("denoise") | {
        "dataset": offer.dataset,
        "classes": list(offer.classes),
        "image_size": offer.diagnoser.image_size,
        "noise_handling": offer.noise_handling,
        "noise_handlings": list(offer.handlings),
        "threshold": round(offer.threshold, 4),
        "temperature": round(offer.diagnoser.temperature, 4),
        "recognises_films": offer.diagnoser.check is not None,
        "facts": {name: offer.card[name] for name in facts if name in offer.card},
    }


def _found(thing: Any) -> Any:
    if not thing:
        raise ServiceError("there is nothing of that id", code="not_found")
    return thing


def http_fault(error: HTTPException) -> faults.Fault:
    """The fault behind an error of the web framework."""
    code = faults.OF_STATUS.get(error.code or 500, "bad_request" if 400 <= (error.code or 500) < 500 else "internal")
    said = {
        "not_found": "there is nothing at this address",
        "too_many_bytes": f"the request is larger than {clinic().settings.request_bytes:,} bytes, has more than "
        f"{current_app.config['MAX_FORM_PARTS']} parts, or carries a text where a file belongs",
    }
    return faults.fault(code, said.get(code, error.name) + ".")
