"""Carry what `figures/*.md` says into both editions of the README, between the marks that name it there.

    python benchmarks/readme.py

What stands between `<!-- figures/NAME.md -->` and `<!-- end of figures/NAME.md -->` is replaced, in the Chinese edition
by its translation: `readme_zh.md` has one for every sentence and every cell of a table, whose numbers are copied.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from pneumo_lib import runs  # noqa: E402
from pneumo_lib.report_language import Language, read_prose, retell  # noqa: E402

CHINESE = "README.zh-CN.md"
EDITIONS = ("README.md", CHINESE)
_MARKED = re.compile(r"(<!-- figures/(\w+)\.md -->\n\n).*?(\n<!-- end of figures/\2\.md -->)", flags=re.S)
_PART = re.compile(r"^<!-- (\w+) -->$", flags=re.M)


def carried(edition: str, text: str, figures: Path) -> str:
    """An edition of the README whose marked parts say what the files of a folder say now.

    Args:
        edition: a name of EDITIONS. text: what it holds.

    Raises:
        ValueError: a sentence or a cell of a table has no translation; it is quoted.
    """

    def said(found: re.Match[str]) -> str:
        told = (figures / f"{found[2]}.md").read_text("utf-8")
        return found[1] + (translated(found[2], told) if edition == CHINESE else told) + found[3]

    return _MARKED.sub(said, text)


def translated(name: str, told: str) -> str:
    """The lines of `figures/NAME.md` in Chinese."""
    _, *parts = _PART.split((ROOT / "benchmarks" / "readme_zh.md").read_text("utf-8"))
    pairs = dict(zip(parts[::2], parts[1::2], strict=True))
    prose = read_prose(ROOT / "notebooks" / "06_evaluation.ipynb", Language.zh)
    pairs["findings"] = next(said for (cell, _), said in prose.items() if cell == "findings-list")
    return "".join(f"{_line(line, pairs.get(name, ''), pairs['tables'])}\n" for line in told.splitlines())


def _line(line: str, sentences: str, cells: str) -> str:
    if line.startswith("|--") or not line:
        return line
    if line.startswith("|"):
        row = line.removeprefix("| ").removesuffix(" |").split(" | ")
        return f"| {' | '.join(_told(cell, cells) for cell in row)} |"
    return _told(line, sentences)


def _told(english: str, pairs: str) -> str:
    """The translation; what has several words must have one, a single one may be a name."""
    told = retell(english, pairs)
    if told is None and " " in english and re.search("[a-z]{2}", english):
        raise ValueError(f"benchmarks/readme_zh.md has no translation of {english!r}; add one below a line `> ENGLISH`")
    return told or english


def main() -> None:
    """Rewrite both editions."""
    for name in EDITIONS:
        text = (ROOT / name).read_text("utf-8")
        runs.write_text(ROOT / name, carried(name, text, ROOT / "figures"))


if __name__ == "__main__":
    main()
