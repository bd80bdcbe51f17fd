"""Notebook 05: which networks are trained side by side, and the tables that hold them against each other."""

import functools
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pneumo_lib import answers, controls, models, pipeline, processes, runtime, training, trials, workers
from pneumo_lib.answers import Finished
from pneumo_lib.config import Config
from pneumo_lib.data import CARDS, ImageSet, carve, open_folder, split
from pneumo_lib.data.duplicates import without_duplicates
from pneumo_lib.recipe import Scale
from pneumo_lib.runs import Run, SavedModel, load_model
from pneumo_lib.steps import Corruption, DenoisingStep
from pneumo_lib.system import Reported, System
from pneumo_lib.systems import COVID, SYSTEMS
from pneumo_lib.trials import Fold, Trial

# Report B's ablation, a step at a time.
ATTENTION = {
    "ResNet-50": {"channel": False, "spatial": False},
    "+ channel attention": {"channel": True, "spatial": False},
    "+ spatial attention": {"channel": False, "spatial": True},
    "+ both (CBAM)": {"channel": True, "spatial": True},
    "+ label smoothing (AERNet)": {"channel": True, "spatial": True},
}
ARCHITECTURES = ("alexnet", "vgg16", "googlenet", "resnet50", "densenet121", "aernet")
IMBALANCE = ("none", "weighted", "balanced")


def finish(planned: Iterable[Trial], *, keep: bool = True) -> list[Finished]:
    """Train and test every trial that is not finished yet, as many at a time as there are workers."""
    answer = functools.partial(trials.answer, keep=keep)
    return workers.run(answer, list(planned), progress=runtime.progress, desc="networks")


# ---- which data ------------------------------------------------------------------------------------------------------


def find_dataset(name: str, data_dir: str) -> Path | None:
    """The folder of a data set beside the run's own; an own one that no card names is taken for COVID."""
    own = runtime.locate(data_dir)
    if (own.parent / name).is_dir():
        return own.parent / name
    return own if name == COVID and own.name not in CARDS else None


def open_films(root: Path, size: int, cache_dir: str | Path, *, val_fraction: float, seed: int) -> ImageSet:
    """The films of a folder at a size, split."""
    options = {"cache_dir": runtime.locate(cache_dir), "val_fraction": val_fraction, "seed": seed}
    with processes.first_before_others():
        return open_folder(root, image_size=size, progress=runtime.progress, **options)


def films_of(config: Config, size: int, cache_dir: str | Path, *, root: Path | None = None) -> ImageSet:
    """The films of a run, or of another folder under its seed, at another size; phantoms where it names no folder."""
    root = root or pipeline.open_data(config, cache_dir).root
    return open_films(root, size, cache_dir, val_fraction=config.val_fraction, seed=config.seed)


def missing(config: Config) -> list[str]:
    """Names of the data sets that systems want and that are not beside the run's own; none with phantoms."""
    wanted = dict.fromkeys(name for system in SYSTEMS.values() for name in system.datasets)
    return [name for name in wanted if config.data_dir and find_dataset(name, config.data_dir) is None]


# ---- which trials ----------------------------------------------------------------------------------------------------


def plan(system: System, images: ImageSet, run: Run, *, scale: Scale, **options: Any) -> Trial:
    """A trial of a system on a set of films, in its folder under the run."""
    dataset = _name(run, images)
    folder = run.path / "systems" / dataset / system.name
    common = {
        "seed": run.config.seed,
        "noise_kind": run.config.noise_kind,
        "precision": run.config.precision,
        "preset": run.config.preset,
        "val_fraction": run.config.val_fraction,
        "target_accuracy": run.config.target_accuracy,
    }
    if system.noisy:
        first, *others = pipeline.protocols(run.config, images)
        dataset = _noisy(dataset, run.config)
        common |= {"sigma": run.config.sigma, "protocol": first.name, "more_protocols": tuple(others)}
        common |= {"share": run.config.noise_share if run.config.noise_kind == "gaussian" else 0.0}
    return Trial(system, images, dataset, **({"folder": folder, "scale": scale} | common | options))


def _noisy(dataset: str, config: Config) -> str:
    """What a data set is called with the run's noise on its films: they are not to be held against clean ones."""
    return f"{dataset} + noise {config.sigma:g}"


def _name(run: Run, images: ImageSet) -> str:
    """Of the data set: its card's where the folder or one around it is named so; phantoms have theirs."""
    around = (images.root, *images.root.parents[:3])
    known = next((folder.name for folder in around if folder.name in CARDS), images.root.name)
    return known if run.config.data_dir else "phantom"


def system_trials(run: Run, cache_dir: str | Path) -> list[Trial]:
    """Every system on every data set its source used, as far as they are there; on phantoms where the run is.

    System A is not among them: notebooks 02 and 03 train it, notebook 06 tests it.
    """
    config, scale, planned = run.config, run.config.comparison.systems, []
    for system in SYSTEMS.values():
        if system.denoiser or system.name in set(ARCHITECTURES) - {"aernet"}:
            continue
        short = system.shortened(scale)
        for root in _roots(system, config, cache_dir):
            planned.append(plan(short, films_of(config, short.image_size, cache_dir, root=root), run, scale=scale))
    return planned


