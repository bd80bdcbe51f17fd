"""The report: parameters checked first, notebooks run once, failures shown, one page that loads nothing."""

import base64
import io
import json
import re
import sys
import time
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from pneumo_lib import report, report_html
from pneumo_lib.errors import ReportError, UsageError
from pneumo_lib.report_html import NotebookRun, ReportHeader, render

PARAMETERS = 'preset: str = "demo"  # name\nrun_dir: str = "../runs/demo"\nsigma: float = 0.5  # noise\nseed: int = 0\n'
LOG = 'open(run_dir + "/log.txt", "a").write("{n} ")'
SHOW = (
    "import base64\nfrom IPython.display import display\n"
    "data, alt = {'image/png': base64.b64decode('%s'), 'text/plain': 'x'}, {'image/png': {'alt': 'A < B'}}\n"
    "display(data, raw=True, metadata=alt)"
)


def png() -> str:
    buffer = io.BytesIO()
    Image.new("L", (40, 20), 200).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def header(**changes) -> ReportHeader:
    facts = {
        "title": "Title <script>alert(1)</script>",
        "data_set": "films & <b>phantoms</b>",
        "preset": "demo",
        "date": "20 November 2026",
        "commit": "abc1234",
        "device": "CPU",
        "versions": {"torch": "2.10"},
        "seeds": {"data": 7},
        "phantom": True,
    }
    return ReportHeader(**(facts | changes))


def write(folder: Path, number: int, *sources: str, parameters: str = PARAMETERS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell(f"# {number:02d} · Part {number}\n\n## Question"), new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [new_code_cell(source) for source in sources]
    path = folder / f"{number:02d}_part.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def page(tmp_path: Path, *cells, stem: str = "02_denoiser_training", **changes) -> str:
    """A report on one notebook that looks executed; no kernel is started."""
    path = tmp_path / f"{stem}.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    run = NotebookRun(path, path, changes.pop("status", "done"), seconds=75, message=changes.pop("message", ""))
    return render(header(**changes), [run])


def shown(data: dict, *, alt: str | None = None, source: str = "look()"):
    metadata = {mime: {"alt": alt} for mime in data if alt is not None}
    return new_code_cell(source, outputs=[new_output("display_data", data, metadata=metadata)])


def run(notebooks, tmp_path: Path, **options) -> report.ReportResult:
    paths = {"run_dir": tmp_path / "runs" / "demo", "out_dir": tmp_path / "report"}
    return report.run_report(notebooks, **paths, header=header(), progress=False, **options)


# --- parameters: everything is refused before the run folder even exists ---


def refused(tmp_path: Path, **parameters) -> str:
    notebooks = [write(tmp_path / "nb", 1, "1"), write(tmp_path / "nb", 2, "1", parameters="epochs: int = 3\n")]
    with pytest.raises(UsageError) as error:
        run(notebooks, tmp_path, parameters=parameters)
    assert not (tmp_path / "runs").exists()
    return str(error.value)


def test_misspelt_parameter_is_refused_before_any_cell_and_the_nearest_is_named(tmp_path):
    assert "'sigam'" in (message := refused(tmp_path, sigam=0.3))
    assert "'sigma'" in message


def test_parameter_like_no_other_lists_the_known_ones(tmp_path):
    assert "epochs, preset, run_dir, seed, sigma" in refused(tmp_path, zzz=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sigma", "0.3"), ("seed", 1.5), ("seed", True), ("sigma", False), ("preset", 3), ("epochs", None)],
)
def test_wrong_type_is_refused(tmp_path, name, value):
    assert repr(value) in (message := refused(tmp_path, **{name: value}))
    assert "expects" in message


@pytest.mark.parametrize(("value", "accepted"), [(None, True), (2, True), ("2", False), (True, False)])
def test_optional_and_unannotated_parameters_are_known(tmp_path, value, accepted):
    path = write(tmp_path, 1, parameters='limit: float | None = None  # cap\nname = "x"\nsizes: list[int] = [1]\n')
    assert report.check_parameters([path], {"name": "y", "sizes": [2]}) == {path: {"name": "y", "sizes": [2]}}
    with pytest.raises(UsageError, match="expects str"):
        report.check_parameters([path], {"name": 1})
    if accepted:
        assert report.check_parameters([path], {"limit": value})[path] == {"limit": value}
    else:
        with pytest.raises(UsageError, match=r"expects float \| None"):
            report.check_parameters([path], {"limit": value})


def test_missing_notebook_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"09_nowhere\.ipynb"):
        run([tmp_path / "09_nowhere.ipynb"], tmp_path)


