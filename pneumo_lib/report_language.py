"""The languages of the report: its own sentences, and the prose of the notebooks.

The sentences stand in ``report_template/zh.json``, English to Chinese. The prose of ``notebooks/NAME.ipynb`` stands in
``notebooks/zh/NAME.md``, cell by cell, each below a line that names the cell and a mark of its source. For a Markdown
cell the translation follows; for a code cell that ends in a sentence, the parts of that sentence in pairs, the English
part quoted, with ``{name}`` where a value goes. What has no translation, or one that is older than the cell, stays
English: the page never says what the notebook no longer says. Values are copied, so no number can change, and no
notebook runs again for another language.
"""

import hashlib
import json
import re
from enum import StrEnum
from functools import cache
from pathlib import Path

from nbformat import NotebookNode

_TEMPLATE = Path(__file__).parent / "report_template"
_PAIR = re.compile(r"^> (.+)\n\n(.+)$", flags=re.M)
_HEAD = re.compile(r"^<!-- cell (\S+) mark (\w+) -->$", flags=re.M)


class Language(StrEnum):
    """A language of the report; code and what it computes stay English in all of them."""

    en = "en"
    zh = "zh"

    @property
    def tag(self) -> str:
        """What HTML calls it."""
        return {"en": "en", "zh": "zh-Hans"}[self]

    @property
    def suffix(self) -> str:
        """What its files are called by, so that reports in several languages stand side by side."""
        return "" if self == Language.en else f".{self}"

    def say(self, english: str, **values: object) -> str:
        """One of the report's own sentences.

        Args:
            english: the sentence, with ``{name}`` where a value goes.
            values: name to value.
        """
        said = _sentences(self).get(english, english)
        return said.format(**values) if values else said


@cache
def _sentences(language: Language) -> dict[str, str]:
    if language == Language.en:
        return {}
    return json.loads((_TEMPLATE / f"{language}.json").read_text("utf-8"))


def mark(source: str) -> str:
    """The mark of a cell's source: eight digits that change whenever the source does."""
    return hashlib.sha256(source.strip().encode()).hexdigest()[:8]


def read_prose(notebook: Path, language: Language) -> dict[tuple[str, str], str]:
    """The translated cells of a notebook.

    Args:
        notebook: the English source; the translation stands in a folder beside it that is called like the language.
        language: any but English.

    Returns:
        Cell id and mark of its source, to the translation; empty where nothing is translated.
    """
    path = Path(notebook).parent / language / f"{Path(notebook).stem}.md"
    if not path.is_file():
        return {}
    parts = _HEAD.split(path.read_text("utf-8"))[1:]
    cells = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {(cell, of): text.strip() for cell, of, text in cells if text.strip()}


def translate(executed: NotebookNode, notebook: Path, language: Language) -> None:
    """Put the translated prose in place of the English one; what was replaced carries its language in its metadata.

    Args:
        executed: the executed copy; its Markdown cells and Markdown outputs are changed.
        notebook: its source, beside whose folder the translation is looked for.
        language: English changes nothing.
    """
    prose = {} if language == Language.en else read_prose(notebook, language)
    for cell in executed.cells:
        text = prose.get((cell.get("id", ""), mark(cell.source)))
        if text and cell.cell_type == "markdown":
            cell.source, cell.metadata["language"] = text, str(language)
        elif text:
            _retell_outputs(cell, text, language)


def _retell_outputs(cell: NotebookNode, pairs: str, language: Language) -> None:
    for output in cell.outputs:
        said = output.get("data", {}).get("text/markdown")
        if said and (told := retell(said, pairs)):
            output.data["text/markdown"], output.metadata["language"] = told, str(language)


def retell(said: str, pairs: str) -> str | None:
    """A computed text in another language.

    Args:
        said: the text, such as ``Right on 9 of 10.``
        pairs: parts of it and their translations, such as ``> Right on {n} of {all}.``, an empty line, ``{all} 张中答对
            {n} 张。``; the first part that fits is taken.

    Returns:
        The translation, its values copied; None where a part of the text is not foreseen.
    """
    parts = [(_pattern(english), translation) for english, translation in _PAIR.findall(pairs)]
    told, place, said = "", 0, said.strip()
    while place < len(said):
        fits = ((match, translation) for part, translation in parts if (match := part.match(said, place)))
        match, translation = next(fits, (None, ""))
        if match is None:
            return None
        told += "\n" * match[1].count("\n") + translation.format(**match.groupdict())
        place = match.end()
    return told


def _pattern(english: str) -> re.Pattern[str]:
    """A part ends before room, so not within a number; case does not count, as a part may begin a sentence or not."""
    named = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^;\n]+?)", re.escape(english))
    return re.compile(rf"(\s*){named}(?!\S)", flags=re.I)
