"""`pneumo`: the project's verbs on the command line.

Exit status: 0 done, 2 wrong usage, 3 data, 4 training, 5 report, 6 service; one plain message on standard error.
"""

import contextlib
import csv
import datetime
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import pandas as pd
import typer

from pneumo_lib import (
    comparison,
    data,
    data_card,
    diagnosis,
    model_card,
    pipeline,
    processes,
    report,
    report_html,
    runs,
    runtime,
    systems,
)
from pneumo_lib import config as configs
from pneumo_lib import publish as publishing
from pneumo_lib.cli_data import CACHE, data_app
from pneumo_lib.cli_publish import make_cards, publish_model
from pneumo_lib.cli_serve import serve, told_default
from pneumo_lib.cli_train import DataOption, Preset, PresetOption, SetOption, ablate, evaluate, given, train
from pneumo_lib.decision import Diagnosis
from pneumo_lib.errors import PneumoError, TrainingError, UsageError
from pneumo_lib.report_language import Language

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Denoise, classify and honestly evaluate chest X-rays. Research and teaching only, not a medical device.",
    epilog="Exit status: 0 done, 2 wrong usage, 3 data, 4 training, 5 report, 6 service.",
)
app.add_typer(data_app, name="data")
for verb in (train, ablate, evaluate, serve):
    app.command()(verb)
app.command("publish")(publish_model)
app.command("cards")(make_cards)

WORTH_COMPILING = 300  # films; to compile takes as long as they do otherwise
NO_FILM = "refused: this does not look like a film of the kind that the model knows"
STOPPED_BY_HAND = 130
STOPPED = "stopped. The same command goes on from the last stored state."
LOST = "the run was stopped or has lost one of its processes. The same command goes on from the last stored state."


