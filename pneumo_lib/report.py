"""The report run: check the parameters, execute the notebooks in sequence, merge them into one HTML file.

papermill executes; what it leaves open is done here: it only warns of a misspelt parameter, takes whichever kernel is
called ``python3``, cannot skip what is unchanged, and stops at the first failure with nothing to show.
"""

import ast
import difflib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert.filters import strip_ansi
from papermill.exceptions import PapermillExecutionError
from tqdm.auto import tqdm

from pneumo_lib import kernels
from pneumo_lib.errors import ReportError, UsageError
from pneumo_lib.report_html import NotebookRun, ReportHeader, render
from pneumo_lib.runs import sha256, write_text

_TYPES = {"str": str, "int": int, "float": (float, int), "bool": bool, "list": (list, tuple), "dict": dict}
_TYPES |= {"tuple": (list, tuple), "None": type(None)}
# A change of the page's looks or of the command line must not cost another training.
_NO_EFFECT = {"report.py", "report_html.py", "report_chapter.py", "report_language.py", "kernels.py"}
_NO_EFFECT |= {"cli.py", "__main__.py"}


@dataclass(frozen=True)
class ReportResult:
    """A finished report: the page, its manifest (JSON) and the notebooks behind it, in order."""

    html: Path
    manifest: Path
    runs: tuple[NotebookRun, ...]


def run_report(
    notebooks: Sequence[Path],
    *,
    run_dir: Path,
    out_dir: Path,
    header: ReportHeader,
    parameters: Mapping[str, object] | None = None,
    data_identity: str = "",
    force: bool = False,
    progress: bool = True,
) -> ReportResult:
    """Execute notebooks in sequence and merge them into ``out_dir/report.html`` (Chinese: ``report.zh.html``).

    Each runs in its own folder, so relative paths in ``parameters`` start there; notebooks that declare ``run_dir``
    get the run folder's path from there unless ``parameters`` holds one. A notebook is skipped while its source, its
    parameters, the library, the data set and everything before it are unchanged and all files it made still exist.

    Args:
        notebooks: sources in the order of execution.
        run_dir: the run folder; executed copies go to its ``notebooks/``.
        out_dir: where ``report.html`` and ``manifest.json`` go.
        header: content of the card at the top of the page, and the page's language.
        parameters: name to value; each notebook gets those that it declares.
        data_identity: text that changes when the data set does.
        force: execute also what is unchanged.
        progress: show one bar over all cells, with the time left, on stderr.

    Returns:
        Paths of the report and its manifest, and what became of each notebook.

    Raises:
        UsageError: a parameter that no notebook declares, or of another type than declared; before any cell runs.
        ReportError: a notebook failed (the report is built all the same), or the page cannot be built.
    """
    started = time.perf_counter()
    notebooks = [Path(notebook).resolve() for notebook in notebooks]
    folder = Path(run_dir).resolve() / "notebooks"
    assigned = check_parameters(notebooks, parameters or {}, run_dir=Path(run_dir))
    plan = _plan(assigned, folder, data_identity, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    runs = _run_all(plan, progress=progress)
    names = (f"report{header.language.suffix}.html", f"manifest{header.language.suffix}.json")
    result = ReportResult(*(Path(out_dir) / name for name in names), tuple(runs))
    write_text(result.html, render(header, runs))
    write_text(result.manifest, _manifest(result, header, data_identity, seconds=time.perf_counter() - started))
    for run in runs:
        if run.status == "failed":
            raise ReportError(
                f"Notebook {run.notebook.name} failed: {run.message}\nThe report shows it: {result.html}. "
                "Mend the cause and repeat the command; the notebooks before it are not run again."
            )
    return result


def check_parameters(
    notebooks: Sequence[Path], parameters: Mapping[str, object], *, run_dir: Path | None = None
) -> dict[Path, dict[str, object]]:
    """Hold parameters against the ``parameters`` cells of the notebooks.

    Args:
        notebooks: sources whose tagged cells hold annotated literals.
        parameters: name to value.
        run_dir: given to the notebooks that declare ``run_dir``, as a path relative to each, unless in ``parameters``.

    Returns:
        For each notebook the parameters that it declares.

    Raises:
        UsageError: a missing notebook, a name that no notebook declares (the nearest is suggested), or a wrong type.
    """
    if missing := [str(notebook) for notebook in notebooks if not notebook.is_file()]:
        raise UsageError(f"No such notebook: {', '.join(missing)}. Run from a clone, or give the notebooks' folder.")
    declared = {path: _declared(path) for path in notebooks}
    known = sorted({name for types in declared.values() for name in types})
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known) or 'none'}."
            raise UsageError(f"No notebook has a parameter {name!r}. {hint}")
    assigned = {}
    for path, types in declared.items():
        given = dict(parameters)
        if run_dir is not None:
            given.setdefault("run_dir", Path(os.path.relpath(run_dir.resolve(), path.parent.resolve())).as_posix())
        assigned[path] = {name: given[name] for name in types if name in given}
        for name, value in assigned[path].items():
            _check_type(name, value, types[name], path.name)
    return assigned


def _declared(notebook: Path) -> dict[str, str]:
    """Name to type; papermill's own inspection knows no ``float | None`` and needs a kernel in the metadata."""
    declared = {}
    for statement in ast.parse(_parameter_source(notebook)).body:
        if isinstance(statement, ast.AnnAssign):
            declared[ast.unparse(statement.target)] = ast.unparse(statement.annotation)
        elif isinstance(statement, ast.Assign):
            default = statement.value.value if isinstance(statement.value, ast.Constant) else ...
            declared |= {ast.unparse(target): type(default).__name__ for target in statement.targets}
    return declared


