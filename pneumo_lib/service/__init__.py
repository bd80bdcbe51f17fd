"""The diagnosis service: one Flask application around `diagnosis.Diagnoser`."""

import logging
import traceback

from flask import Flask, g, request
from werkzeug.exceptions import BadHost, HTTPException
from werkzeug.wrappers import Response

from pneumo_lib.errors import ImageError, ServiceError
from pneumo_lib.service import api, faults, forms, pages, security
from pneumo_lib.service.cases import Clinic

logger = logging.getLogger(__name__)
OTHER_PARTS = 80  # of a form beside its files
PART_BYTES = 2**18  # of a text in a form that carries files; werkzeug reads in steps of 2**16, and counts those too


def create_app(clinic: Clinic) -> Flask:
    """The application: API under /api/v1, pages for people everywhere else.

    Args:
        clinic: what it serves; whoever made it closes it.
    """
    app = Flask("pneumo_lib.service")
    app.request_class = forms.Request
    app.url_map.merge_slashes = False  # redirects from `//` to `/`, which programs with an upload do not follow
    app.config |= {
        "MAX_CONTENT_LENGTH": clinic.settings.request_bytes,
        "MAX_FORM_PARTS": clinic.settings.files + OTHER_PARTS,
        "MAX_FORM_MEMORY_SIZE": PART_BYTES,
    }
    app.extensions["pneumo"] = clinic
    security.install(app)
    app.register_blueprint(api.blueprint)
    pages.install(app)
    app.register_error_handler(ServiceError, lambda error: _answer(faults.of_error(error)))
    app.register_error_handler(ImageError, lambda error: _answer(faults.of_error(error)))
    app.register_error_handler(HTTPException, _of_http)
    app.register_error_handler(Exception, _of_surprise)
    return app


def _answer(fault: faults.Fault) -> Response:
    """The fault as JSON for programs and as a page for people."""
    body = fault.to_dict(g.get("request_id", ""))
    nowhere = isinstance(request.routing_exception, BadHost)  # no page can name its style sheets then
    if nowhere or request.path.startswith("/api/"):
        return api.reply(body, fault.status)
    try:
        return pages.error_page(body, fault.status)
    except Exception as error:  # a fault of the page must not take the place of what it was to tell
        _log(error)
        return api.reply(body, fault.status)


def _of_http(error: HTTPException) -> Response:
    if error.response is not None or (error.code or 500) < 400:  # a redirect
        return error.get_response()
    response = _answer(api.http_fault(error))
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _of_surprise(error: Exception) -> Response:
    """What nobody thought of."""
    _log(error)
    return _answer(faults.fault("internal", "something unexpected went wrong."))


def _log(error: Exception) -> None:
    """Tell where it happened, and nothing that a visitor could have put in."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("request %s: %s\n%s", g.get("request_id", ""), type(error).__name__, where)
