"""Every fault that a caller can meet: its code, HTTP status and what to do about it. One shape for all."""

import uuid
from dataclasses import dataclass
from typing import Any

from pneumo_lib.errors import ImageError, ServiceError
from pneumo_lib.images import HINTS

SERVICE: dict[str, tuple[int, str]] = {
    "no_file": (400, "Choose at least one file; programs send it in the multipart field `files`"),
    "bad_request": (400, "Compare the request with the document at /api/v1/openapi.json"),
    "unauthorised": (401, "Send the header `Authorization: Bearer TOKEN`, or log in on the page /login"),
    "forbidden": (403, "Use the service's own pages, under the address it was started for, or its API"),
    "not_found": (404, "It may have been deleted, or the address is misspelt; see /api/v1/openapi.json"),
    "method_not_allowed": (405, "The header Allow of this answer lists what is possible here"),
    "too_many_bytes": (413, HINTS["too_many_bytes"]),
    "too_many_pixels": (413, HINTS["too_many_pixels"].partition(",")[0]),
    "too_many_files": (413, "Send the films in several requests"),
    "unsupported_media_type": (415, "Send the form as multipart/form-data"),
    "not_an_image": (415, HINTS["not_an_image"]),
    "codec": (415, HINTS["codec"]),
    "empty": (400, HINTS["empty"]),
    "unknown_model": (422, "Take one of the ids listed at /api/v1/models"),
    "bad_threshold": (422, "Send a fraction from 0 to 1, for example 0.9"),
    "bad_option": (422, "Take one of the values named in the message"),
    "internal": (500, "Try again; if it stays, give the request id to whoever runs the service"),
    "busy": (503, "Try again after the number of seconds in the header Retry-After"),
    "model_not_loaded": (503, "Make a model with `make report` or `pneumo train`, then start the service with --run"),
    "history_unavailable": (503, "Check that the database of the history runs and can be reached"),
    "history_outdated": (503, "Stop the service and start it once with `pneumo serve --upgrade`"),
    "history_newer": (503, "Update this program: a newer version has used the history's database"),
    "history_full": (507, "Free some disk space, or send the request with save=false; nothing was stored"),
}
UNREADABLE = 422  # the status of every other fault of a file
RETRY_SECONDS = 2
OF_STATUS = {
    400: "bad_request",
    401: "unauthorised",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_many_bytes",
    415: "unsupported_media_type",
    503: "busy",
}
PATHS = ("missing", "directory", "unreadable")  # faults of files that are named, not sent: never met here
CODES = (*SERVICE, *(code for code in HINTS if code not in (*SERVICE, *PATHS)))


@dataclass(frozen=True)
class Fault:
    """What a caller is told when something went wrong, and the HTTP status it comes with."""

    code: str
    message: str
    hint: str
    status: int

    def to_dict(self, request_id: str) -> dict[str, Any]:
        """The one error shape of the service."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "request_id": request_id}


def fault(code: str, message: str) -> Fault:
    """The fault of that code."""
    status, hint = SERVICE.get(code) or (UNREADABLE, HINTS[code])
    return Fault(code, message, hint + ".", status)


def of_error(error: ImageError | ServiceError) -> Fault:
    """The fault behind an error of this library; a hint that the message ends with is not said twice."""
    found = fault(error.code, str(error))
    bare = str(error).removesuffix(f". {HINTS.get(error.code, '')}.")
    return Fault(found.code, bare + "." * (not bare.endswith(".")), found.hint, found.status)


def new_request_id() -> str:
    """A random name for one request, under which the log knows it."""
    return uuid.uuid4().hex
