"""The Chinese edition says what the English one says: README, prose of the notebooks, the report's own words."""

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mistune
import nbformat
import pytest
from babel.messages import extract
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import readme
from test_report import header, page, png, run, shown, write

from pneumo_lib import evidence, report, report_language
from pneumo_lib.report_language import Language, mark, read_prose, retell

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HAN = re.compile(r"[\u4e00-\u9fff]")
parse = mistune.create_markdown(renderer="ast", plugins=["table"])


def every(kind: str, node: object) -> Iterator[dict]:
    """All nodes of a kind, however deep."""
    for child in node if isinstance(node, list) else node.get("children", []):
        if child["type"] == kind:
            yield child
        yield from every(kind, child)


def text(node: dict) -> str:
    apart = " " * (node["type"] == "table_cell")  # so that the numbers of two cells do not become one
    return node.get("raw", "") + "".join(text(child) for child in node.get("children", [])) + apart


def numbers(said: str) -> Counter[str]:
    """Its numbers, each with its percent sign, in whatever order the sentence has them; 160 万 are 1.6 million."""
    said = re.sub(r"(\d+) 万", lambda found: f"{int(found[1]) / 100:g}", said)
    return Counter(found.replace(" ", "") for found in re.findall(r"\d+(?:[.,]\d+)*(?: ?%)?", said))


def sections(markdown: str) -> list[tuple[str, list[dict]]]:
    """Title and blocks of each section, its heading first."""
    found: list[tuple[str, list[dict]]] = []
    for block in parse(markdown):
        if block["type"] == "heading":
            found.append((text(block), []))
        if block["type"] != "blank_line" and found:
            found[-1][1].append(block)
    return found


def shape(blocks: list[dict]) -> list[str]:
    """What a section is made of, such as `list of 3`."""
    made = []
    for block in blocks:
        parts = {"heading": block.get("attrs", {}).get("level"), "list": len(block.get("children", []))}
        made.append(block["type"] + (f" of {parts[block['type']]}" if block["type"] in parts else ""))
    return made


def rows(blocks: list[dict]) -> list[list[str]]:
    """The cells of all tables, row by row."""
    heads, bodies = every("table_head", blocks), every("table_row", blocks)
    return [[text(cell) for cell in row["children"]] for row in [*heads, *bodies]]


def code(blocks: list[dict]) -> list[str]:
    """The lines of all code blocks without what is said about them, after a # or some room, which is translated."""
    lines = (line for block in every("block_code", blocks) for line in block["raw"].splitlines())
    return [re.sub(r"\s*# .*$|(?<=\S)\s{3,}.*$", "", line) for line in lines]


def differences(english: list[dict], chinese: list[dict]) -> Iterator[str]:
    """What one edition of a section has and the other has not."""
    if shape(english) != shape(chinese):
        yield f"blocks are {shape(english)}, in Chinese {shape(chinese)}"
    for one, other in zip(rows(english), rows(chinese), strict=False):
        if len(one) != len(other) or numbers(" ".join(one)) != numbers(" ".join(other)):
            yield f"the row {one}, in Chinese {other}"
    if len(rows(english)) != len(rows(chinese)):
        yield f"{len(rows(english))} rows of tables, in Chinese {len(rows(chinese))}"
    yield from (
        f"the line {a!r}, in Chinese {b!r}" for a, b in zip(code(english), code(chinese), strict=False) if a != b
    )
    if len(code(english)) != len(code(chinese)):
        yield f"{len(code(english))} lines of code, in Chinese {len(code(chinese))}"
    yield from uneven(
        "numbers", *(sum((numbers(text(block)) for block in side), Counter()) for side in (english, chinese))
    )
    yield from uneven("code", *(Counter(map(text, every("codespan", side))) for side in (english, chinese)))
    yield from uneven("links", *(Counter(links(side)) for side in (english, chinese)))


def links(blocks: list[dict]) -> list[str]:
    """Where it leads and what it shows, but for the other edition."""
    found = (node["attrs"]["url"] for kind in ("link", "image") for node in every(kind, blocks))
    return [target for target in found if not target.startswith("README")]


def uneven(what: str, english: Counter[str], chinese: Counter[str]) -> Iterator[str]:
    if english != chinese:
        yield f"{what} only in English: {sorted(english - chinese)}, only in Chinese: {sorted(chinese - english)}"


