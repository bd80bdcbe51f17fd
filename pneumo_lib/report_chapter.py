"""One executed notebook to a chapter of the report: a piece of HTML without style, script or anything to load.

Code is folded and highlighted, figures become captioned data URIs, tables get header scopes, headings get numbers,
and what a reader must not meet (a figure without alternative text, an image from elsewhere) is listed as a problem.
"""

import base64
import html
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mistune
from bs4 import BeautifulSoup, Tag
from markupsafe import Markup
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from pneumo_lib.report_language import Language

_IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
_PLUGINS = ["table", "strikethrough", "superscript", "subscript"]
_INTERVAL = re.compile(r"\d %|\[[-+−\d.%]+, [-+−\d.%]+\]")  # what a line must not break: a number's unit, an interval
# The prose of a notebook is ours and may use HTML; a computed output may quote a file or class name and is escaped.
_prose = mistune.create_markdown(escape=False, plugins=_PLUGINS)
_computed = mistune.create_markdown(escape=True, plugins=_PLUGINS)


@dataclass
class Chapter:
    """A chapter, filled while its notebook is read.

    Attributes:
        stem: file name of the notebook without suffix; its leading digits number the chapter.
        number: number of the chapter.
        title: the notebook's first h1, or words made of its file name.
        language: of the report's own words.
        figures: how many there are.
        headings: anchor, number and text of each section.
        problems: what keeps the report from being built, each with its place.
        body: HTML below the title.
    """

    stem: str
    number: int
    title: str
    language: Language = Language.en
    figures: int = 0
    headings: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    body: Markup = field(default_factory=Markup)

    @property
    def anchor(self) -> str:
        """Identifier of the chapter within the page."""
        return _anchor(self.stem)


def build_chapter(
    stem: str,
    notebook: NotebookNode | None,
    *,
    position: int,
    stems: Sequence[str],
    language: Language = Language.en,
) -> Chapter:
    """Turn an executed notebook into a chapter.

    Args:
        stem: file name of the notebook without suffix.
        notebook: the executed copy, translated; None gives a chapter with a title only.
        position: numbers the chapter where the stem does not.
        stems: all notebooks of the report; links to them stay within the page.
        language: of the report's own words; what is not in it is marked as English.
    """
    digits, name = re.fullmatch(r"(\d*)[_-]*(.*)", stem).groups()
    chapter = Chapter(stem, int(digits or position), name.replace("_", " ").capitalize(), language)
    if notebook is not None:
        soup = BeautifulSoup("\n".join(_cells(notebook, chapter)), "html.parser")
        _disarm(soup)
        _number_headings(soup, chapter)
        _dress_tables(soup, chapter)
        _mend_links(soup, stems)
        _check_images(soup, chapter)
        chapter.body = Markup(str(soup))
    return chapter


def _anchor(stem: str) -> str:
    return "nb-" + re.sub(r"[^\w-]", "-", stem)


def _cells(notebook: NotebookNode, chapter: Chapter) -> Iterator[str]:
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        if "papermill-error-cell-tag" in tags:  # papermill's own red banner; the report has a calmer one
            continue
        if cell.cell_type == "markdown":
            yield _in_its_language(str(_prose(cell.source)), cell, chapter)
        elif cell.cell_type == "code" and cell.source.strip():
            yield _code(cell, tags, chapter.language.say)
            for output in cell.outputs:
                shown = _output(output, chapter, f"{chapter.stem}, cell {index + 1}")
                yield _in_its_language(shown, output, chapter)


def _in_its_language(piece: str, source: NotebookNode, chapter: Chapter) -> str:
    """Say so where a piece is not in the language of the page: it is read aloud in another way."""
    language = source.get("metadata", {}).get("language", Language.en)
    return piece if not piece or language == chapter.language else f'<div lang="en">{piece}</div>'


