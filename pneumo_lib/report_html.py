"""The report's one HTML page: chapters, contents and header card; no network, no style or script but our own."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import jinja2
import nbformat
from markupsafe import Markup

from pneumo_lib.errors import ReportError
from pneumo_lib.report_chapter import Chapter, build_chapter
from pneumo_lib.report_language import Language, translate

Status = Literal["done", "reused", "failed", "not run"]

_TEMPLATE = Path(__file__).parent / "report_template"
_MAX_BYTES = 30_000_000


@dataclass(frozen=True)
class ReportHeader:
    """What the card at the top of a report says.

    Attributes:
        title: title of the whole report.
        data_set: name and size of the data, in words.
        preset: name of the preset.
        date: date and time of the run, in words.
        commit: git commit, or words that say there is none.
        device: what the networks ran on.
        versions: library name to version.
        seeds: what was seeded, to its seed.
        phantom: whether the images are drawn; puts a banner on the report.
        language: of the prose; what the notebooks computed stays English.
    """

    title: str
    data_set: str
    preset: str
    date: str
    commit: str
    device: str
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    phantom: bool
    language: Language = Language.en


@dataclass(frozen=True)
class NotebookRun:
    """What became of one notebook.

    Attributes:
        notebook: the source, such as ``02_denoiser_training.ipynb``; leading digits number its chapter.
        executed: the executed copy in the run folder.
        status: done (now), reused (unchanged), failed, or not run (an earlier one failed).
        parameters: what it was given, by name.
        fingerprint: hash of source, parameters, library, data set and of the notebooks before it.
        seconds: time of the execution, also where an earlier one is reused; None where it did not run.
        message: why it failed, in plain words.
    """

    notebook: Path
    executed: Path
    status: Status
    parameters: Mapping[str, object] = field(default_factory=dict)
    fingerprint: str = ""
    seconds: float | None = None
    message: str = ""


def render(header: ReportHeader, runs: Sequence[NotebookRun]) -> str:
    """Build the page.

    Args:
        header: content of the card at the top; every string is escaped.
        runs: notebooks in reading order; the executed copies are read, except of those that did not run.

    Returns:
        One HTML document that loads nothing and allows (Content-Security-Policy) nothing but its own style and script.

    Raises:
        ReportError: a figure without alternative text, an image that is not embedded, a table without header cells,
            or a page over 30 MB.
    """
    stems = [run.notebook.stem for run in runs]
    chapters = [_chapter(run, position, stems, header.language) for position, run in enumerate(runs, start=1)]
    if problems := [problem for chapter in chapters for problem in chapter.problems]:
        raise ReportError("The report cannot be built as it is:\n" + "\n".join(f"- {problem}" for problem in problems))
    style, script = (Markup((_TEMPLATE / name).read_text("utf-8")) for name in ("report.css", "report.js"))
    page = _page_template().render(
        header=header,
        say=header.language.say,
        chapters=list(zip(chapters, runs, strict=True)),
        style=style,
        script=script,
        style_hash=_csp(style),
        script_hash=_csp(script),
    )
    if len(page.encode()) > _MAX_BYTES:
        raise ReportError(f"The report has {len(page) / 1e6:.0f} MB, at most 30 are sensible: draw smaller figures.")
    return page


def _chapter(run: NotebookRun, position: int, stems: Sequence[str], language: Language) -> Chapter:
    shown = run.status != "not run" and run.executed.is_file()
    notebook = nbformat.read(run.executed, as_version=4) if shown else None
    if notebook is not None:
        translate(notebook, run.notebook, language)
    return build_chapter(run.notebook.stem, notebook, position=position, stems=stems, language=language)


@cache
def _page_template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(_TEMPLATE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = _duration
    return environment.get_template("report.html.j2")


def _duration(seconds: float, say: Callable[..., str]) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return say("{h} h {min:02d} min", h=minutes // 60, min=minutes % 60)
    return say("{min} min {s:02d} s", min=minutes, s=rest) if minutes else say("{s} s", s=max(rest, 1))


def _csp(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