def compare(english: str, chinese: str) -> list[str]:
    """All differences of two editions, each with its section."""
    pairs = list(zip(sections(english), sections(chinese), strict=False))
    found = [f"{title} ({titled}): {said}" for (title, a), (titled, b) in pairs for said in differences(a, b)]
    counts = [len(sections(edition)) for edition in (english, chinese)]
    return [*found, *([f"{counts[0]} sections, in Chinese {counts[1]}"] if counts[0] != counts[1] else [])]


# ---- the README -----------------------------------------------------------------------------------------------------


def test_the_two_editions_of_the_readme_hold_the_same():
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert "(README.zh-CN.md)" in english.split("##")[0] and "(README.md)" in chinese.split("##")[0]
    found = compare(english, chinese)
    assert not found, "Carry over to the other edition of the README:\n" + "\n".join(found)


def test_every_paragraph_of_the_chinese_readme_is_chinese():
    for title, blocks in sections((ROOT / "README.zh-CN.md").read_text("utf-8")):
        left = [text(block) for kind in ("paragraph", "list_item") for block in [*every(kind, blocks)]]
        left += [text(block) for block in blocks if block["type"] == "paragraph"]
        assert [said for said in left if not HAN.search(said)] == [], title


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("91.5 %", "91.6 %"), r"结果.*numbers only in English: \['91.5%'\], only in Chinese: \['91.6%'\]"),
        (("| 7 |", "| 8 |"), "结果.*the row"),
        (("\n| b | 7 |", ""), "2 rows of tables, in Chinese 1|3 rows of tables, in Chinese 2"),
        (("\n    make test  # 全部", ""), "lines of code|blocks are"),
        (("make test  #", "make tset  #"), "the line"),
        (("`x`", "`y`"), r"code only in English: \['x'\]"),
        (("\n- 二", ""), "list of 2.*list of 1"),
        (("## 局限\n", ""), "3 sections, in Chinese 2"),
    ],
)
def test_the_comparison_itself_can_fail(change, said):
    table = "| a | n |\n|---|---|\n| b | 7 |\n"
    english = f"# T\n\n## Results\n\n91.5 % of `x`.\n\n{table}\n    make test  # all\n\n## Limits\n\n- 1\n- b\n"
    chinese = f"# 题\n\n## 结果\n\n`x` 的 91.5 %。\n\n{table}\n    make test  # 全部\n\n## 局限\n\n- 1\n- 二\n"
    assert compare(english, chinese) == []
    assert change[0] in chinese
    found = "\n".join(compare(english, chinese.replace(*change)))
    assert re.search(said, found), found


@pytest.mark.parametrize("edition", readme.EDITIONS)
def test_the_readme_holds_what_is_published_in_its_language(edition):
    text = (ROOT / edition).read_text("utf-8")
    marked = re.findall(r"^<!-- figures/(\w+)\.md -->$", text, flags=re.M)
    assert marked == ["findings", "results", "evidence", "claims", "systems"]
    assert readme.carried(edition, text, ROOT / "figures") == text, "old: run python benchmarks/readme.py"


def test_every_row_that_the_table_of_variants_may_have_has_a_translation():
    rows = readme.translated("evidence", "".join(f"| {told} |\n" for told in evidence.VARIANTS.values())).splitlines()
    assert len(set(rows)) == len(evidence.VARIANTS) and all(map(HAN.search, rows))


def test_new_figures_are_carried_into_both_editions_and_what_has_no_translation_is_named(tmp_path):
    for name in ("findings", "results", "evidence", "claims", "systems"):
        shutil.copyfile(ROOT / "figures" / f"{name}.md", tmp_path / f"{name}.md")
    place = tmp_path / "evidence.md"
    place.write_text(place.read_text().replace("| short, twice as wide | 1 |", "| small, twice as wide | 47 |"))
    rows = ("| small, twice as wide | 47 |", "| small，加宽一倍 | 47 |")
    for edition, row in zip(readme.EDITIONS, rows, strict=True):
        text = (ROOT / edition).read_text("utf-8")
        (new,) = set(readme.carried(edition, text, tmp_path).splitlines()) - set(text.splitlines())
        assert new.startswith(row)
    place.write_text(place.read_text().replace("twice as wide", "half as deep"))
    with pytest.raises(ValueError, match="no translation of 'small, half as deep'"):
        readme.carried(readme.CHINESE, (ROOT / readme.CHINESE).read_text("utf-8"), tmp_path)