def test_each_notebook_gets_only_what_it_declares(tmp_path):
    first = write(tmp_path / "nb", 1)
    second = write(tmp_path / "nb", 2, parameters="epochs: int = 3\n")
    assigned = report.check_parameters([first, second], {"epochs": 5, "sigma": 1}, run_dir=tmp_path / "runs" / "demo")
    assert assigned == {first: {"run_dir": "../runs/demo", "sigma": 1}, second: {"epochs": 5}}


# --- execution ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two notebooks run once: the second reads what the first wrote."""
    root = tmp_path_factory.mktemp("finished")
    first = write(root / "nb", 1, LOG.format(n=1), SHOW % png(), "import sys\nsys.executable")
    reader = "import os\nprint(open(run_dir + '/log.txt').read(), sigma, os.path.basename(os.getcwd()))"
    second = write(root / "nb", 2, reader, LOG.format(n=2))
    (root / "runs" / "demo").mkdir(parents=True)
    return root, [first, second], run([first, second], root, parameters={"sigma": 0.25})


@pytest.mark.slow
def test_notebooks_run_in_order_with_their_parameters_in_their_own_folder(finished):
    root, _, result = finished
    assert [one.status for one in result.runs] == ["done", "done"]
    assert "1  0.25 nb" in result.html.read_text("utf-8")
    assert (root / "runs/demo/log.txt").read_text() == "1 2 "
    assert (root / "runs/demo/notebooks/02_part.ipynb").is_file()


@pytest.mark.slow
def test_manifest_tells_parameters_times_and_hashes(finished):
    _, _, result = finished
    manifest = json.loads(result.manifest.read_text("utf-8"))
    assert manifest["notebooks"][0]["parameters"] == {"run_dir": "../runs/demo", "sigma": 0.25}
    assert [one["status"] for one in manifest["notebooks"]] == ["done", "done"]
    assert manifest["seconds"] > manifest["notebooks"][0]["seconds"] > 0
    assert manifest["peak_memory_mb"] is None or manifest["peak_memory_mb"] > 10
    assert manifest["header"]["versions"] == {"torch": "2.10"}


@pytest.mark.slow
def test_unchanged_notebooks_are_skipped_quickly(finished):
    root, notebooks, _ = finished
    started = time.perf_counter()
    again = run(notebooks, root, parameters={"sigma": 0.25})
    assert [one.status for one in again.runs] == ["reused", "reused"]
    assert time.perf_counter() - started < 3
    assert "unchanged, kept from an earlier run" in again.html.read_text("utf-8")


def plan(finished, *, data="", force=False, **parameters):
    root, notebooks, _ = finished
    assigned = report.check_parameters(notebooks, {"sigma": 0.25} | parameters, run_dir=root / "runs" / "demo")
    planned = report._plan(assigned, root / "runs" / "demo" / "notebooks", data, force=force)
    return ["again" if one.status == "not run" else one.status for one in planned]