@app.command("report")
def make_report(
    preset: PresetOption = Preset.demo,
    data_dir: DataOption = "",
    parameters: SetOption = None,
    out: Annotated[str, typer.Option(help="Folder of report.html; by default report/NAME.")] = "",
    publish: Annotated[bool, typer.Option(help="Copy figures without patients, and the numbers, to figures/.")] = False,
    force: Annotated[bool, typer.Option(help="Run every notebook, also the unchanged ones.")] = False,
    lang: Annotated[Language, typer.Option(help="Language of the prose; zh writes report.zh.html.")] = Language.en,
) -> None:
    """Run the notebooks in order and write one HTML report.

    Notebooks whose code, parameters and data are unchanged are not run again, for another language neither. If one
    fails, the report is still written and shows it; the exit status is then 5.
    """
    notebooks = sorted((runtime.project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise UsageError(f"There are no notebooks in {runtime.project_root()}; run this from a clone of the project.")
    values = given(preset, data_dir, parameters)
    report.check_parameters(notebooks, values)
    config = configs.make(**{k: v for k, v in values.items() if k not in ("run_dir", "cache_dir")})
    folder = runtime.locate(values.pop("run_dir", "") or Path("runs", runs.run_name(config)))
    images = pipeline.open_data(config, values.get("cache_dir", CACHE))
    target = runtime.locate(out or Path("report", folder.name))
    made = report.run_report(
        notebooks,
        run_dir=folder,
        out_dir=target,
        header=_header(config, images, lang),
        parameters=values | {"run_dir": str(folder)},
        data_identity=",".join([images.identity, *comparison.missing(config)]),
        force=force,
    )
    if publish:
        figures = runtime.project_root() / "figures"
        publishing.publish(runs.load_run(folder), figures)
        data_card.write(figures)
        model_card.write(figures)
    typer.echo(f"report: {made.html}")


def _header(config: configs.Config, images: data.ImageSet, lang: Language) -> report_html.ReportHeader:
    say, splits = lang.say, images.table["split"].value_counts(sort=False)
    name = Path(config.data_dir).name if config.data_dir else say("chest phantoms")
    counts = say(", ").join(say("{n:,} {split}", n=n, split=split) for split, n in splits.items())
    repeats = {say("ablation repeat {n}", n=i): seed for i, seed in enumerate(config.ablation.seeds, start=1)}
    return report_html.ReportHeader(
        title=say("Pneumonia recognition from noisy chest X-rays"),
        data_set=say("{name}: {n:,} films ({counts})", name=name, n=len(images), counts=counts),
        preset=config.preset,
        date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        commit=runtime.commit(),
        device=runtime.device_name(),
        versions=runtime.versions(),
        seeds={say("run"): config.seed} | repeats,
        phantom=not config.data_dir,
        language=lang,
    )


@app.command()
def diagnose(
    path: Annotated[str, typer.Argument(help="A JPEG, PNG or DICOM file, or a folder of them.")],
    run: Annotated[str, typer.Option("--run", help="Run folder of the model; by default the published one.")] = "",
    model: Annotated[str, typer.Option(help="Model of that run; by default the one it settled on.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    csv_out: Annotated[str, typer.Option("--csv", metavar="OUT", help="Write a CSV file instead of printing.")] = "",
) -> None:
    """Diagnose films: the same file gives the same answer, always. Ends with 3 if a file could not be read.

    Several processes share the files; the first one tells or writes all answers.
    """
    films = diagnosis.list_films(path)
    processes.agree("lists of files", "\0".join(map(str, films)))
    diagnoser = diagnosis.Diagnoser.load(run or told_default(), model)
    if len(films) >= WORTH_COMPILING * processes.count():
        diagnoser.compile()
    answers = processes.stream(
        diagnoser.diagnose_all, films, progress=functools.partial(runtime.progress, desc="films")
    )
    if not processes.first():
        failed = sum(answer.status == "error" for answer in answers)
    else:
        failed = _to_csv(answers, Path(csv_out), diagnoser.classes) if csv_out else _to_terminal(answers, as_json)
    if failed:
        if processes.first():
            typer.echo(f"{failed} of {len(films)} files could not be read; see their messages.", err=True)
        raise typer.Exit(3)


def _to_terminal(answers: Iterable[Diagnosis], as_json: bool) -> int:
    failed = 0
    for answer in answers:
        failed += answer.status == "error"
        said = f"{answer.label} ({answer.status}, {answer.confidence:.1%})" if answer.label else NO_FILM
        line = answer.message or f"{answer.file}: {said}"
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False) if as_json else line)
    if not as_json:
        typer.echo(diagnosis.DISCLAIMER, err=True)
    return failed


def _to_csv(answers: Iterable[Diagnosis], path: Path, classes: tuple[str, ...]) -> int:
    failed = 0
    with runs.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = None
        for answer in answers:
            failed += answer.status == "error"
            row = answer.to_row(classes)
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
            writer.writerow(row)
    return failed


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def benchmark(context: typer.Context) -> None:
    """Time training and inference beside the usual ways to do both: benchmarks/speed.py, which gets the options."""
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "speed.py"
    if not script.exists():
        raise UsageError(f"{script} is missing; the benchmarks belong to a clone of the project, not to the package.")
    raise typer.Exit(subprocess.run([sys.executable, script, *context.args]).returncode)


@app.command("systems")
def list_systems() -> None:
    """Print the table of systems: networks, parameters, recipe, data, and what their sources reported."""
    with pd.option_context("display.max_colwidth", None):
        typer.echo(systems.table().T.to_string())


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, the notebooks and their kernel, Graphviz, optional codecs."""
    typer.echo(runtime.describe().to_string(header=False))
    for name, ok, advice in _checks():
        typer.echo(f"{'ok     ' if ok else 'missing'} {name}{'' if ok else ': ' + advice}")


def _checks() -> list[tuple[str, bool, str]]:
    root = runtime.project_root()
    return [
        ("notebook kernel (ipykernel)", importlib.util.find_spec("ipykernel") is not None, "pip install ipykernel"),
        ("notebooks/", (root / "notebooks").is_dir(), "run from a clone of the project"),
        ("Graphviz (dot)", bool(shutil.which("dot")), "install graphviz; without it graphs are shown as DOT text"),
        ("bfloat16 in hardware", runtime.fast_bf16(), "training works in float32, about three times slower"),
        ("JPEG 2000 DICOM", importlib.util.find_spec("openjpeg") is not None, "pip install -e '.[dicom-codecs]'"),
    ]


def main() -> None:
    """Run a verb; errors of this library end with their own exit status and one message.

    Of several processes only the first one prints what was found, and only one says why the run ends.
    """
    try:
        _run()
    except (KeyboardInterrupt, SystemExit) as ending:  # also a launcher's signal while an error is being told
        if getattr(ending, "code", STOPPED_BY_HAND) == STOPPED_BY_HAND:
            _end(STOPPED if processes.count() == 1 else LOST, STOPPED_BY_HAND)
        processes.leave()
        raise


def _run() -> None:
    try:
        processes.join()
        with contextlib.redirect_stdout(sys.stdout if processes.first() else open(os.devnull, "w")):
            app()
    except PneumoError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        _end(f"{error}. Check that the disk has room and the place can be written.", 3)
    except RuntimeError as error:
        if not processes.lost_one(error):
            raise
        _end(LOST, TrainingError.exit_code)


def _end(message: str, code: int) -> NoReturn:
    """Say why, once for all processes, and end with that status."""
    if processes.speaks_first():
        typer.echo(f"pneumo: {message}", err=True)
    if processes.count() > 1:
        sys.stderr.flush()
        os._exit(code)  # to part in order would mean to wait for the others
    sys.exit(code)
