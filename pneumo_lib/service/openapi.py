"""The OpenAPI 3.1 document of `/api/v1`; a test holds it against the routes and their answers."""

from collections.abc import Sequence
from typing import Any

from pneumo_lib import __version__
from pneumo_lib.diagnosis import DISCLAIMER, HANDLINGS
from pneumo_lib.service import forms
from pneumo_lib.service.faults import CODES, fault
from pneumo_lib.service.records import STATUSES
from pneumo_lib.service.settings import Settings

Schema = dict[str, Any]

TEXT, NUMBER, COUNT, TRUTH = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
ANYTHING = {"type": "object"}
NAMED = {"X-Request-Id": {"required": True, "schema": TEXT, "description": "under which the log knows the request"}}
ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}


def document(settings: Settings, models: Sequence[str] = ()) -> Schema:
    """The document, with the limits of this service and the ids of its models."""
    paths = {
        "/diagnose": {"post": _diagnose(settings, models)},
        "/history": {"get": _search(), "delete": _delete_all()},
        "/history/{id}": {"get": _case(), "delete": _delete()},
        "/history/{id}/film": {"get": _film()},
        "/models": {"get": _models()},
        "/health": {"get": _health()},
        "/ready": {"get": _ready()},
        "/openapi.json": {"get": _document()},
    }
    facts = {"title": "Diagnosis of chest films", "version": __version__, "description": DISCLAIMER}
    schemes = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": facts,
        "servers": [{"url": "/api/v1"}],
        "security": [{"token": []}] if settings.token else [],
        "paths": paths,
        "components": {"schemas": _schemas(), "responses": _responses(), "securitySchemes": schemes},
    }


def _diagnose(settings: Settings, models: Sequence[str]) -> Schema:
    yes_no = {"anyOf": [TRUTH, {"enum": list(forms.TRUTH)}]}
    form = _object(
        files=_list({"type": "string", "format": "binary"}) | {"minItems": 1, "maxItems": settings.files},
        model={"enum": ["", *models], "description": "id from /models; empty takes the default"},
        noise_handling={"enum": ["", *HANDLINGS], "description": "empty: what the model was trained with"},
        threshold=_or_empty(FRACTION) | {"description": "confidence that a film needs; empty: the model's own"},
        save=yes_no | {"default": True, "description": "keep the answer in the history"},
        keep_film=yes_no | {"default": False, "description": "keep the film with it"},
    ) | {"required": ["files"]}
    parts = {"files": {"contentType": "application/octet-stream"}}
    done = _object(request_id=TEXT, results=_list(_ref("Record")))
    answers = _answers(done, 413, 415, 503, 507)
    answers["200"]["links"] = {name: _link(name) for name in ("getAnswer", "deleteAnswer", "getFilm")}
    return {
        "operationId": "diagnose",
        "summary": "Diagnose films: JPEG, PNG or DICOM, told apart by their content",
        "description": f"At most {settings.files} files of {settings.file_bytes:,} bytes and {settings.pixels:,} "
        "pixels each. A file that cannot be read is one result of status `error`; if it is the only one, its fault is "
        "the answer. The same file gets the same result but for `id`, `created_at` and `request_id`.",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form, "encoding": parts}}},
        "responses": answers,
    }