@pytest.mark.slow
def test_what_makes_a_notebook_run_again(finished, monkeypatch):
    root, notebooks, _ = finished
    assert plan(finished) == ["reused", "reused"]
    assert plan(finished, sigma=0.3) == plan(finished, data="other") == plan(finished, force=True) == ["again", "again"]
    source = notebooks[1].read_text("utf-8")
    notebooks[1].write_text(source.replace("getcwd", "getcwdb"), "utf-8")
    assert plan(finished) == ["reused", "again"]
    notebooks[1].write_text(source, "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(report, "_library_hash", lambda: "another library")
        assert plan(finished) == ["again", "again"]
    copy = root / "runs/demo/notebooks/01_part.ipynb"
    executed = copy.read_bytes()
    copy.write_bytes(executed[:-20])
    assert plan(finished) == ["again", "reused"]
    copy.write_bytes(executed)
    (root / "runs/demo/log.txt").rename(root / "log.txt")
    assert plan(finished) == ["again", "again"]
    (root / "log.txt").rename(root / "runs/demo/log.txt")
    assert plan(finished) == ["reused", "reused"]


@pytest.mark.slow
def test_opening_a_notebook_changes_nothing(finished):
    _, notebooks, _ = finished
    notebook = nbformat.read(notebooks[0], as_version=4)
    notebook.metadata["toc"] = {"collapsed": True}
    notebook.cells[1].outputs = [new_output("stream", name="stdout", text="seen in JupyterLab")]
    nbformat.write(notebook, notebooks[0])
    assert plan(finished) == ["reused", "reused"]


@pytest.mark.slow
def test_kernel_is_this_interpreter_whatever_is_called_python3(tmp_path, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "?", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    result = run([write(tmp_path / "nb", 1, "import sys\nprint('runs', sys.executable)")], tmp_path)
    assert f"runs {sys.executable}" in result.html.read_text("utf-8")


@pytest.mark.slow
def test_failing_notebook_is_shown_and_the_rest_mended_later(tmp_path):
    folder = tmp_path / "nb"
    notebooks = [write(folder, 1, "1"), write(folder, 2, "print('before')", "1 / 0", "later"), write(folder, 3, "3")]
    with pytest.raises(ReportError, match=r"02_part\.ipynb failed: ZeroDivisionError: division by zero") as error:
        run(notebooks, tmp_path)
    assert error.value.exit_code == 5
    html = (tmp_path / "report/report.html").read_text("utf-8")
    text = BeautifulSoup(html, "html.parser").get_text(" ", strip=True)
    assert "This notebook failed. ZeroDivisionError: division by zero" in text
    assert "It builds on 02_part.ipynb, which failed." in text
    assert "Code, not run" in text and "before" in text
    assert "papermill" not in html and "\x1b" not in html
    manifest = json.loads((tmp_path / "report/manifest.json").read_text("utf-8"))
    assert [one["status"] for one in manifest["notebooks"]] == ["done", "failed", "not run"]
    write(folder, 2, "print('mended')")
    assert [one.status for one in run(notebooks, tmp_path).runs] == ["reused", "done", "done"]


@pytest.mark.slow
def test_kernel_death_is_explained(tmp_path):
    path = write(
        tmp_path / "nb", 1, "print('alive', flush=True)", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(ReportError, match="most likely because the memory ran out"):
        run([path], tmp_path)
    html = (tmp_path / "report/report.html").read_text("utf-8")
    assert "lower batch_size" in html and "alive" in html


@pytest.mark.slow
def test_progress_is_one_bar_over_all_cells(tmp_path, capsys):
    path = write(tmp_path / "nb", 1, "1", "2")
    report.run_report([path], run_dir=tmp_path / "run", out_dir=tmp_path / "out", header=header())
    shown_bar = capsys.readouterr()
    assert shown_bar.out == ""
    assert "01_part" in shown_bar.err and "4/4" in shown_bar.err


# --- the page ---


def test_page_loads_nothing_and_its_policy_fits_its_style_and_script(tmp_path):
    html = page(
        tmp_path, new_markdown_cell("# 02 Title\n\n[paper](https://example.org) <span style='x' onclick='y'>z</span>")
    )
    soup = BeautifulSoup(html, "html.parser")
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        assert report_html._csp(soup.find(tag).string) in policy
    loaders = [tag for tag in soup.find_all(True) for name in ("src", "srcset", "data") if name in tag.attrs]
    assert loaders == [] and [link["href"] for link in soup.find_all("link")] == ["data:,"]
    assert not soup.find_all(lambda tag: tag.has_attr("style") or tag.has_attr("onclick"))
    assert not re.search(r"url\(|@import", html)


def test_page_has_language_skip_link_one_main_and_numbered_contents(tmp_path):
    cells = [new_markdown_cell("# 02 · Cleaning\n\n## Data\n\n### Detail\n\n## Loss & <code>x</code>")]
    soup = BeautifulSoup(page(tmp_path, *cells), "html.parser")
    assert soup.html["lang"] == "en" and len(soup.find_all("main")) == 1 and len(soup.find_all("h1")) == 1
    entries = [link.get_text(" ", strip=True) for link in soup.select(".toc a")]
    assert entries == ["2 Cleaning", "2.1 Data", "2.2 Loss & x"]
    identifiers = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(set(identifiers)) == len(identifiers)
    for link in [*soup.select(".toc a"), soup.select_one("a.skip")]:
        assert soup.find(id=link["href"][1:])
    assert soup.find("h4").get_text() == "Detail"


def test_every_user_string_is_escaped(tmp_path):
    outputs = [
        new_output("stream", name="stdout", text="<script>a()</script>"),
        new_output("display_data", {"text/markdown": "**bold** <img src=x onerror=b()>"}),
        new_output("error", ename="E", evalue="<script>c()</script>", traceback=["<script>d()</script>"]),
    ]
    html = page(tmp_path, new_code_cell("'<script>e()</script>'", outputs=outputs), message="<script>f()</script>")
    soup = BeautifulSoup(html, "html.parser")
    assert len(soup.find_all("script")) == 1 and not soup.find_all("img")
    assert "<strong>bold</strong>" in html and "alert(1)" in soup.h1.get_text()
    assert "films &amp; &lt;b&gt;" in html


def test_phantom_banner_only_on_phantoms(tmp_path):
    assert "phantom results are not medical results" in page(tmp_path, phantom=True)
    real = page(tmp_path, phantom=False)
    assert "not medical results" not in real and "not a medical device" in real


def test_header_card_names_everything(tmp_path):
    facts = BeautifulSoup(page(tmp_path), "html.parser").select_one(".facts").get_text(" ", strip=True)
    for fact in ("demo", "20 November 2026", "abc1234", "CPU", "torch\xa02.10", "data:\xa07"):
        assert fact in facts


def test_figure_is_embedded_with_alternative_text_and_caption(tmp_path):
    soup = BeautifulSoup(page(tmp_path, shown({"image/png": png(), "text/plain": "A"}, alt='A "<" B')), "html.parser")
    image = soup.find("img")
    assert image["alt"] == 'A "<" B' and image["src"].startswith("data:image/png;base64,")
    assert (image["width"], image["height"]) == ("40", "20")
    assert soup.figcaption.get_text() == 'Figure 2.1 A "<" B'


def test_figure_without_alternative_text_is_refused_with_its_place(tmp_path):
    with pytest.raises(ReportError, match="02_denoiser_training, cell 2: a figure without alternative text"):
        page(tmp_path, new_markdown_cell("# T"), shown({"image/png": png()}))


@pytest.mark.parametrize("source", ["figure.png", "https://example.org/x.png", "attachment:x.png"])
def test_image_outside_the_notebook_is_refused(tmp_path, source):
    with pytest.raises(ReportError, match="is not inside the notebook"):
        page(tmp_path, new_markdown_cell(f"![alt]({source})"))


def test_table_gets_scopes_and_loses_foreign_style(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"n": [1, 2], "note": ["<b>", "y"]}, index=pd.Index(["NORMAL", "COVID19"], name="class"))
    table = BeautifulSoup(page(tmp_path, shown({"text/html": frame._repr_html_()})), "html.parser").find("table")
    assert [(cell.get_text(), cell["scope"]) for cell in table.find_all("th")] == [
        ("class", "col"),
        ("n", "col"),
        ("note", "col"),
        ("NORMAL", "row"),
        ("COVID19", "row"),
    ]
    assert "<style" not in str(table.parent.parent) and "&lt;b&gt;" in str(table)
    assert table.parent["class"] == ["scroll"]
    assert [cell.get_text() for cell in table.select(".numeric")] == ["n", "1", "2"]


@pytest.mark.parametrize(
    ("text", "numeric"),
    [
        ("94.9 % [93.5, 96.0]", True),
        ("24.1 dB", True),
        ("−0.4 %", True),
        ("nan", True),
        ("50 epochs, batch 32", False),
        ("94.57% of 1288 (test + noise)", False),
        ("cnn2", False),
    ],
)
def test_cells_align_as_numbers_only_where_they_are_numbers(tmp_path, text, numeric):
    shows = shown({"text/html": f"<table><tr><th>a</th></tr><tr><td>{text}</td></tr></table>"})
    cell = BeautifulSoup(page(tmp_path, shows), "html.parser").find("table").find("td")
    assert (cell.get("class") == ["numeric"]) == numeric


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("94.9 % [93.5, 96.0]", "94.9\xa0% [93.5,\xa096.0]"),
        ("0.938 [−0.1, +0.6] of 390", "0.938 [−0.1,\xa0+0.6] of 390"),
        ("2 films [see below, or not]", "2 films [see below, or not]"),
    ],
)
def test_a_line_breaks_neither_an_interval_nor_a_number_from_its_unit(tmp_path, text, kept):
    shows = shown({"text/html": f"<table><tr><th>a</th></tr><tr><td>{text}</td></tr></table>"})
    assert BeautifulSoup(page(tmp_path, shows), "html.parser").find("table").find("td").get_text() == kept