def _parameter_source(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return next((cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])), "")


def _check_type(name: str, value: object, declared: str, notebook: str) -> None:
    parts = [part.split("[")[0].strip() for part in declared.split("|")]
    if not all(part in _TYPES for part in parts):  # nothing that a literal could be held against
        return
    types = tuple(_TYPES[part] for part in parts)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UsageError(f"Parameter {name!r} is {value!r} ({type(value).__name__}); {notebook} expects {declared}.")


def _plan(
    assigned: Mapping[Path, Mapping[str, object]], folder: Path, data_identity: str, *, force: bool
) -> list[NotebookRun]:
    """Give each notebook its fingerprint, and the status ``reused`` or, where it has yet to run, ``not run``."""
    chain, runs = _hash([_library_hash(), data_identity]), []
    for path, parameters in assigned.items():
        chain = _hash([chain, path.name, _source(path), parameters])
        run = NotebookRun(path, folder / path.name, "not run", parameters, chain)
        runs.append(run if force else _reuse(run))
    return runs


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _library_hash() -> str:
    root = Path(__file__).parent
    files = [path for path in sorted(root.rglob("*.py")) if path.name not in _NO_EFFECT]
    return _hash([[path.relative_to(root).as_posix(), path.read_text("utf-8")] for path in files])


def _source(path: Path) -> list[list[object]]:
    cells = nbformat.read(path, as_version=4).cells
    return [[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in cells]


def _reuse(run: NotebookRun) -> NotebookRun:
    try:
        record = json.loads(run.executed.with_suffix(".json").read_text("utf-8"))
        intact = record["sha256"] == sha256(run.executed)
        made = all((run.executed.parents[1] / name).exists() for name in record["files"])
    except (OSError, ValueError, KeyError, TypeError):  # never run, interrupted, or spoilt: it runs again
        return run
    if record.get("fingerprint") != run.fingerprint or not (intact and made):
        return run
    return replace(run, status="reused", seconds=record.get("seconds"))


def _files(run: NotebookRun) -> dict[str, int]:
    root = run.executed.parents[1]
    found = (path for path in root.rglob("*") if path.is_file() and run.executed.parent not in path.parents)
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in found}


def _run_all(plan: Sequence[NotebookRun], *, progress: bool) -> list[NotebookRun]:
    runs, failed, kernel = [], False, kernels.prepared()
    total = sum(_cells(run) for run in plan if run.status != "reused")
    with tqdm(total=total, unit="cell", disable=not progress, file=sys.stderr, dynamic_ncols=True) as bar:
        for run in plan:
            if failed:
                run = replace(run, status="not run", seconds=None)
            elif run.status != "reused":
                bar.set_description(run.notebook.stem)
                run = _execute(run, bar, kernel)
                failed = run.status == "failed"
            runs.append(run)
    return runs


def _cells(run: NotebookRun) -> int:
    cells = nbformat.read(run.notebook, as_version=4).cells
    return sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells) + bool(run.parameters)


def _execute(run: NotebookRun, bar: tqdm, kernel: type[kernels.FreshKernel]) -> NotebookRun:
    record = run.executed.with_suffix(".json")
    record.unlink(missing_ok=True)
    before, started = _files(run), time.perf_counter()
    try:
        papermill.execute_notebook(
            str(run.notebook),
            str(run.executed),
            dict(run.parameters),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=str(run.notebook.parent),
            start_timeout=180,
            kernel_manager_class=kernel,
            on_cell_executed=lambda **_: bar.update(),
        )
    except (PapermillExecutionError, RuntimeError) as error:  # a dead or silent kernel is a RuntimeError
        return replace(run, status="failed", seconds=time.perf_counter() - started, message=_reason(error))
    seconds = time.perf_counter() - started
    made = sorted(name for name, changed in _files(run).items() if before.get(name) != changed)
    digest = sha256(run.executed)
    write_text(
        record, json.dumps({"fingerprint": run.fingerprint, "sha256": digest, "seconds": seconds, "files": made})
    )
    return replace(run, status="done", seconds=seconds)


def _reason(error: Exception) -> str:
    if isinstance(error, PapermillExecutionError):
        return strip_ansi(f"{error.ename}: {error.evalue}").strip()
    if isinstance(error, DeadKernelError):
        return (
            "Its Python process was ended from outside, most likely because the memory ran out. "
            "Close other programs, or lower batch_size or the image size, and run again."
        )
    return f"Its Python process did not answer: {error}"


def _manifest(result: ReportResult, header: ReportHeader, data_identity: str, *, seconds: float) -> str:
    manifest = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "peak_memory_mb": _peak_memory(),
        "header": asdict(header),
        "data_identity": data_identity,
        "library_sha256": _library_hash(),
        "report_sha256": sha256(result.html),
        "notebooks": [
            asdict(run) | {"notebook": run.notebook.name, "executed": run.executed.name} for run in result.runs
        ],
    }
    return json.dumps(manifest, indent=2, default=str) + "\n"


def _peak_memory() -> float | None:
    """Largest resident size of any process started so far, in MB; None where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    most = max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, kernels.CopiedKernel.peak)
    return round(most * unit / 1e6, 1)