def _code(cell: NotebookNode, tags: Sequence[str], say: Callable[..., str]) -> str:
    source = cell.source.strip("\n")
    lines = source.count("\n") + 1
    label = say("Parameters, defaults") if "parameters" in tags else say("Code")
    label = say("Parameters of this run") if "injected-parameters" in tags else label
    if cell.metadata.get("papermill", {}).get("status") == "pending":
        label = say("{cell}, not run", cell=label)
    body = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
    count = say("{n} lines", n=lines) if lines > 1 else say("1 line")
    return (
        f'<details class="code"><summary>{label} <span class="count">{count}</span></summary>'
        f'<pre class="highlight"><code>{body}</code></pre></details>'
    )


def _output(output: NotebookNode, chapter: Chapter, where: str) -> str:
    if output.output_type == "stream":
        return "" if output.name == "stderr" else _text(_collapse(output.text))
    if output.output_type == "error":
        return _error(output, chapter.language)
    data = output.get("data", {})
    for mime in _IMAGES:
        if mime in data:
            return _figure(mime, data[mime], output.metadata.get(mime, {}).get("alt", ""), chapter, where)
    if "application/vnd.jupyter.widget-view+json" in data:  # a live bar that has no meaning on paper
        return ""
    if "text/html" in data:
        return f'<div class="output-html">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return str(_computed(data["text/markdown"]))
    return _text(data.get("text/plain", ""))


def _collapse(text: str) -> str:
    """What a terminal would show: a carriage return starts its line again, so of a bar only its end stays."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(next((part for part in reversed(line.split("\r")) if part), "") for line in lines)


def _text(text: str) -> str:
    text = strip_ansi(text).strip("\n")
    return f'<pre class="output">{html.escape(text)}</pre>' if text.strip() else ""


def _error(output: NotebookNode, language: Language) -> str:
    failed, calls = language.say("This cell failed."), language.say("Traceback")
    last = html.escape(strip_ansi(f"{output.ename}: {output.evalue}"))
    trace = html.escape(strip_ansi("\n".join(output.traceback)))
    return (
        f'<div class="notice failed"><p><strong lang="{language.tag}">{failed}</strong> {last}</p>'
        f'<details class="trace"><summary lang="{language.tag}">{calls}</summary><pre>{trace}</pre></details></div>'
    )


def _figure(mime: str, data: str, alt: str, chapter: Chapter, where: str) -> str:
    if not alt.strip():
        chapter.problems.append(f"{where}: a figure without alternative text; show it with plots.show(figure, alt).")
    raw = data.encode() if mime == "image/svg+xml" else base64.b64decode(data)
    chapter.figures += 1
    size = "" if mime != "image/png" else ' width="{}" height="{}"'.format(*struct.unpack(">II", raw[16:24]))
    caption, source, number = html.escape(alt), base64.b64encode(raw).decode(), f"{chapter.number}.{chapter.figures}"
    label = chapter.language.say("Figure {number}", number=number)
    # The caption repeats the alternative text, so it is kept from screen readers, which would read it twice.
    return (
        f'<figure><div class="card"><img src="data:{mime};base64,{source}" alt="{caption}"{size}></div>'
        f'<figcaption aria-hidden="true"><b lang="{chapter.language.tag}">{label}</b> {caption}</figcaption></figure>'
    )


def _disarm(soup: BeautifulSoup) -> None:
    """Take out what the page's policy would block anyway, and with it the browser's complaint."""
    for tag in soup.find_all(["script", "style", "link", "iframe", "object", "embed", "form", "meta", "base"]):
        tag.decompose()
    for tag in soup.find_all(True):
        for name in [name for name in tag.attrs if name in ("style", "id") or name.startswith("on")]:
            del tag[name]


def _number_headings(soup: BeautifulSoup, chapter: Chapter) -> None:
    """Take the first h1 as the chapter's title, number the h2, and move all one level down, below that title."""
    if title := soup.find("h1"):
        text = title.extract().get_text(" ", strip=True)
        chapter.title = re.sub(rf"^(notebook\s+)?0*{chapter.number}\b[\s.:·–—-]*", "", text, flags=re.I) or text
    for heading in soup.find_all(re.compile("^h[1-6]$")):
        if heading.name not in ("h1", "h2"):
            heading.name = f"h{min(int(heading.name[1]) + 1, 6)}"
            continue
        count = len(chapter.headings) + 1
        heading.name, heading["id"] = "h3", f"{chapter.anchor}-{count}"
        chapter.headings.append((heading["id"], f"{chapter.number}.{count}", heading.get_text(" ", strip=True)))
        heading.insert(0, soup.new_tag("span", attrs={"class": "number"}, string=f"{chapter.number}.{count} "))