def test_table_without_header_cells_is_refused(tmp_path):
    with pytest.raises(ReportError, match="without header cells"):
        page(tmp_path, shown({"text/html": "<table><tr><td>1</td></tr></table>"}))


def test_bars_and_stderr_leave_no_residue(tmp_path):
    outputs = [
        new_output("stream", name="stderr", text="\r 10%|#\r100%|##########"),
        new_output("stream", name="stdout", text="step 1\rstep 2\rstep 3\r\nready\n"),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%| |"}),
    ]
    soup = BeautifulSoup(page(tmp_path, new_code_cell("go()", outputs=outputs)), "html.parser")
    assert [block.get_text() for block in soup.select("pre.output")] == ["step 3\nready"]


def test_code_is_folded_but_there_and_highlighted(tmp_path):
    soup = BeautifulSoup(page(tmp_path, new_code_cell("for x in range(3):\n    print('a', x)")), "html.parser")
    block = soup.select_one("details.code")
    assert not block.has_attr("open") and block.summary.get_text() == "Code 2 lines"
    assert (
        block.code.get_text() == "for x in range(3):\n    print('a', x)" and block.select_one(".k").get_text() == "for"
    )


def test_links_between_notebooks_become_chapters_and_local_files_lose_theirs(tmp_path):
    text = "[this](02_denoiser_training.ipynb#x) [that](09_none.ipynb) [paper](https://example.org)"
    soup = BeautifulSoup(page(tmp_path, new_markdown_cell(text)), "html.parser")
    links = {link.get_text(): link["href"] for link in soup.select(".chapter a")}
    assert links == {"this": "#nb-02_denoiser_training", "paper": "https://example.org"}
    assert "that" in soup.select_one(".chapter").get_text()


def test_page_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(report_html, "_MAX_BYTES", 1000)
    with pytest.raises(ReportError, match="smaller figures"):
        page(tmp_path)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_every_text_colour_has_contrast_in_both_themes(theme):
    css = (Path(report_html.__file__).parent / "report_template/report.css").read_text("utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    colours = {name: (light, dark)[theme] for name, light, dark in pairs}
    grounds = ["paper", "raised"]
    texts = ["ink", "soft", "accent", "keyword", "string", "literal", "name"]
    checks = [(text, ground) for text in texts for ground in grounds]
    notices = [(text, f"{kind}-ground") for kind in ("alert", "phantom") for text in ("ink", "accent", kind)]
    for text, ground in [*checks, *notices, ("alert", "paper"), ("alert", "raised")]:
        light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
