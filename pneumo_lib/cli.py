"""`pneumo`: the project's verbs on the command line.

Exit status: 0 done, 2 wrong usage, 3 data, 4 training, 5 report; one plain message on standard error.
"""

import csv
import datetime
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from pneumo_lib import (
    comparison,
    data,
    diagnosis,
    evaluation,
    pipeline,
    report,
    report_html,
    runs,
    runtime,
    systems,
    trials,
)
from pneumo_lib import config as configs
from pneumo_lib import publish as publishing
from pneumo_lib.cli_data import CACHE, CacheOption, data_app
from pneumo_lib.errors import PneumoError, UsageError
from pneumo_lib.models import WEIGHTS
from pneumo_lib.recipe import one_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Denoise, classify and honestly evaluate chest X-rays. Research and teaching only, not a medical device.",
    epilog="Exit status: 0 done, 2 wrong usage, 3 data, 4 training, 5 report.",
)
app.add_typer(data_app, name="data")

Preset = StrEnum("Preset", {name: name for name in configs.PRESETS})
PresetOption = Annotated[
    Preset, typer.Option(help="demo: phantoms, minutes. quick: a real folder, an hour. full: hours. tiny: for tests.")
]
DataOption = Annotated[str, typer.Option("--data", help="Image folder ROOT/SPLIT/CLASS/image; demo draws its own.")]
RunOption = Annotated[str, typer.Option("--run", help="Run folder; by default runs/NAME, named after the preset.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("-p", "--set", metavar="NAME=VALUE", help="Replace one parameter, e.g. -p sigma=0.3."),
]


@app.command("report")
def make_report(
    preset: PresetOption = Preset.demo,
    data_dir: DataOption = "",
    parameters: SetOption = None,
    out: Annotated[str, typer.Option(help="Folder of report.html; by default report/NAME.")] = "",
    publish: Annotated[bool, typer.Option(help="Copy figures without patients, and the numbers, to figures/.")] = False,
    force: Annotated[bool, typer.Option(help="Run every notebook, also the unchanged ones.")] = False,
) -> None:
    """Run the notebooks in order and write one HTML report.

    Notebooks whose code, parameters and data are unchanged are not run again. If one fails, the report is still
    written and shows it; the exit status is then 5.
    """
    notebooks = sorted((runtime.project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise UsageError(f"There are no notebooks in {runtime.project_root()}; run this from a clone of the project.")
    given = {"preset": str(preset), "data_dir": data_dir and str(runtime.locate(data_dir)), **_parsed(parameters)}
    report.check_parameters(notebooks, given)
    config = configs.make(**{k: v for k, v in given.items() if k not in ("run_dir", "cache_dir")})
    folder = runtime.locate(given.pop("run_dir", "") or Path("runs", runs.run_name(config)))
    images = pipeline.open_data(config, given.get("cache_dir", CACHE))
    target = runtime.locate(out or Path("report", folder.name))
    report.run_report(
        notebooks,
        run_dir=folder,
        out_dir=target,
        header=_header(config, images),
        parameters=given | {"run_dir": str(folder)},
        data_identity=",".join([images.identity, *comparison.missing(config)]),
        force=force,
    )
    if publish:
        publishing.publish(runs.load_run(folder), runtime.project_root() / "figures")
    typer.echo(f"report: {target / 'report.html'}")


def _header(config: configs.Config, images: data.ImageSet) -> report_html.ReportHeader:
    name = Path(config.data_dir).name if config.data_dir else "chest phantoms"
    counts = ", ".join(f"{n:,} {split}" for split, n in images.table["split"].value_counts(sort=False).items())
    return report_html.ReportHeader(
        title="Pneumonia recognition from noisy chest X-rays",
        data_set=f"{name}: {len(images):,} films ({counts})",
        preset=config.preset,
        date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        commit=runtime.commit(),
        device=runtime.device_name(),
        versions=runtime.versions(),
        seeds={"run:": config.seed, **{f"ablation repeat {i + 1}:": s for i, s in enumerate(config.ablation.seeds)}},
        phantom=not config.data_dir,
    )


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A system (`pneumo systems`), autoencoder, unet_denoiser or classifier.")],
    preset: PresetOption = Preset.demo,
    data_dir: DataOption = "",
    run: RunOption = "",
    cache: CacheOption = CACHE,
    weights: Annotated[str, typer.Option(help="Start from scratch (none) or from torchvision's imagenet.")] = "none",
    folds: Annotated[int, typer.Option(min=0, help="Cross-validate a system with so many folds instead.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Repeat the folds under so many seeds.")] = 1,
    parameters: SetOption = None,
) -> None:
    """Train one network, or take up a training that was stopped; test films stay closed.

    A classifier needs its denoiser first. Works in several processes too, under torchrun or accelerate launch.
    """
    one_of("the network to train", name, (*systems.SYSTEMS, *pipeline.DENOISERS, "classifier"))
    one_of("--weights", weights, WEIGHTS)
    given = {"preset": str(preset), "data_dir": data_dir and str(runtime.locate(data_dir)), **_parsed(parameters)}
    config = configs.make(**given)
    if name in systems.SYSTEMS and not systems.SYSTEMS[name].denoiser:
        path = runtime.locate(run or Path("runs", runs.run_name(config)))
        options = {"cache_dir": cache, "weights": weights, "folds": folds, "repeats": repeats}
        planned = comparison.own_trials(systems.SYSTEMS[name], runs.Run(path, config), **options)
        typer.echo("\n".join(f"- {note}" for note in planned[0].images.notes), err=True)
        for trial in planned:
            saved = trials.learn(trial)
            typer.echo(pd.read_csv(trial.folder / "history.csv").to_string(index=False))
            typer.echo(f"{name}: {trial.folder}, best epoch {saved.card['best_epoch']}")
        return
    if weights != "none" or folds:
        raise UsageError(f"--weights and --folds are for systems of one network; {name} is none.")
    opened, images = runs.open_run(run, config), pipeline.open_data(config, cache)
    if name in systems.SYSTEMS:
        pipeline.train_denoiser(opened, images, systems.SYSTEMS[name].denoiser)
    if name in pipeline.DENOISERS:
        fitted = pipeline.train_denoiser(opened, images, name)
    else:
        denoiser = systems.SYSTEMS[name].denoiser if name in systems.SYSTEMS else config.denoiser
        fitted = pipeline.train_classifier(opened, images, denoiser)
    typer.echo(fitted.history.to_string(index=False))
    typer.echo(f"run folder: {opened.path}")


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    cache: CacheOption = CACHE,
    publish: Annotated[
        bool, typer.Option(help="Copy its systems' answers to figures/, and make the table there.")
    ] = False,
) -> None:
    """Open the test films: accuracies with 95 % intervals of a run and of every system trained in it."""
    folder = runtime.locate(run)
    done = comparison.evaluate(folder, cache)
    if done:
        table = publishing.systems_table(done)
        runs.write_text(folder / "systems.md", table)
        if publish:
            publishing.publish_systems(folder, done, runtime.project_root() / "figures")
        typer.echo(table)
    if done and not (folder / "config.json").exists():
        return
    opened = runs.load_run(run)
    images = pipeline.open_data(opened.config, cache)
    protocols = pipeline.protocols(opened.config, images)
    tables = [pipeline.predict(opened, images, opened.config.denoiser, protocol) for protocol in protocols]
    typer.echo(evaluation.accuracies(pd.concat(tables)).to_string(index=False))


@app.command()
def diagnose(
    path: Annotated[str, typer.Argument(help="A JPEG, PNG or DICOM file, or a folder of them.")],
    run: Annotated[str, typer.Option("--run", help="Run folder of the model.")] = "runs/demo",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    csv_out: Annotated[str, typer.Option("--csv", metavar="OUT", help="Write a CSV file instead of printing.")] = "",
) -> None:
    """Diagnose films: the same file gives the same answer, always. Ends with 3 if a file could not be read."""
    films = diagnosis.list_films(path)
    diagnoser = diagnosis.Diagnoser.load(run)
    answers = diagnoser.diagnose_all(runtime.progress(films, desc="films"))
    failed = _to_csv(answers, Path(csv_out), diagnoser.classes) if csv_out else _to_terminal(answers, as_json)
    if failed:
        typer.echo(f"{failed} of {len(films)} files could not be read; see their messages.", err=True)
        raise typer.Exit(3)


def _to_terminal(answers: Iterable[diagnosis.Diagnosis], as_json: bool) -> int:
    failed = 0
    for answer in answers:
        failed += answer.status == "error"
        line = answer.message or f"{answer.file}: {answer.label} ({answer.status}, {answer.confidence:.1%})"
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False) if as_json else line)
    if not as_json:
        typer.echo(diagnosis.DISCLAIMER, err=True)
    return failed


def _to_csv(answers: Iterable[diagnosis.Diagnosis], path: Path, classes: tuple[str, ...]) -> int:
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


def _parsed(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE texts as Python values: JSON where it parses, text otherwise."""
    values = {}
    for pair in pairs or []:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"{pair!r} is no parameter; write NAME=VALUE, for example sigma=0.3.")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def main() -> None:
    """Run a verb; errors of this library end with their own exit status and one message."""
    try:
        app()
    except PneumoError as error:
        typer.echo(f"pneumo: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        typer.echo(f"pneumo: {error}. Check that the disk has room and the place can be written.", err=True)
        sys.exit(3)
    except KeyboardInterrupt:
        typer.echo("pneumo: stopped. The same command goes on from the last stored state.", err=True)
        sys.exit(130)
