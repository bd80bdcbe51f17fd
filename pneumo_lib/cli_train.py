"""`pneumo train`, `pneumo ablate` and `pneumo evaluate`: all three work in several processes as in one."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from pneumo_lib import (
    ablation,
    answers,
    chosen,
    comparison,
    evaluation,
    metrics,
    model_card,
    pipeline,
    processes,
    robustness,
    runs,
    runtime,
    systems,
    trials,
)
from pneumo_lib import config as configs
from pneumo_lib import publish as publishing
from pneumo_lib.cli_data import CACHE, CacheOption
from pneumo_lib.data import audit
from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.models import WEIGHTS
from pneumo_lib.recipe import one_of

Preset = StrEnum("Preset", {name: name for name in configs.PRESETS})
PresetOption = Annotated[
    Preset, typer.Option(help="demo: phantoms, minutes. quick: a real folder, 40 min. full: hours. tiny: for tests.")
]
DataOption = Annotated[str, typer.Option("--data", help="Image folder ROOT/SPLIT/CLASS/image; demo draws its own.")]
RunOption = Annotated[str, typer.Option("--run", help="Run folder; by default runs/NAME, named after the preset.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("-p", "--set", metavar="NAME=VALUE", help="Replace one parameter, e.g. -p sigma=0.3."),
]


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

    A classifier needs its denoiser first. Several processes share every batch.
    """
    one_of("the network to train", name, (*systems.SYSTEMS, *pipeline.DENOISERS, "classifier"))
    one_of("--weights", weights, WEIGHTS)
    config = configs.make(**given(preset, data_dir, parameters))
    if name in systems.SYSTEMS and not systems.SYSTEMS[name].denoiser:
        path = runtime.locate(run or Path("runs", runs.run_name(config)))
        options = {"cache_dir": cache, "weights": weights, "folds": folds, "repeats": repeats}
        planned = comparison.own_trials(systems.SYSTEMS[name], runs.Run(path, config), **options)
        if processes.first():
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


def ablate(
    preset: PresetOption = Preset.demo,
    data_dir: DataOption = "",
    run: RunOption = "",
    cache: CacheOption = CACHE,
    parameters: SetOption = None,
) -> None:
    """Train and score the ablation's grid of noise levels, arms and seeds, on validation films.

    Notebook 04 finds the cells in the run folder and draws them. Several processes take one cell at a time each.
    """
    config = configs.make(**given(preset, data_dir, parameters))
    opened, images = runs.open_run(run, config), pipeline.open_data(config, cache)
    films = [pipeline.films(images, split) for split in ("train", "val")]
    table = ablation.summarise(ablation.run_grid(*films, config, opened.path / "ablation"))
    typer.echo(table[table["epoch"] == table["epoch"].max()].to_string(index=False))
    typer.echo(f"run folder: {opened.path}")


def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder.")] = "",
    predictions: Annotated[
        str, typer.Option(metavar="FILE", help="Recompute from stored predictions instead: no films, no networks.")
    ] = "",
    pairs: Annotated[
        str, typer.Option(metavar="FILE", help="audit_pairs.csv, to leave out films that stand in train or val too.")
    ] = "",
    card: Annotated[
        str,
        typer.Option(metavar="FILE", help="model.json of the system, or metrics.json: what validation films fixed."),
    ] = "",
    temperature: Annotated[float, typer.Option(help="Of the stored probabilities, for calibration.")] = 1.0,
    threshold: Annotated[float, typer.Option(help="Confidence below which films stay undecided.")] = 0.0,
    cache: CacheOption = CACHE,
    corruptions: Annotated[
        bool, typer.Option(help="Also show its systems their test films under every corruption and level.")
    ] = False,
    publish: Annotated[
        bool, typer.Option(help="Copy its systems' answers to figures/, and make the table there.")
    ] = False,
) -> None:
    """Open the test films: accuracies with 95 % intervals of a run and of every system trained in it.

    Several processes share the films.
    """
    if bool(run) == bool(predictions):
        raise UsageError("give either a run folder or --predictions FILE.")
    if (pairs or card) and not predictions:
        raise UsageError("--pairs and --card go with --predictions FILE.")
    if predictions:
        _recompute(_stored(predictions, pairs), card, temperature, threshold)
        return
    folder = runtime.locate(run)
    done = comparison.evaluate(folder, cache)
    for one in done if corruptions else ():
        _corrupt(one, cache)
    for drawn in robustness.draw(done) if corruptions else ():
        typer.echo(f"figure: {drawn}")
    if done:
        table = publishing.systems_table(done)
        runs.write_text(folder / "systems.md", table)
        if publish:
            processes.by_first(lambda: _publish(folder, done))
        typer.echo(table)
    if done and not (folder / "config.json").exists():
        return
    opened = runs.load_run(run)
    images = pipeline.open_data(opened.config, cache)
    protocols = pipeline.protocols(opened.config, images)
    tables = [pipeline.predict(opened, images, opened.config.denoiser, protocol) for protocol in protocols]
    typer.echo(evaluation.accuracies(pd.concat(tables)).to_string(index=False))