def _roots(system: System, config: Config, cache_dir: str | Path) -> list[Path]:
    if not config.data_dir:
        return [pipeline.open_data(config, cache_dir).root]
    return [root for name in system.datasets if (root := find_dataset(name, config.data_dir))]


def reported_in_comparison(name: str) -> Reported | None:
    """The row of an architecture in report B's comparison table; None if it is not in it."""
    reported = SYSTEMS[name].reported
    if name == "aernet":
        return reported["comparison"]
    return reported[COVID] if name in ARCHITECTURES else None


def system_a(run: Run, images: ImageSet) -> list[Finished]:
    """System A as notebooks 02 and 03 trained it, on test films with noise; none where they have not run yet."""
    name, config = pipeline.classifier_name("autoencoder"), run.config
    if not (run.model_folder("classifier", name) / "model.json").exists():
        return []
    protocol = next(one for one in pipeline.protocols(config, images) if one.name == "test_noise")
    saved = run.load_model("classifier", name)
    folders = [run.model_folder("denoiser", "autoencoder"), run.model_folder("classifier", name)]
    before, history = (pd.read_csv(folder / "history.csv") for folder in folders)
    facts = {"system": "cnn2", "dataset": _noisy(_name(run, images), config), "protocol": protocol.name}
    facts |= {"positive": None, "fold": None, "starting_weights": "none", "epochs": len(history), "seed": config.seed}
    facts |= {"train_images": len(images.subset("train"))}
    facts["scale"] = {"epochs": len(history)} if len(history) < SYSTEMS["cnn2"].recipe.epochs else {}
    facts["seconds"] = before["seconds"].sum() + history["seconds"].sum()
    facts["parameters"] = saved.card["parameters"] + run.load_model("denoiser", "autoencoder").card["parameters"]
    predictions = pipeline.predict(run, images, "autoencoder", protocol)
    return [Finished(run.model_folder("classifier", name), saved.card | facts, predictions)]


def architecture_trials(run: Run, cache_dir: str | Path) -> list[Trial]:
    """Every architecture on the run's own films, clean, noisy, and denoised, under one recipe: AERNet's.

    Condition by condition the network is trained on what it is tested on. The denoiser is of the run's kind, trained
    here on the same films.
    """
    config, scale = run.config, run.config.comparison.architectures
    films = _own(run, scale, cache_dir)
    behind, planned = train_denoiser(run, films, scale), []
    names = (*ARCHITECTURES, "resnet34", "cnn4", "cnn5", "cnn3", "cnn2")  # the longest first: no worker waits long
    for name in (name for name in names if name not in config.comparison.without):
        recipe = SYSTEMS["aernet"].shortened(scale).recipe
        system = replace(SYSTEMS[name], recipe=recipe, image_size=films.images.shape[-1], denoiser="")
        for condition in config.comparison.conditions:
            options = {"sigma": 0.0 if condition == "clean" else config.sigma, "protocol": condition}
            options["denoiser"] = behind.model if condition == "denoised" else None
            folder = run.path / "architectures" / condition / name
            planned.append(plan(system, films, run, scale=scale, folder=folder, **options))
    return planned


def attention_trials(run: Run, cache_dir: str | Path) -> list[Trial]:
    """Report B's ablation: five variants of ResNet-50, each over several seeds."""
    scale, planned = run.config.comparison.attention, []
    films, aernet = _own(run, scale, cache_dir), SYSTEMS["aernet"].shortened(scale)
    for variant, arguments in ATTENTION.items():
        smoothing = aernet.recipe.label_smoothing if "smoothing" in variant else 0.0
        recipe = replace(aernet.recipe, label_smoothing=smoothing)
        system = replace(aernet, recipe=recipe, arguments=arguments, image_size=films.images.shape[-1])
        for seed in run.config.comparison.seeds:
            folder = run.path / "attention" / variant.strip("+ ").split(" (")[0].replace(" ", "_") / f"seed_{seed}"
            planned.append(plan(system, films, run, scale=scale, seed=seed, folder=folder, protocol=variant))
    return planned


def imbalance_trials(run: Run, cache_dir: str | Path) -> list[Trial]:
    """One small network under each answer to unbalanced classes: none, weighted loss, balanced sampling."""
    scale, planned = run.config.comparison.architectures, []
    films, system = _own(run, scale, cache_dir), SYSTEMS["cnn5"].shortened(scale)
    for kind in IMBALANCE:
        one = replace(system, recipe=replace(system.recipe, imbalance=kind), image_size=films.images.shape[-1])
        folder = run.path / "imbalance" / kind
        planned.append(plan(one, films, run, scale=scale, folder=folder, protocol=kind))
    return planned


