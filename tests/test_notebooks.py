"""The notebooks: rules that keep them readable and runnable, and their execution on the preset `tiny`."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from bs4 import BeautifulSoup
from test_chinese import TOLD_BY_THE_CARD
from test_chinese import numbers as numbers_in

from pneumo_lib import answers, comparison, config, controls, pipeline, runs
from pneumo_lib.data import CLASSES
from pneumo_lib.report_language import Language, translate

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])(/(home|root|tmp|Users|mnt|work|kaggle|content)/|[A-Z]:\\)")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def tagged(path: Path, tag: str) -> list[str]:
    return [cell.source for cell in code(path) if tag in cell.metadata.get("tags", [])]


def lines(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip()]


# ---- rules ----------------------------------------------------------------------------------------------------------


def test_the_notebooks_are_those_that_the_library_names():
    assert [path.stem for path in NOTEBOOKS] == list(runs.NOTEBOOKS.values())
    assert all(name.startswith(f"{number}_") for number, name in runs.NOTEBOOKS.items())


@every_notebook
def test_stored_without_outputs_in_the_current_format(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert [cell.outputs for cell in code(path) if cell.outputs] == []
    assert {cell.execution_count for cell in code(path)} == {None}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}, "no traces of the one who ran it last"
    assert path.read_bytes().endswith(b"}\n")


@every_notebook
def test_nothing_of_one_machine_is_stored(path):
    assert MACHINE_PATH.findall(path.read_text(encoding="utf-8")) == []


@every_notebook
def test_the_parameters_are_annotated_literals_one_per_line(path):
    (source,) = tagged(path, "parameters")
    assert read(path).cells[1].source == source, "the second cell, so that papermill's own comes before everything"
    statements = ast.parse(source).body
    assert len(statements) == len(lines(source))
    for statement, line in zip(statements, lines(source), strict=True):
        assert isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant), line
        assert line.count("=") == 1, "papermill does not see a parameter whose line has a second equals sign"
        assert re.search(r"  # \w", line), f"{line}: unit and meaning"


def test_parameters_and_configuration_are_the_same_everywhere():
    assert len({tagged(path, "parameters")[0] for path in NOTEBOOKS}) == 1
    blocks = {tagged(path, "setup")[0].partition("options = ")[2] for path in NOTEBOOKS}
    assert len(blocks) == 1 and "config.make(" in blocks.pop()


def test_the_defaults_are_those_of_the_demo():
    values: dict = {}
    exec(tagged(NOTEBOOKS[0], "parameters")[0], values)
    given = {k: v for k, v in values.items() if not k.startswith("__") and k not in ("run_dir", "cache_dir")}
    assert config.make(**given) == config.make("demo")


@every_notebook
def test_cells_are_short_and_define_nothing(path):
    sizes = [len(lines(cell.source)) for cell in code(path) if cell.source not in tagged(path, "parameters")]
    assert max(sizes) <= 15, sizes
    for cell in code(path):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), cell.source
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), cell.source
            assert not isinstance(node, ast.Import | ast.ImportFrom) or cell.source in tagged(path, "setup")


def test_a_cell_does_one_thing():
    """Counted in statements, as the formatter breaks long ones into several lines."""
    sizes = [len(ast.parse(cell.source).body) for path in NOTEBOOKS for cell in code(path)]
    assert statistics.median(sizes) <= 4


@every_notebook
def test_every_import_is_used(path):
    source = "\n".join(cell.source for cell in code(path))
    nodes = list(ast.walk(ast.parse(source)))
    aliases = (alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names)
    imported = {(alias.asname or alias.name).split(".")[0] for alias in aliases}
    assert imported <= {node.id for node in nodes if isinstance(node, ast.Name)}


@every_notebook
def test_the_first_cell_says_what_this_is(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \w", first.source)
    assert re.search(r"\*\*[^*]+\?\*\*", first.source), "the question"
    for word in ("Takes:", "Makes:", f"metrics_{path.stem[:2]}.json", "Runs about", "CPU"):
        assert word in first.source, word


@every_notebook
def test_one_title_then_sections(path):
    headings = re.findall(r"^(#+) ", "\n".join(prose(path)), re.M)
    assert headings[0] == "#" and set(headings[1:]) == {"##"} and len(headings) >= 4


@every_notebook
def test_each_notebook_stores_its_numbers_and_concludes_from_them(path):
    source, number = "\n".join(cell.source for cell in code(path)), path.stem[:2]
    assert re.findall(r'run\.(write|read)_metrics\(\s*"(\d\d)"', source) == [("write", number), ("read", number)]
    assert "stored[" in code(path)[-1].source, "the conclusion's numbers are read, not typed"
    assert set(re.findall(r'\bname="(\d\d)_\w+",\s*folder=', source)) == {number}, "figures carry the number"


@pytest.mark.parametrize("number", ["02", "03", "04"])
def test_nothing_is_chosen_on_test_films(number):
    source = "\n".join(cell.source for cell in code(ROOT / "notebooks" / f"{runs.NOTEBOOKS[number]}.ipynb"))
    assert not re.search(r"""["'](noisy_)?test["']""", source)


@every_notebook
def test_no_shell_and_no_magics(path):
    assert not re.search(r"^\s*[!%]", "\n".join(cell.source for cell in code(path)), re.M)


# ---- execution ------------------------------------------------------------------------------------------------------


def called(*arguments: object, **options) -> SimpleNamespace:
    """Run a module of this Python from the clone; with the seconds it took."""
    started, command = time.perf_counter(), [sys.executable, "-m", *map(str, arguments)]
    environment = os.environ | {"PNEUMO_QUIET": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, **options)
    return SimpleNamespace(
        code=ended.returncode, out=ended.stdout, err=ended.stderr, seconds=time.perf_counter() - started
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_dir) -> SimpleNamespace:
    """`pneumo report --preset tiny`: all notebooks in order, by papermill, in one run folder."""
    root = tmp_path_factory.mktemp("report")
    command = ["pneumo_lib", "report", "--preset", "tiny", "--out", root / "page"]
    command += ["-p", f"run_dir={root / 'run'}", "-p", f"cache_dir={cache_dir}"]
    first = called(*command)
    assert first.code == 0, first.err[-3000:]
    return SimpleNamespace(command=command, page=root / "page", run=runs.load_run(root / "run"), first=first)


def executed(finished: SimpleNamespace, path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(finished.run.path / "notebooks" / path.name, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def numbers(value: object, *path: str) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """All numbers of nested metrics with the names that lead to them; None stands for NaN."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, *path, str(name))
    elif not isinstance(value, str | bool):
        yield path, value


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs_from_top_to_bottom(finished, path):
    cells = executed(finished, path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    spoken = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not re.search(r"(ipykernel_\d+|pneumo_lib)/\S+: \w*Warning", spoken), spoken[:2000]


@pytest.mark.slow
@every_notebook
def test_every_figure_has_its_text_and_its_file(finished, path):
    outputs = [output for cell in executed(finished, path) for output in cell.outputs if "data" in output]
    figures = [output for output in outputs if any(kind.startswith("image/") for kind in output.data)]
    source = "\n".join(cell.source for cell in code(path))
    named = re.findall(r'name="(\w+)",\s*folder=run\.(\w+)\b', source)
    assert len(named) == source.count(".show(") >= 4
    assert len(figures) >= len(named) - 1, "a gallery of errors may have nothing to show"
    for output in figures:
        assert len(output.metadata["image/png"]["alt"]) > 20 and set(output.data) >= {"image/png", "text/plain"}
        assert "nan" not in output.metadata["image/png"]["alt"].lower().split()
    for name, folder in named:
        file = getattr(finished.run, folder) / f"{name}.png"
        assert file.stat().st_size > 2000 or (name == "06_errors" and not file.exists())


@pytest.mark.slow
def test_figures_with_films_are_kept_apart(finished):
    assert not {path.name for path in finished.run.figures.iterdir()} & {
        path.name for path in finished.run.film_figures.iterdir()
    }
    assert {path.stem for path in finished.run.film_figures.iterdir()} >= {"01_sample", "01_noise", "02_worst"}


METRICS = {
    "01": {"films", "splits", "copies", "threshold", "blind_accuracy", "identity"},
    "02": {"psnr", "ssim", "films"},
    "03": {"val_accuracy", "best_train_accuracy", "ece", "decision"},
    "04": {"verdict", "arms", "differences"},
    "05": {"systems", "architectures", "costs", "attention", "imbalance", "controls", "scales"},
    "06": {
        "accuracy",
        "distinct",
        "ece",
        "classes",
        "denoising",
        "decided",
        "decided_accuracy",
        "conformal",
        "coverage",
    },
}
SHARES = {"value", "low", "high", "before", "after", "blind_accuracy", "val_coverage", "threshold"}
UNDEFINED = {"reported", "precision", "f1", "decided_accuracy"}  # phantoms, a class never answered, no film decided


@pytest.mark.slow
@pytest.mark.parametrize("number", METRICS)
def test_metrics_are_there_finite_and_in_range(finished, number):
    metrics = finished.run.read_metrics(number)
    assert METRICS[number] <= set(metrics)
    found = list(numbers(metrics))
    assert len(found) >= 5
    for path, n in found:
        assert n is not None or UNDEFINED & set(path), f"{path} is NaN"
        if n is not None and path[-1] in SHARES and path[0] != "differences" and "gain" not in path:
            assert 0 <= n <= 1, f"{path} is {n}"
        if path[-1] in ("n", "films", "support"):
            assert n >= 0 and n == int(n)


@pytest.mark.slow
def test_metrics_agree_with_what_the_run_holds(finished):
    run, tiny = finished.run, config.make("tiny")
    assert run.config == tiny
    denoised = run.read_metrics("02")["psnr"]
    assert set(denoised) == {"do nothing", "Gaussian filter", "non-local means", *pipeline.DENOISERS}
    assert all(3 < psnr < 60 for psnr in denoised.values())
    decision = run.load_model("classifier", pipeline.classifier_name(tiny.denoiser)).card["decision"]
    assert run.read_metrics("03")["decision"] == decision
    arms = run.read_metrics("04")["arms"]
    assert {row["arm"] for row in arms} == {"clean", "unprepared", "denoised", "noisy"}
    assert all(0 <= row["value"] <= 1 and row["n"] == len(tiny.ablation.seeds) for row in arms)
    six = run.read_metrics("06")
    assert len(six["accuracy"]) == 6 and all(row["reported"] is None for row in six["accuracy"]), "phantoms"
    for row in six["accuracy"]:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["n"] > 0
    assert set(six["classes"]) >= set(CLASSES)
    five = run.read_metrics("05")
    assert {row["system"] for row in five["systems"]} >= {"cnn2", "cnn3", "cnn4", "cnn5", "resnet34", "aernet"}
    assert {row["condition"] for row in five["architectures"]} == set(tiny.comparison.conditions)
    assert {row["variant"] for row in five["attention"]} == set(comparison.ATTENTION)
    assert all(row["accuracy"]["n"] == len(tiny.comparison.seeds) for row in five["attention"])
    assert [row["knob"] for row in five["imbalance"]] == list(comparison.IMBALANCE)
    assert [row["control"] for row in five["controls"]] == [*controls.VIEWS, "shuffled labels"], "phantoms: one source"
    assert {row["method"] for row in six["denoising"]} == {"do nothing", *pipeline.DENOISERS}
    films = {row["protocol"]: row["n"] for row in six["accuracy"]}
    assert [(row["protocol"], row["share"]) for row in six["coverage"]] == [*product(films, answers.SHARES)]
    assert all(row["accuracy"]["n"] >= row["share"] * films[row["protocol"]] for row in six["coverage"])


@pytest.mark.slow
@every_notebook
def test_every_computed_sentence_is_told_in_chinese_with_the_same_numbers(finished, path):
    english, chinese = (nbformat.read(finished.run.path / "notebooks" / path.name, as_version=4) for _ in range(2))
    translate(chinese, path, Language.zh)
    for said, told in zip(english.cells, chinese.cells, strict=True):
        for one, other in zip(said.get("outputs", []), told.get("outputs", []), strict=True):
            if "text/markdown" in one.get("data", {}) and said.id != TOLD_BY_THE_CARD:
                sentence, translated = one.data["text/markdown"], other.data["text/markdown"]
                assert other.metadata.get("language") == "zh", f"cell {said.id}: {sentence}"
                assert numbers_in(sentence) == numbers_in(translated), f"cell {said.id}: {translated}"


@pytest.mark.slow
def test_the_page_is_whole(finished):
    page = BeautifulSoup((finished.page / "report.html").read_text("utf-8"), "html.parser")
    images = page.find_all("img")
    assert len(images) >= 25 and all(image["alt"].strip() for image in images)
    assert all(image["src"].startswith("data:") for image in images), "nothing is loaded from elsewhere"
    text = page.get_text()
    assert "tiny" in text and "chest phantoms" in text and "not a medical device" in text
    for path in NOTEBOOKS:
        assert prose(path)[0].splitlines()[0].removeprefix("# ") in text
    manifest = json.loads((finished.page / "manifest.json").read_text())
    assert [one["status"] for one in manifest["notebooks"]] == ["done"] * len(NOTEBOOKS)


@pytest.mark.slow
def test_a_second_report_runs_nothing(finished):
    made = {path: path.stat().st_mtime_ns for path in finished.run.path.rglob("*") if path.is_file()}
    second = called(*finished.command)
    assert second.code == 0, second.err
    manifest = json.loads((finished.page / "manifest.json").read_text())
    assert [one["status"] for one in manifest["notebooks"]] == ["reused"] * len(NOTEBOOKS)
    assert manifest["seconds"] < 15 and second.seconds < finished.first.seconds / 2
    assert {path: path.stat().st_mtime_ns for path in finished.run.path.rglob("*") if path.is_file()} == made


@pytest.mark.slow
def test_papermill_runs_one_notebook_from_the_clone(tmp_path, cache_dir):
    out = tmp_path / "out.ipynb"
    command = ["papermill", "notebooks/02_denoiser_training.ipynb", out, "-p", "preset", "tiny", "-p", "sigma", "0.3"]
    ended = called(*command, "-p", "run_dir", tmp_path / "run", "-p", "cache_dir", cache_dir)
    assert ended.code == 0, ended.err[-3000:]
    run = runs.load_run(tmp_path / "run")
    assert (run.config.preset, run.config.sigma) == ("tiny", 0.3)
    assert run.load_model("denoiser", "unet_denoiser").card["noise"]["strength"] == 0.3
    assert run.read_metrics("02")["films"] == run.config.compare_films
    assert [cell.execution_count for cell in code(out)] == list(range(1, len(code(out)) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alone", "missing"), [("03_classifier_training", "02_denoiser_training"), ("06_evaluation", "03_classifier")]
)
def test_a_notebook_without_its_input_names_the_one_to_run_first(tmp_path, cache_dir, alone, missing):
    command = ["papermill", f"notebooks/{alone}.ipynb", tmp_path / "out.ipynb", "-p", "preset", "tiny"]
    ended = called(*command, "-p", "run_dir", tmp_path / "run", "-p", "cache_dir", cache_dir)
    assert ended.code != 0
    assert re.search(rf"DataError: .* is missing\. It is made by notebook {missing}\w*: run that one first", ended.err)