def _search() -> Schema:
    day = _or_empty({"type": "string", "format": "date", "description": "UTC, inclusive"})
    query = {"after": day, "before": day, "label": TEXT, "model": TEXT, "status": {"enum": ["", *STATUSES]}}
    for name, most in (("page", forms.LAST_PAGE), ("per_page", forms.MOST_PER_PAGE)):
        query[name] = _or_empty({"type": "integer", "minimum": 1, "maximum": most})
    found = _object(results=_list(_ref("Record")), total=COUNT, page=COUNT, pages=COUNT)
    parameters = [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
    summary = "Search the saved answers, newest first"
    return _operation("searchHistory", summary, _answers(found, 503)) | {"parameters": parameters}


def _delete_all() -> Schema:
    return _operation("deleteHistory", "Delete all saved answers", _answers(_object(deleted=COUNT), 503, 507))


def _case() -> Schema:
    return _operation("getAnswer", "One answer", _answers(_ref("Record"), 404, 503)) | {"parameters": [ID]}


def _delete() -> Schema:
    gone = {"204": {"description": "deleted", "headers": NAMED}}
    return _operation("deleteAnswer", "Delete one answer", gone | _faults(404, 503, 507)) | {"parameters": [ID]}


def _film() -> Schema:
    picture = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    answers = {"200": {"description": "the film", "headers": NAMED, "content": picture}} | _faults(404, 503)
    return _operation("getFilm", "The film of an answer, while it is kept", answers) | {"parameters": [ID]}


def _models() -> Schema:
    answers = _answers(_object(models=_list(_ref("Model"))))
    return _operation("getModels", "The models on offer, the default first", answers)


def _health() -> Schema:
    answers = {"200": _json("healthy", _object(status={"const": "ok"}))} | _refused(403, 500)
    return _operation("getHealth", "Whether the process answers", answers) | {"security": []}


def _ready() -> Schema:
    told = _object(ready=TRUTH, problems=_list(_ref("Error")))
    answers = {code: _json(text, told) for code, text in (("200", "ready"), ("503", "not ready"))}
    summary = "Whether films can be diagnosed and answers saved"
    return _operation("getReadiness", summary, answers | _refused(403, 500)) | {"security": []}


def _document() -> Schema:
    return _operation("getDocument", "This document", _answers(ANYTHING))


def _operation(name: str, summary: str, answers: Schema) -> Schema:
    return {"operationId": name, "summary": summary, "responses": answers}


def _link(operation: str) -> Schema:
    """To the first of the results."""
    return {"operationId": operation, "parameters": {"id": "$response.body#/results/0/id"}}


def _answers(schema: Schema, *faults: int) -> Schema:
    return {"200": _json("done", schema)} | _faults(*faults)


def _faults(*statuses: int) -> Schema:
    """The faults of these statuses, and those that every guarded route can have."""
    return _refused(*sorted({400, 401, 403, 422, 500, *statuses}))


def _refused(*statuses: int) -> Schema:
    return {str(status): {"$ref": f"#/components/responses/Fault{status}"} for status in statuses}


def _responses() -> Schema:
    """The answer of every status that tells of a fault, with the codes it comes with."""
    more = {
        401: {"WWW-Authenticate": {"required": True, "schema": TEXT}},
        405: {"Allow": {"required": True, "schema": TEXT}},
        503: {"Retry-After": {"schema": COUNT, "description": "seconds; only where the service is busy"}},
    }
    codes: dict[int, list[str]] = {}
    for code in CODES:
        codes.setdefault(fault(code, "").status, []).append(code)
    return {
        f"Fault{status}": _json(", ".join(known), _error(known), **more.get(status, {}))
        for status, known in sorted(codes.items())
    }


def _json(description: str, schema: Schema, **headers: Schema) -> Schema:
    content = {"application/json": {"schema": schema}}
    return {"description": description, "headers": NAMED | headers, "content": content}


def _schemas() -> Schema:
    probabilities = {"type": "object", "additionalProperties": FRACTION}
    file = _object(
        name=TEXT,
        sha256=TEXT,
        bytes=COUNT,
        kind=_or_null(TEXT),
        width=_or_null(COUNT),
        height=_or_null(COUNT),
        bits=_or_null(COUNT),
        notes=_list(TEXT),
        facts={"type": "object", "additionalProperties": TEXT},
    )
    model = _object(
        id=TEXT,
        name=TEXT,
        title=TEXT,
        category=TEXT,
        sha256=TEXT,
        denoiser=_or_null(TEXT),
        denoiser_sha256=_or_null(TEXT),
        phantom=TRUTH,
    )
    offer = model["properties"] | {
        "dataset": TEXT,
        "classes": _list(TEXT),
        "image_size": COUNT,
        "noise_handling": {"enum": list(HANDLINGS)},
        "noise_handlings": _list(TEXT),
        "threshold": FRACTION,
        "temperature": NUMBER,
        "recognises_films": TRUTH,
        "facts": ANYTHING,
    }
    record = _object(
        id=TEXT,
        created_at={"type": "string", "format": "date-time"},
        status={"enum": list(STATUSES)},
        file=file,
        model=model,
        noise_handling={"enum": list(HANDLINGS)},
        threshold=FRACTION,
        label=_or_null(TEXT),
        candidates=_list(TEXT),
        confidence=_or_null(FRACTION),
        probabilities=_or_null(probabilities),
        likeness=_or_null(_object(score=NUMBER, cutoff=NUMBER, nearest=TEXT)),
        error=_or_null(_ref("Error")),
        saved=TRUTH,
        film_kept=TRUTH,
    )
    return {"Error": _error(CODES), "Record": record, "Model": _object(**offer)}


def _error(codes: Sequence[str]) -> Schema:
    return _object(code={"enum": list(codes)}, message=TEXT, hint=TEXT, request_id=TEXT)


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_empty(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"const": ""}]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
