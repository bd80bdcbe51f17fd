"""Records as files to keep: one HTML page that needs nothing else, a table for spreadsheets, and JSON."""

import csv
import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from flask import render_template

from pneumo_lib.decision import quoted
from pneumo_lib.diagnosis import DISCLAIMER

Record = dict[str, Any]
Picture = Callable[[str, str], bytes | None]  # case id, which picture -> PNG, or None when it is gone

_FILE = ("name", "kind", "width", "height", "bits", "bytes", "sha256")
_MODEL = ("id", "title", "category", "sha256", "denoiser", "denoiser_sha256", "phantom")


@dataclass(frozen=True)
class _Printed:
    """A record with the pictures that go beside it, as data URIs; "" for one that is gone or does not apply."""

    record: Record
    film: str
    denoised: str = ""
    cam: str = ""
    shown: str = ""


def to_html(records: Sequence[Record], picture: Picture) -> str:
    """One self-contained page in the visitor's language, pictures inside; it prints as one sheet per film."""
    return render_template("export.html", films=[_printed(record, picture) for record in records])


def to_json(records: Sequence[Record]) -> str:
    """The records themselves, as a list."""
    return json.dumps(list(records), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def to_csv(records: Sequence[Record]) -> str:
    """One row per film, alike for every status; begins with a byte order mark, by which spreadsheets know UTF-8."""
    classes = list(dict.fromkeys(name for record in records for name in record["probabilities"] or {}))
    rows = [_row(record, classes) for record in records]
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow([quoted(name) for name in rows[0]] if rows else [])
    writer.writerows([quoted(value) for value in row.values()] for row in rows)
    return "\ufeff" + text.getvalue()


def _row(record: Record, classes: Sequence[str]) -> dict[str, Any]:
    row = {name: record[name] for name in ("id", "created_at", "status", "label", "confidence")}
    row |= {"candidates": "; ".join(record["candidates"]), "threshold": record["threshold"]}
    row |= {f"p_{name}": (record["probabilities"] or {}).get(name) for name in classes}
    row |= {f"file_{name}": record["file"][name] for name in _FILE}
    row |= {"notes": "; ".join(record["file"]["notes"]), "noise_handling": record["noise_handling"]}
    row |= {f"model_{name}": record["model"][name] for name in _MODEL}
    row |= {f"likeness_{name}": (record["likeness"] or {}).get(name) for name in ("score", "cutoff")}
    row |= {f"error_{name}": (record["error"] or {}).get(name) for name in ("code", "message", "hint", "request_id")}
    return row | {"saved": record["saved"], "film_kept": record["film_kept"], "disclaimer": DISCLAIMER}


def _printed(record: Record, picture: Picture) -> _Printed:
    film = _uri(record, "film", picture)
    if not film or not record["probabilities"]:
        return _Printed(record, film)
    shown = record["label"] or record["candidates"][0]
    denoised = _uri(record, "denoised", picture) if record["noise_handling"] == "denoise" else ""
    return _Printed(record, film, denoised, _uri(record, f"cam/{shown}", picture), shown)


def _uri(record: Record, what: str, picture: Picture) -> str:
    data = None if record["status"] == "error" else picture(record["id"], what)
    return f"data:image/png;base64,{b64encode(data).decode()}" if data else ""