def _publish(folder: Path, done: list[answers.Finished]) -> None:
    figures = runtime.project_root() / "figures"
    before = model_card.published(figures)
    publishing.publish_systems(folder, done, figures)
    for place in (place for place in before if place not in model_card.published(figures)):
        typer.echo(
            f"{place}: its answers are another network's now, so its weights were taken out. `pneumo publish {folder}` "
            "puts those of the new one there.",
            err=True,
        )
    model_card.write(figures)


def _corrupt(one: answers.Finished, cache: str) -> None:
    if not (one.folder / "model.safetensors").exists():
        typer.echo(f"{one.folder}: its weights were not kept, so it cannot be shown other films.")
        return
    if "root" not in one.card:
        typer.echo(
            f"{one.folder}: published without the folder of its films; `pneumo publish RUN --corruptions` has it."
        )
        return
    images = comparison.reopen(one.card, cache)
    table = robustness.corrupted(one.folder, images, runs.load_model(one.folder), progress=runtime.progress)
    typer.echo(f"{one.card['system']} on {one.card['dataset']}, accuracy on test films by corruption and level:")
    typer.echo(robustness.readable(table).to_string(index=False))


def _stored(predictions: str, pairs: str) -> pd.DataFrame:
    table = answers.read_predictions(runtime.locate(predictions))
    if pairs:
        table = pipeline.without(table, pipeline.copies(audit.read_pairs(runtime.locate(pairs))))
    if table.empty:
        raise DataError(f"{predictions} has no film {'without a copy in train or val' if pairs else 'at all'}.")
    return table


def _recompute(table: pd.DataFrame, card: str, temperature: float, threshold: float) -> None:
    if card and (temperature, threshold) != (1.0, 0.0):
        raise UsageError("--card says temperature and threshold itself; give either it or those two.")
    fixed = {"temperature": temperature, "threshold": threshold}
    fixed = chosen.read(runtime.locate(card)) if card else fixed
    own, heat = answers.of_decision(table, fixed) if card else table, fixed["temperature"]
    compared = answers.disagreements(table)
    worth = answers.confidence(own, temperature=heat, threshold=fixed["threshold"])
    surest = answers.at_coverage(own, temperature=heat)
    sets = answers.conformal(own, fixed) if card else pd.DataFrame()
    typer.echo(evaluation.accuracies(table).to_string(index=False))
    for (system, protocol), scores in answers.by_class(table).items():
        typer.echo(f"\n{system}, {protocol}:\n{_shown(scores).to_string()}")
    _tell(f"at temperature {heat:g}, undecided below {fixed['threshold']:g}:", worth, "%.4f")
    _tell("right among the films that it is surest of:", surest, "%.2f")
    _tell("conformal sets: share that holds the truth, classes in a set, sets of one class:", sets, "%.2f")
    _tell("films that only one of two has right (McNemar):", compared, "%.3g")


def _tell(title: str, table: pd.DataFrame, digits: str) -> None:
    if len(table):
        typer.echo(f"\n{title}\n{_shown(table).to_string(index=False, float_format=digits)}")


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda cell: cell.text() if isinstance(cell, metrics.Estimate) else cell)


def given(preset: Preset, data_dir: str, pairs: list[str] | None) -> dict[str, Any]:
    """Preset, absolute data folder, and NAME=VALUE texts as Python values: JSON where it parses, text otherwise."""
    values = {"preset": str(preset), "data_dir": data_dir and str(runtime.locate(data_dir))}
    for pair in pairs or []:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"{pair!r} is no parameter; write NAME=VALUE, for example sigma=0.3.")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values