def control_trials(run: Run, cache_dir: str | Path, *, by_source: bool = False) -> list[Trial]:
    """One small network on clean films from which something was taken away, or kept apart; see `controls`.

    With `by_source` instead one that is asked for the source of a film; none where the films name no two sources.
    """
    scale, planned, seed = run.config.comparison.controls, [], run.config.seed
    own = _own(run, scale, cache_dir)
    system = SYSTEMS["resnet18_s2d"]
    plain = replace(system.recipe, batch_size=32, imbalance="balanced", mixup=0.0, ema=0.0)  # for few steps
    short = replace(system, recipe=plain, noisy=False).shortened(scale)
    for name, films in controls.by_source(own) if by_source else controls.controls(own, seed=seed):
        folder = run.path / "controls" / re.sub(r"\W+", "_", name)
        system = replace(short, image_size=films.images.shape[-1])
        planned.append(plan(system, films, run, scale=scale, folder=folder, protocol=name))
    return planned


def train_denoiser(run: Run, films: ImageSet, scale: Scale, **options: Any) -> SavedModel:
    """The denoiser in front of networks that are compared: of the run's kind and recipe, at the films' size.

    Args:
        options: folder, and fields of `training.Task`, in place of the run's: corruption and recipe, for example.
    """
    config, name = run.config, run.config.denoiser
    folder = options.pop("folder", run.path / "architectures" / name)
    runtime.seed_everything(config.seed)
    common = {
        "step": DenoisingStep(pipeline.LOSSES[name]),
        "train": pipeline.films(films, "train").draw(scale.train_images, seed=config.seed),
        "val": pipeline.films(films, "val").draw(scale.val_images, seed=config.seed),
        "corruption": Corruption(config.noise_kind, config.sigma),
        "recipe": replace(getattr(config, name), checkpoint_every=0),
        "seed": config.seed,
        "precision": config.precision,
        "name": f"{name} in front of the networks",
    }
    fitted = training.fit(models.build(name), training.Task(**(common | options)), folder)
    return SavedModel(fitted.model, {"architecture": name, "arguments": {}})


def _own(run: Run, scale: Scale, cache_dir: str | Path) -> ImageSet:
    return films_of(run.config, scale.image_size or run.config.image_size, cache_dir)


# ---- the command line: one system on one folder ----------------------------------------------------------------------


def own_trials(
    system: System, run: Run, *, cache_dir: str | Path, weights: str = "none", folds: int = 0, repeats: int = 1
) -> list[Trial]:
    """The trial of a system on the run's data; with `folds`, one for each fold of each repeat.

    Before folds are made, all but one of the copies of a film are taken out, and splits are forgotten.
    """
    scale = run.config.comparison.systems
    short = system.shortened(scale)
    images = films_of(run.config, short.image_size, cache_dir)
    if not folds:
        return [plan(short, images, run, scale=scale, weights=weights)]
    base, planned = run.path / "folds" / images.root.name / system.name, []
    distinct = _distinct(str(images.root), short.image_size, str(cache_dir))
    for repeat in range(repeats):
        seed = run.config.seed + repeat
        for number in range(folds):
            options = {"folder": base / f"repeat_{repeat}_fold_{number}", "seed": seed, "weights": weights}
            options["fold"] = Fold(folds, number, repeat)
            parted = one_fold(distinct, folds, number, seed=seed, val_fraction=run.config.val_fraction)
            planned.append(plan(short, parted, run, scale=scale, **options))
    return planned


def one_fold(distinct: ImageSet, k: int, number: int, *, seed: int, val_fraction: float) -> ImageSet:
    """The films with one of `k` parts as their test split, and a validation split of its own taken from the rest."""
    return carve(split.folds(distinct, k=k, seed=seed)[number].apply(distinct), fraction=val_fraction, seed=seed)


def evaluate(folder: Path, cache_dir: str | Path) -> list[Finished]:
    """Test every system trained under a run folder, folds included, whose answers are not stored yet."""
    done = []
    for place in runtime.progress(answers.trained(folder), desc="systems"):
        if not processes.by_first((place / answers.PREDICTIONS).exists):
            images = reopen(answers.read_card(place), cache_dir)
            trials.test(place, images, load_model(place, classes=images.classes))
        done.append(answers.read(place))
    return done


def reopen(card: dict[str, Any], cache_dir: str | Path) -> ImageSet:
    """The films that a card was made with, split as they were."""
    options = {"val_fraction": card["val_fraction"], "seed": card["seed"]}
    size, fold = card["arguments"]["image_size"], card["fold"]
    if not fold:
        return open_films(Path(card["root"]), size, cache_dir, **options)
    return one_fold(_distinct(card["root"], size, str(cache_dir)), fold["k"], fold["number"], **options)


@functools.cache
def _distinct(root: str, size: int, cache_dir: str) -> ImageSet:
    """One film of each cluster of copies; which one hangs on the split, so that is the same for training and test."""
    return without_duplicates(open_films(Path(root), size, cache_dir, val_fraction=0.1, seed=0))