# ---- the prose of the notebooks -------------------------------------------------------------------------------------


TOLD_BY_THE_CARD = "4f408c9a"  # the words of a data card and of a folder's notes, which are not the notebook's


def speaking(path: Path) -> list[nbformat.NotebookNode]:
    """The cells of a notebook that are prose, or code that ends in a sentence."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.id != TOLD_BY_THE_CARD]
    return [cell for cell in cells if cell.cell_type == "markdown" or "Markdown(" in cell.source]


def lacking(path: Path) -> list[str]:
    """The cells of a notebook whose Chinese is missing or older than they are, with what to do."""
    prose, found = read_prose(path, Language.zh), []
    for cell in speaking(path):
        if (cell.id, mark(cell.source)) not in prose:
            state = "is older than the cell" if cell.id in {of for of, _ in prose} else "is missing"
            head = f"<!-- cell {cell.id} mark {mark(cell.source)} -->"
            found.append(f"{path.name}, cell {cell.id}: its Chinese {state}. Translate it below the line {head}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_text_of_a_notebook_is_there_in_chinese_and_up_to_date(path):
    assert not lacking(path), "\n".join(lacking(path))
    cells, prose = speaking(path), read_prose(path, Language.zh)
    assert [cell.id for cell in cells] == [cell for cell, _ in prose], "in the order of the notebook, nothing besides"
    for cell in cells:
        said = prose[cell.id, mark(cell.source)]
        pairs = [(cell.source, said)] if cell.cell_type == "markdown" else report_language._PAIR.findall(said)
        assert pairs, f"{path.name}, cell {cell.id}: no pairs"
        for english, chinese in pairs:
            found = list(differences(parse(english), parse(chinese)))
            found += uneven("values", *(Counter(re.findall(r"\{\w+\}", part)) for part in (english, chinese)))
            assert HAN.search(chinese) and not found, f"{path.name}, cell {cell.id}: {found}"


def test_a_changed_text_and_a_missing_translation_are_named(tmp_path):
    cells = [new_markdown_cell("One."), new_markdown_cell("Two."), new_markdown_cell("Three.")]
    path = tmp_path / "01_part.ipynb"
    heads = [
        f"<!-- cell {cell.id} mark {mark(cell.source)} -->\n{said}\n" for cell, said in zip(cells, "一二", strict=False)
    ]
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "01_part.md").write_text("\n".join(heads), "utf-8")
    cells[1].source = "Two and a half."
    nbformat.write(new_notebook(cells=cells), path)
    old, missing = lacking(path)
    assert f"01_part.ipynb, cell {cells[1].id}: its Chinese is older" in old and mark("Two and a half.") in old
    assert f"cell {cells[2].id}: its Chinese is missing" in missing


PAIRS = """> Of {all} films, {n} are right.

{all} 张影像中答对 {n} 张。

> - `{name}`: {n} of {all}

- `{name}`：{all} 分之 {n}

> {first} and {last};

{first} 和 {last}；

> {one};

{one}；

> More: {gain}.

多：{gain}。
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Of 1,244 films, 94.2 % [92.8, 95.4] are right.", "1,244 张影像中答对 94.2 % [92.8, 95.4] 张。"),
        (
            "Of 3 films, 2 are right.\n\n- `a b`: 1 of 2\n- `{c}`: 3 of 4\n",
            "3 张影像中答对 2 张。\n\n- `a b`：2 分之 1\n- `{c}`：4 分之 3",
        ),
        ("of 3 films, 2 are right. 0.1; 0.2 and 1;", "3 张影像中答对 2 张。0.1；0.2 和 1；"),
        ("More: 0.0 % [-7.3, 7.3].", "多：0.0 % [-7.3, 7.3]。"),
        ("Of 3 films, 2 are right. Perhaps.", None),
        ("Not foreseen. Of 3 films, 2 are right.", None),
    ],
)
def test_a_computed_sentence_is_told_whole_or_not_at_all(said, told):
    assert retell(said, PAIRS) == told


# ---- the report -----------------------------------------------------------------------------------------------------