def _dress_tables(soup: BeautifulSoup, chapter: Chapter) -> None:
    for table in soup.find_all("table"):
        table.attrs = {}
        if not table.find("th"):
            chapter.problems.append(f"{chapter.stem}: a table without header cells; show a data frame.")
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
        _merge_index_name(rows)
        for cell in table.find_all(["th", "td"]):
            _dress_cell(cell)
        for row in rows[:-1]:
            for head, cell in zip(row, rows[-1], strict=False):
                if head.name == "th" and len(row) == len(rows[-1]) and cell.get("class") == "numeric":
                    head["class"] = "numeric"
        label = chapter.language.say("Table")
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "role": "group", "aria-label": label}))


def _merge_index_name(rows: Sequence[Sequence[Tag]]) -> None:
    """pandas names an index in a header row of its own, empty but for the name; it fits into the corner above."""
    texts = [[cell.get_text(strip=True) for cell in row] for row in rows[:2]]
    headed = len(rows) > 2 and all(cell.name == "th" for row in rows[:2] for cell in row)
    if headed and len(texts[0]) == len(texts[1]) and texts[1][0] and not any((texts[0][0], *texts[1][1:])):
        rows[0][0].string = texts[1][0]
        rows[1][0].parent.decompose()


def _dress_cell(cell: Tag) -> None:
    text = cell.get_text(strip=True)
    for part in cell.find_all(string=_INTERVAL):
        part.replace_with(_INTERVAL.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), part))
    if cell.name == "th" and not text:  # the empty corner above an index heads nothing
        cell.name = "td"
    if cell.name == "th":
        wide = int(cell.get("colspan", 1)) > 1 or int(cell.get("rowspan", 1)) > 1
        cell["scope"] = ("col" if cell.find_parent("thead") else "row") + ("group" if wide else "")
    elif re.match(r"([-+−±]?\.?\d|nan$|[-–—]$)", text, flags=re.I) and len(re.findall(r"[^\W\d_]+", text)) < 2:
        cell["class"] = "numeric"  # a number and perhaps its unit; more words make a sentence that begins with one


def _mend_links(soup: BeautifulSoup, stems: Sequence[str]) -> None:
    """Point links between notebooks to their chapters; a link to any other local file would break, its text stays."""
    for link in soup.find_all("a"):
        target = str(link.get("href", ""))
        stem = Path(target.split("#")[0]).stem
        if target.split("#")[0].endswith(".ipynb") and stem in stems:
            link["href"] = f"#{_anchor(stem)}"
        elif target.startswith(("https://", "http://", "mailto:")):
            link["rel"] = "noopener noreferrer"
        else:
            link.unwrap()


def _check_images(soup: BeautifulSoup, chapter: Chapter) -> None:
    for image in soup.find_all(["img", "image", "video", "audio", "source"]):
        source = str(image.get("src", image.get("href", "")))
        if not source.startswith("data:image/") or image.get("srcset"):
            chapter.problems.append(f"{chapter.stem}: the image {source[:80]!r} is not inside the notebook.")
        if image.name == "img" and image.get("alt") is None:
            chapter.problems.append(f"{chapter.stem}: an image without alternative text.")
