"""The languages of the report: its own sentences, and the prose of the notebooks.

The sentences stand in ``report_template/zh.json``, English to Chinese. The prose of ``notebooks/NAME.ipynb`` stands in
``notebooks/zh/NAME.md``, cell by cell, each below a line that names the cell and a mark of the English text that was
translated. What has no translation, or an older one than its English text, stays English: the page never says what the
notebook no longer says. Nothing here can change a number, so no notebook runs again for it.
"""

import hashlib
import json
import re
from enum import StrEnum
from functools import cache
from pathlib import Path

from nbformat import NotebookNode

_TEMPLATE = Path(__file__).parent / "report_template"
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


def mark(english: str) -> str:
    """The mark of an English text: eight digits that change whenever the text does."""
    return hashlib.sha256(english.strip().encode()).hexdigest()[:8]


def read_prose(notebook: Path, language: Language) -> dict[tuple[str, str], str]:
    """The translated cells of a notebook.

    Args:
        notebook: the English source; the translation stands in a folder beside it that is called like the language.
        language: any but English.

    Returns:
        Cell id and mark of the English text, to the translation; empty where nothing is translated.
    """
    path = Path(notebook).parent / language / f"{Path(notebook).stem}.md"
    if not path.is_file():
        return {}
    parts = _HEAD.split(path.read_text("utf-8"))[1:]
    cells = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {(cell, of): text.strip() for cell, of, text in cells if text.strip()}


def translate(executed: NotebookNode, notebook: Path, language: Language) -> None:
    """Put the translated prose in place of the English one; such cells carry their language in their metadata.

    Args:
        executed: the executed copy; its Markdown cells are changed.
        notebook: its source, beside whose folder the translation is looked for.
        language: English changes nothing.
    """
    prose = {} if language == Language.en else read_prose(notebook, language)
    for cell in executed.cells:
        text = prose.get((cell.get("id", ""), mark(cell.source)))
        if cell.cell_type == "markdown" and text:
            cell.source, cell.metadata["language"] = text, str(language)
