"""What can be looked for in the history, and what is found: one page of records, newest first."""

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import ColumnElement

from pneumo_lib.service.tables import diagnoses

MOST_PER_PAGE = 1000
NEWEST_FIRST = (diagnoses.c.created_at.desc(), diagnoses.c.number.desc())


@dataclass(frozen=True)
class Search:
    """What to look for; empty fields match everything.

    Attributes:
        after: first day, UTC.
        before: last day, UTC; it is part of what is found.
        label: class that was named.
        model: id of the model that was asked.
        status: `ok`, `undecided`, `refused`, `unchecked` or `error`.
        page: from 1.
        per_page: at most 1000.
    """

    after: date | None = None
    before: date | None = None
    label: str = ""
    model: str = ""
    status: str = ""
    page: int = 1
    per_page: int = 20


@dataclass(frozen=True)
class Found:
    """One page of records, newest first; a page behind the last one is empty.

    Attributes:
        records: the page.
        total: records on all pages.
        page: the page that was asked for, from 1.
        pages: how many there are, at least 1.
    """

    records: list[dict]
    total: int
    page: int
    pages: int


def conditions(wanted: Search) -> list[ColumnElement[bool]]:
    """What a row must be to be found."""
    made, found = diagnoses.c.created_at, []
    if wanted.after:
        found.append(made >= datetime.combine(wanted.after, datetime.min.time()))
    if wanted.before:
        found.append(made <= datetime.combine(wanted.before, datetime.max.time()))
    chosen = {name: getattr(wanted, name) for name in ("label", "model", "status")}
    return found + [diagnoses.c[name] == value for name, value in chosen.items() if value]
