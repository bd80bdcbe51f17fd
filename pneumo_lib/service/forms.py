"""Texts of forms and query strings to what they mean, for API and pages alike.

Every function raises a ServiceError that names the field, what it held and what was expected.
"""

import errno
import re
from collections.abc import Callable, Collection, Mapping
from datetime import date
from typing import Any

import flask
from werkzeug.datastructures import MultiDict
from werkzeug.formparser import FormDataParser

from pneumo_lib.errors import ServiceError
from pneumo_lib.service.history import Search
from pneumo_lib.service.records import STATUSES, Options
from pneumo_lib.service.settings import check_threshold

OPTIONS = ("model", "noise_handling", "threshold", "save", "keep_film")
SEARCH = ("after", "before", "label", "model", "status", "page", "per_page")
MOST_PER_PAGE, LAST_PAGE = 100, 1_000_000
TRUTH = {"true": True, "True": True, "1": True, "on": True, "false": False, "False": False, "0": False, "": False}
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
QUOTED = 40  # characters of a text in a message


class _Parser(FormDataParser):
    """Says what is wrong with a form; werkzeug's would take it for an empty one."""

    def parse(self, *args: Any, **options: Any) -> Any:
        self.silent = False
        try:
            return super().parse(*args, **options)
        except UnicodeDecodeError as error:
            raise ServiceError("a name in the form is not UTF-8", code="bad_request") from error
        except ValueError as error:
            raise ServiceError("the form ends early, or is none", code="bad_request") from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ServiceError("there is no room for the upload on the service's disk", code="history_full") from error


class Request(flask.Request):
    """A request whose form is read, or refused with a reason."""

    form_data_parser_class = _Parser


def only(given: MultiDict[str, Any], known: Collection[str]) -> None:
    """Refuse what is not known, since a misspelt name would be ignored in silence, and what is given twice."""
    for name, values in given.lists():
        if name not in known:
            among = f"one of {', '.join(known)}" if known else "none"
            raise ServiceError(f"there is {str(name)[:QUOTED]!r}; {among} was expected", code="bad_option")
        if len(values) > 1:
            raise ServiceError(f"{name} is given {len(values)} times; once was expected", code="bad_option")


def options(form: Mapping[str, str]) -> Options:
    """What a form chose."""
    return Options(
        model=form.get("model", ""),
        noise_handling=form.get("noise_handling", ""),
        threshold=fraction(form.get("threshold", "")),
        save=truth(form, "save", True),
        keep_film=truth(form, "keep_film", False),
    )


def search(args: Mapping[str, str], *, per_page: int = 20) -> Search:
    """What a query string looks for."""
    days = {name: _parsed(args, name, _day, "bad_option", "a day, YYYY-MM-DD") for name in ("after", "before")}
    status = args.get("status", "")
    if status and status not in STATUSES:
        raise ServiceError(
            f"status is {status[:QUOTED]!r}; one of {', '.join(STATUSES)} was expected", code="bad_option"
        )
    page = _number(args, "page", 1, LAST_PAGE)
    size = _number(args, "per_page", per_page, MOST_PER_PAGE)
    return Search(
        **days, label=args.get("label", ""), model=args.get("model", ""), status=status, page=page, per_page=size
    )


def fraction(text: str) -> float | None:
    """A threshold; None for an empty text."""
    value = _parsed({"threshold": text}, "threshold", _float, "bad_threshold", "a fraction from 0 to 1")
    return None if value is None else check_threshold(value)


def truth(form: Mapping[str, str], name: str, otherwise: bool) -> bool:
    """A field that says true or false; `otherwise` where it is missing."""
    text = form.get(name)
    if text is None:
        return otherwise
    if text not in TRUTH:
        raise ServiceError(f"{name} is {text[:QUOTED]!r}; true or false was expected", code="bad_option")
    return TRUTH[text]


def _parsed(values: Mapping[str, str], name: str, parse: Callable[[str], Any], code: str, expected: str) -> Any:
    text = values.get(name, "")
    if not text:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise ServiceError(f"{name} is {text[:QUOTED]!r}; {expected} was expected", code=code) from error


def _number(args: Mapping[str, str], name: str, otherwise: int, most: int) -> int:
    value = _parsed(args, name, _int, "bad_option", f"a number from 1 to {most}")
    if value is not None and not 1 <= value <= most:
        raise ServiceError(f"{name} is {value}; a number from 1 to {most} was expected", code="bad_option")
    return otherwise if value is None else value


# Python's own readers take more than they seem to: digits of other scripts, `1_000`, weeks instead of days.


def _day(text: str) -> date:
    if not DAY.fullmatch(text):
        raise ValueError
    return date.fromisoformat(text)


def _int(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError
    return int(text)


def _float(text: str) -> float:
    if not text.isascii() or "_" in text:
        raise ValueError
    return float(text)