def test_every_sentence_of_the_report_is_there_in_chinese():
    kinds = [("report_template/*.j2", "jinja2"), ("report*.py", "python"), ("cli.py", "python")]
    found = extract.extract_from_dir(ROOT / "pneumo_lib", kinds, keywords={"say": None})
    used = {message for _, _, message, _, _ in found}
    translated = json.loads((ROOT / "pneumo_lib" / "report_template" / "zh.json").read_text("utf-8"))
    assert len(used) > 40 and used == set(translated), "said but not translated, or translated but not said"
    assert list(translated) == sorted(translated), "sorted, so that each sentence is found"
    for english, chinese in translated.items():
        for part in (r"\{\w+", r"</?\w+"):
            assert sorted(re.findall(part, english)) == sorted(re.findall(part, chinese)), english


def test_the_chinese_page_is_chinese_and_falls_back_cell_by_cell(tmp_path):
    cells = [new_markdown_cell("# 02 · Cleaning"), new_markdown_cell("## Data"), new_markdown_cell("## Loss")]
    texts = [f"<!-- cell {cells[0].id} mark {mark(cells[0].source)} -->\n# 清理\n"]
    texts += [f"<!-- cell {cells[1].id} mark {mark('## Old data')} -->\n## 旧数据\n"]
    outputs = [new_output("stream", name="stdout", text="spoken")]
    computed = new_code_cell("Markdown(f'{n} films.')")
    computed.outputs = [new_output("display_data", {"text/markdown": said}) for said in ("7 films.", "7 beams.")]
    texts += [f"<!-- cell {computed.id} mark {mark(computed.source)} -->\n> {{n}} films.\n\n{{n}} 张影像。\n"]
    cells += [computed, shown({"image/png": png()}, alt="A curve."), new_code_cell("1\n2", outputs=outputs)]
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "02_denoiser_training.md").write_text("\n".join(texts), "utf-8")
    soup = BeautifulSoup(page(tmp_path, *cells, language=Language.zh), "html.parser")
    assert soup.html["lang"] == "zh-Hans" and soup.find(class_="toc")["aria-label"] == "目录"
    entries = [link.get_text(" ", strip=True) for link in soup.select(".toc a")]
    assert entries == ["2 清理", "2.1 Data", "2.2 Loss"]
    assert [bool(part.find_parent(lang="en")) for part in soup.select(".chapter h3, pre.output, figcaption")] == [
        True
    ] * 4
    computed = {said.get_text(): bool(said.find_parent(lang="en")) for said in soup.select(".chapter p:not([class])")}
    assert computed == {"7 张影像。": False, "7 beams.": True}
    assert soup.figcaption.get_text() == "图 2.1 A curve." and "不是医疗器械" in soup.get_text()
    assert soup.select_one(".code summary").get_text() == "代码 1 行" and "1 分 15 秒" in soup.get_text()
    own = [part for part in soup.select(".cover, .tools, footer") if not HAN.search(part.get_text())]
    assert own == [] and not re.search(r"Contents|Research|Phantom|Code\b| theme", str(soup.body))


def test_english_stays_as_it_is(tmp_path):
    soup = BeautifulSoup(page(tmp_path, new_markdown_cell("# 02 Title"), new_code_cell("1")), "html.parser")
    assert soup.html["lang"] == "en" and not HAN.search(str(soup.body)) and not soup.body.find(attrs={"lang": True})


def test_the_language_is_no_reason_to_run_a_notebook_again():
    assert f"{Path(report_language.__file__).name}" in report._NO_EFFECT


@pytest.mark.slow
def test_both_languages_stand_side_by_side_and_only_the_first_runs_the_notebook(tmp_path):
    notebooks = [write(tmp_path / "nb", 1, "1 + 1")]
    english = run(notebooks, tmp_path)
    options = {"run_dir": tmp_path / "runs" / "demo", "out_dir": tmp_path / "report", "progress": False}
    chinese = report.run_report(notebooks, header=header(language=Language.zh), **options)
    assert [one.status for one in (*english.runs, *chinese.runs)] == ["done", "reused"]
    assert (chinese.html.name, chinese.manifest.name) == ("report.zh.html", "manifest.zh.json")
    assert english.html.is_file() and "沿用先前的运行结果" in chinese.html.read_text("utf-8")
    assert json.loads(chinese.manifest.read_text("utf-8"))["header"]["language"] == "zh"
