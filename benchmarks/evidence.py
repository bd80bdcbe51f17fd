"""The trainings behind the README's evidence: every seed, every ablation, the arms, side by side on one GPU.

    python benchmarks/evidence.py --data IMAGES --out OUT --jobs 10 --deadline 480     # minutes on a large GPU
    python benchmarks/evidence.py --data IMAGES --out OUT --only main:0 --jobs 1       # one of them, hours on CPUs

IMAGES holds the folders of the data sets. Each job is a process of its own and leaves a folder under OUT/jobs; a job
that is there already is not run again, so that a rerun goes on. What the deadline (seconds) cuts off is left out. At
the end OUT gets `answers.tar.gz` (cards, histories, answers of every film) and `weights_NN.tar`.
"""

import argparse
import functools
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import tried  # noqa: E402

from pneumo_lib import (  # noqa: E402
    answers,
    arms,
    comparison,
    config,
    evaluation,
    evidence,
    models,
    noise,
    pipeline,
    robustness,
    runs,
    runtime,
    steps,
    training,
    trials,
)
from pneumo_lib import publish as publishing  # noqa: E402
from pneumo_lib.data import ImageSet  # noqa: E402
from pneumo_lib.models.ensemble import Ensemble  # noqa: E402
from pneumo_lib.recipe import Augmentation, Recipe, Scale  # noqa: E402
from pneumo_lib.systems import COVID, KERMANY, SYSTEMS  # noqa: E402

OURS = SYSTEMS["resnet18_s2d"]
EVERY = replace(OURS.recipe.augmentation, share=1.0)
LARGE = {"widths": (64, 128, 192, 256)}
VARIANTS = {  # of our recipe, one thing changed in each: what earns its cost
    "main": {},
    "balanced": {"imbalance": "balanced"},
    "no mixup": {"mixup": 0.0},
    "no mean of weights": {"ema": 0.0},
    "no mean nor mixup": {"mixup": 0.0, "ema": 0.0},
    "augmented": {"augmentation": EVERY},  # every film
    "no augmentation": {"augmentation": Augmentation()},
    "contrast": {"augmentation": replace(OURS.recipe.augmentation, contrast=0.8)},
    "CC BY": {"imbalance": "balanced", "epochs": 12},  # films under that licence, of which 71 show COVID19
    "CC BY augmented": {"imbalance": "balanced", "epochs": 12, "augmentation": EVERY},
    "CC BY no augmentation": {"imbalance": "balanced", "epochs": 12, "augmentation": Augmentation()},
}
LICENSED = tuple(name for name in VARIANTS if name.startswith("CC BY"))
ROBUSTNESS = "robustness "  # begins the names of jobs that show a network corrupted films
BEARING = ("main", "augmented", "contrast")  # short networks that are shown them
# what is also trained at 128 pixels
SMALLER = ("main", "augmented", "no augmentation", "no mixup", "no mean of weights")
# and only for few epochs
SHORT = ("balanced", "no mean nor mixup", "contrast", "denoising first", "no anti-aliasing", "behind a denoiser")
SHORT += ("twice as wide",)
WIDE = {"widths": (48, 96, 192, 384)}
SMALL = {"short": 12, "small": OURS.recipe.epochs}  # how long variants at 128 pixels train, where no GPU is at hand
FULL = (("cnn3", KERMANY), ("cnn4", KERMANY), ("resnet34", KERMANY), ("cnn5", KERMANY))
FULL += (("aernet", "covid_ct"), ("aernet", "brain_mri"), ("aernet", COVID))


@dataclass(frozen=True)
class Given:
    """What a job works with: folder of the data sets, cache, its own folder, seed, and a bound on epochs and films."""

    images: Path
    cache: Path
    place: Path
    seed: int
    epochs: int = 0
    films: int = 0

    def config(self, dataset: str = COVID, **options) -> config.Config:
        """The full preset on a data set under the job's seed."""
        epochs = {"epochs": self.epochs} if self.epochs else {}
        return config.make("full", data_dir=str(self.images / dataset), seed=self.seed, **(epochs | options))

    @property
    def scale(self) -> Scale:
        """The bound, for trials."""
        n = self.films
        return Scale(epochs=self.epochs, train_images=n, val_images=n, test_images=n)

    def beside(self, job: str) -> Path:
        """The folder of another job."""
        return self.place.parent / job.replace(" ", "_")


# ---- the jobs --------------------------------------------------------------------------------------------------------


def decode(given: Given) -> None:
    """The films that most jobs need, decoded once."""
    for settings in (given.config(), given.config(image_size=arms.SIDE)):
        pipeline.open_data(settings, given.cache)


def licensed(given: Given) -> config.Config:
    """The full preset on the films of `pneumo data select`."""
    return replace(given.config(), data_dir=str(given.images / "chest_xray_covid_free"))


def two_stages(given: Given, denoiser: str, epochs: tuple[int, int] = (0, 0)) -> None:
    """A denoiser, cnn2 behind it, and what both say of validation and test films.

    Args:
        epochs: of the two, in place of the recipes'; 0 leaves them.
    """
    settings = given.config(denoiser=denoiser)
    for name, most in zip((denoiser, "classifier"), epochs, strict=True):
        recipe = getattr(settings, name)
        settings = replace(settings, **{name: replace(recipe, epochs=most or recipe.epochs)})
    run, images = runs.open_run(given.place, settings), pipeline.open_data(settings, given.cache)
    pipeline.train_denoiser(run, images, denoiser)
    pipeline.train_classifier(run, images, denoiser)
    validation = pipeline.Protocol("val_noise", "", "val", settings.sigma)
    protocols = [*pipeline.protocols(settings, images), validation]
    said = [pipeline.predict(run, images, denoiser, one) for one in protocols]
    write(given.place / "predictions.csv", pd.concat(said[:-1]))
    write(given.place / "val.csv", said[-1])
    write_quality(given, run.load_model("denoiser", denoiser), images)


def large_denoiser(given: Given) -> None:
    """Our U-Net twice as wide, on the squared error of squares of the films, with a running mean of its weights.

    A quarter of the films gets noise of another level, half of them in the presets.
    """
    settings = given.config()
    images = pipeline.open_data(settings, given.cache)
    options = {"schedule": "cosine", "ema": 0.999, "keep": "last", "augmentation": Augmentation(flip=True)}
    recipe = Recipe(epochs=given.epochs or 55, batch_size=8, lr=5e-4, crop=128, **options)
    task = training.Task(
        step=steps.DenoisingStep("mse"),
        train=pipeline.films(images, "train").draw(given.films, seed=0),
        val=pipeline.films(images, "val").draw(given.films, seed=0),
        corruption=steps.Corruption("gaussian", settings.sigma, share=0.25),
        recipe=recipe,
        seed=given.seed,
        name="large U-Net",
    )
    runtime.seed_everything(given.seed)
    fitted = training.fit(models.build("unet_denoiser", **LARGE), task, given.place)
    card = {"architecture": "unet_denoiser", "arguments": LARGE, "recipe": recipe.text(), "seed": given.seed}
    card |= {"parameters": models.count_parameters(fitted.model), "train_images": len(task.train)}
    card |= {"noise": asdict(task.corruption), "device": runtime.device_name()}
    runs.save_model(given.place, fitted.model, card | {"seconds": float(fitted.history["seconds"].sum())})
    write_quality(given, runs.load_model(given.place), images, mirrored=True)
    write_levels(given, runs.load_model(given.place), images)


def write_quality(given: Given, denoiser: runs.SavedModel, images: ImageSet, *, mirrored: bool = False) -> None:
    """PSNR and SSIM of each test film, denoised; for a network that learnt mirrored films also averaged both ways."""
    films, name = pipeline.films(images, "test").draw(given.films, seed=0), denoiser.card["architecture"]
    methods = {name: evaluation.network_denoiser(denoiser.model)}
    if mirrored:
        methods[f"{name}, {evidence.MIRRORED}"] = evaluation.network_denoiser(tried.BothWays(denoiser.model))
    table = evaluation.denoising_quality(methods, films, evaluation.View("gaussian", 0.5, given.seed))
    write(given.place / evidence.QUALITY, table.round(5))
    print(evaluation.summarise_quality(table).to_string())


def write_levels(given: Given, denoiser: runs.SavedModel, images: ImageSet) -> None:
    """Mean PSNR (dB) of 100 test films, or of the bound of the job, by standard deviation of gaussian noise."""
    films = pipeline.films(images, "test").draw(given.films or 100, seed=0)
    methods, rows = {"denoised": evaluation.network_denoiser(denoiser.model)}, []
    for level in noise.NOISES["gaussian"].levels[1:]:
        table = evaluation.denoising_quality(methods, films, evaluation.View("gaussian", level, given.seed))
        rows.append({"level": level, "psnr": table["psnr"].mean(), "n": len(films)})
    write(given.place / evidence.LEVELS, pd.DataFrame(rows).round(5))


def recognise(given: Given, variant: str, scale: Scale | None = None) -> None:
    """Our network for noisy films under a variant of its recipe; a scale stands in place of the bound of the job."""
    scale = scale or given.scale
    system = replace(OURS, recipe=replace(OURS.recipe, **VARIANTS.get(variant, {})))
    system = replace(system, arguments=WIDE if variant == "twice as wide" else {})
    side = {"image_size": scale.image_size} if scale.image_size else {}
    settings, options = given.config(**side), {} if variant in LICENSED else {"folder": given.place}
    if variant == "behind the large U-Net":
        options["denoiser"] = runs.load_model(given.beside("large U-Net:0")).model
    if variant == "behind a denoiser":
        options["denoiser"] = runs.load_model(given.beside(f"arms denoiser:{given.seed}")).model
    if variant in LICENSED:
        settings = licensed(given)
    images = pipeline.open_data(settings, given.cache)
    run = runs.Run(given.place, settings)
    trial = comparison.plan(system.shortened(scale), images, run, scale=scale, **options)
    changes = {"denoising first": functools.partial(denoise_first, given, trial), "no anti-aliasing": tried.strided}
    trial = tried.changed(trial, changes[variant]) if variant in changes else trial
    saved = trials.learn(trial, keep=variant not in changes)
    trials.test(trial.folder, images, saved, denoiser=trial.denoiser)
    say_validation(given, settings, images, saved, trial.denoiser)


def denoise_first(given: Given, trial: trials.Trial, model: nn.Module) -> nn.Module:
    """The network of a trial after its layers have learnt to denoise the same films for as many epochs."""
    epochs, mild = trial.system.recipe.epochs, trial.system.recipe.augmentation
    recipe = Recipe(epochs=epochs, schedule="cosine", keep="last", augmentation=mild)
    task = replace(trial.task(), step=steps.DenoisingStep("mse"), recipe=recipe, name="denoising first")
    training.fit(tried.Restorer(model), task, given.place / "denoising")
    return model


def say_validation(
    given: Given, settings: config.Config, images: ImageSet, saved: runs.SavedModel, denoiser: nn.Module | None = None
) -> None:
    """What a network says of the validation films, noisy and as they are."""
    protocols = [pipeline.Protocol(f"val_{sigma:g}", "", "val", sigma) for sigma in (settings.sigma, 0.0)]
    write(given.place / "val.csv", pd.concat(trials.say(one, images, saved, denoiser) for one in protocols))


def small(given: Given, variant: str, epochs: int) -> None:
    """A variant at 128 pixels."""
    recognise(given, variant, replace(given.scale, image_size=arms.SIDE, epochs=given.epochs or epochs))


def mirrored(given: Given) -> None:
    """The network of `short main` averaged with itself on mirrored films: test-time averaging, no training."""
    before, settings = given.beside(f"short main:{given.seed}"), given.config(image_size=arms.SIDE)
    images = pipeline.open_data(settings, given.cache)
    saved = runs.load_model(before)
    both = Ensemble((lambda **_: saved.model, lambda **_: tried.Mirrored(saved.model)))
    twice = runs.SavedModel(both.eval(), saved.card)
    runs.write_card(given.place, saved.card)
    write(given.place / "history.csv", pd.read_csv(before / "history.csv"))
    trials.test(given.place, images, twice)
    say_validation(given, settings, images, twice)


def bear(given: Given, variant: str, split: str) -> None:
    """What a network of `recognise` or `small` makes of the films of a split under every corruption."""
    side = {"image_size": arms.SIDE} if variant.startswith("short ") else {}
    settings = licensed(given) if variant in LICENSED else given.config(**side)
    (card,) = given.beside(f"{variant}:{given.seed}").rglob("model.json")
    images, saved = pipeline.open_data(settings, given.cache), runs.load_model(card.parent)
    robustness.corrupted(given.place, images, saved, split=split)


def name_sources(given: Given) -> None:
    """The small network of the controls of preset quick, asked for the source of a film."""
    settings = config.make("quick", data_dir=str(given.images / COVID), seed=given.seed)
    planned = comparison.control_trials(runs.Run(given.place, settings), given.cache, by_source=True)
    for trial in planned:
        trials.answer(replace(trial, folder=given.place), keep=False)


def arm_denoiser(given: Given) -> None:
    """The denoiser in front of the arms."""
    settings = given.config(image_size=arms.SIDE)
    arms.train_denoiser(runs.Run(given.place, settings), pipeline.open_data(settings, given.cache), given.scale)


def arm(given: Given, network: str, condition: str) -> None:
    """A network of the arms, and what it says of test films under every corruption."""
    settings = given.config(image_size=arms.SIDE)
    images = pipeline.open_data(settings, given.cache)
    denoiser = runs.load_model(given.beside(f"arms denoiser:{given.seed}")).model
    trial = arms.plan(network, condition, images, runs.Run(given.place, settings), given.scale, denoiser)
    saved = trials.learn(replace(trial, folder=given.place), keep=False)
    for name, behind in arms.shown(condition, denoiser).items():
        write(given.place / f"{name}.csv", arms.said(saved, images, given.scale, behind))


def full(given: Given, name: str, dataset: str) -> None:
    """A published system at its own recipe."""
    run = runs.Run(given.place, given.config(dataset))
    for trial in comparison.own_trials(SYSTEMS[name], run, cache_dir=given.cache):
        trials.answer(replace(trial, scale=given.scale), keep=False)


def write(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, whole or not at all."""
    runs.write_text(path, table.to_csv(index=False, float_format="%.6g"))


def jobs() -> dict[str, tuple[Callable[[Given], None], tuple[str, ...]]]:
    """Every job by name, the most important first: what it does, and the jobs that it waits for."""
    found: dict = {"films:0": (decode, ())}

    def add(name: str, work: Callable, seeds: range, *needs: str) -> None:
        for seed in seeds:
            found[f"{name}:{seed}"] = (work, ("films:0", *(f"{one}:{seed}" for one in needs)))

    add("ours", lambda g: two_stages(g, "unet_denoiser"), range(3))
    add("large U-Net", large_denoiser, range(1))
    add("source", lambda g: two_stages(g, "autoencoder"), range(5))
    add("source 23 + 10", lambda g: two_stages(g, "autoencoder", (23, 10)), range(5))
    add("main", lambda g: recognise(g, "main"), range(3))
    for variant in LICENSED:
        add(variant, lambda g, variant=variant: recognise(g, variant), range(1))
    add("sources", name_sources, range(3))
    add("arms denoiser", arm_denoiser, range(3))
    for variant in ("balanced", "twice as wide"):
        add(variant, lambda g, variant=variant: recognise(g, variant), range(2))
    for network, seeds in arms.NETWORKS.items():
        for condition in arms.CONDITIONS:
            name = f"arms {network} {condition}"
            add(name, lambda g, n=network, c=condition: arm(g, n, c), range(seeds), "arms denoiser")
    add("behind the large U-Net", lambda g: recognise(g, "behind the large U-Net"), range(1), "large U-Net")
    many = {"main": 5, "augmented": 3, "no augmentation": 3, "contrast": 3}
    for variant in (name for name in VARIANTS if name not in LICENSED):
        add(variant, lambda g, variant=variant: recognise(g, variant), range(many.get(variant, 2)))
    shown = {"val": ("main", "contrast", *LICENSED), "test": ("main", "augmented", "no augmentation", *LICENSED)}
    for split, variants in shown.items():
        for variant in variants:
            work, seeds = functools.partial(bear, variant=variant, split=split), range(1 if variant in LICENSED else 3)
            add(f"{ROBUSTNESS}{split} {variant}", work, seeds, variant)
    for seed in range(2):
        for length, epochs in SMALL.items():
            for variant in SMALLER + SHORT * (length == "short"):
                work, needs = functools.partial(small, variant=variant, epochs=epochs), ("arms denoiser",)
                add(f"{length} {variant}", work, range(seed, seed + 1), *needs * (variant == "behind a denoiser"))
        add("short mirrored", mirrored, range(seed, seed + 1), "short main")
        for variant in (f"short {name}" for name in BEARING):
            work = functools.partial(bear, variant=variant, split="val")
            add(f"{ROBUSTNESS}val {variant}", work, range(seed, seed + 1), variant)
    for seed in range(3):
        for name, dataset in FULL:
            add(f"full {name} {dataset}", lambda g, n=name, d=dataset: full(g, n, d), range(seed, seed + 1))
    return found


def wanted(planned: dict[str, tuple[Callable[[Given], None], tuple[str, ...]]], only: list[str]) -> list[str]:
    """The jobs whose names begin with one of the texts, and those that they wait for, in order; all without a text."""
    named = {name for name in planned if not only or name.startswith(tuple(only))}
    while missing := {need for name in named for need in planned[name][1]} - named:
        named |= missing
    return [name for name in planned if name in named]


# ---- side by side ----------------------------------------------------------------------------------------------------


def run_all(given: argparse.Namespace) -> None:
    """Start jobs in their order, as many at a time as asked for, until all have ended or time is up."""
    start, place, planned = time.monotonic(), Path(given.out, "jobs"), jobs()
    waiting = wanted(planned, given.only)
    running: dict[str, tuple[multiprocessing.Process, float]] = {}
    done = {name for name in planned if (folder(place, name) / "DONE").exists()}
    waiting, failed = [name for name in waiting if name not in done], set()
    while waiting or running:
        for name, (process, began) in [*running.items()]:
            if process.exitcode is not None:
                (failed if process.exitcode else done).add(name)
                print(f"{time.monotonic() - start:6.1f} s  {name}: {time.monotonic() - began:.1f} s", end="")
                print(f", FAILED\n{tail(place, name)}" if process.exitcode else "", flush=True)
                del running[name]
        if given.deadline and time.monotonic() - start > given.deadline:
            print(f"time is up; running: {', '.join(running)}; never begun: {', '.join(waiting)}", flush=True)
            for process, _ in running.values():
                process.kill()
            break
        if len(failed) > 3 and len(done) < 2:
            print("the first jobs all failed; given up", flush=True)
            break
        waiting = [name for name in waiting if not failed & set(planned[name][1])]
        ready = [name for name in waiting if done >= set(planned[name][1])]
        for name in ready[: max(0, given.jobs - len(running))]:
            waiting.remove(name)
            running[name] = begin(name, place, given), time.monotonic()
        time.sleep(0.1)
    print(f"{len(done)} jobs done, {len(failed)} failed, {time.monotonic() - start:.0f} s", flush=True)


def folder(place: Path, name: str) -> Path:
    """Of a job."""
    return place / name.replace(" ", "_")


def begin(name: str, place: Path, given: argparse.Namespace) -> multiprocessing.Process:
    """A job in a process of its own, which need not import anything again; what it prints goes to its log."""
    folder(place, name).mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=be, args=(name, given))
    process.start()
    return process


def tail(place: Path, name: str) -> str:
    """The end of a job's log."""
    return "\n".join((folder(place, name) / "log.txt").read_text().splitlines()[-12:])


def be(name: str, given: argparse.Namespace) -> None:
    """What the process of a job does."""
    place, out = folder(Path(given.out, "jobs"), name), Path(given.out)
    with open(place / "log.txt", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    work, _ = jobs()[name]
    seed = int(name.rpartition(":")[2])
    work(Given(Path(given.data).resolve(), out / "cache", place.resolve(), seed, given.epochs, given.films))
    (place / "DONE").touch()


def pack(out: Path, most: int = 15 * 2**20, archives: int = 5) -> None:
    """Answers into one archive; the weights that matter most into a few that each stay below a size."""
    light = {".csv", ".json", ".txt"}
    ended = sorted(path.parent for path in (out / "jobs").glob("*/DONE"))
    with tarfile.open(out / "answers.tar.gz", "w:gz") as archive:
        for path in (path for place in ended for path in sorted(place.rglob("*")) if path.suffix in light):
            archive.add(path, path.relative_to(out / "jobs"))
    files = [path for place in ended for path in place.rglob("*.safetensors")]
    kept = [path for path in files if not {"checkpoints"} & set(path.parts) and "state_" not in str(path)]
    bins: list[list[Path]] = []
    for path in sorted(kept, key=worth):
        size = path.stat().st_size
        room = next((one for one in bins if sum(p.stat().st_size for p in one) + size < most), None)
        if room is not None:
            room.append(path)
        elif size < most and len(bins) < archives:
            bins.append([path])
    for number, paths in enumerate(bins):
        with tarfile.open(out / f"weights_{number:02}.tar", "w") as archive:
            for path in paths:
                archive.add(path, path.relative_to(out / "jobs"))


WANTED = ("CC_BY:", "large_U-Net:", "main:", "arms_denoiser:0", "source:0", "ours:0", "behind", "balanced:")


def worth(path: Path) -> int:
    """Which weights are taken along first."""
    return next((k for k, name in enumerate(WANTED) if name in str(path)), len(WANTED))


# ---- to figures/ -----------------------------------------------------------------------------------------------------

PUBLISHED = {"source": evidence.SOURCE_FULL, "source 23 + 10": evidence.SOURCE}  # other jobs are rows of our recipe
DENOISERS = {"large U-Net": "unet_denoiser_large", "source": "autoencoder_full"}  # jobs whose denoisers are told


def publish(out: Path, figures: Path) -> None:
    """Copy the answers of the jobs that have ended to FIGURES/seeds and FIGURES/arms, and write what they say."""
    for done in sorted((out / "jobs").glob("*/DONE")):
        job, _, seed = done.parent.name.replace("_", " ").partition(":")
        if row := row_of(job):
            publish_seed(done.parent, figures / evidence.SEEDS / row / f"seed_{seed}")
        if job in DENOISERS:
            publish_denoiser(done.parent, figures / evidence.DENOISERS / DENOISERS[job] / f"seed_{seed}")
        if job == "sources":
            place = figures / evidence.SOURCES / f"seed_{seed}"
            card = answers.read_card(done.parent)
            runs.write_card(place, {name: value for name, value in card.items() if name != "root"})
            write(place / answers.PREDICTIONS, pd.read_csv(done.parent / answers.PREDICTIONS))
        if job.startswith(ROBUSTNESS):
            name = f"{job.removeprefix(ROBUSTNESS).replace(' ', '_')}_seed_{seed}.csv"
            write(figures / evidence.ROBUSTNESS / name, pd.read_csv(done.parent / robustness.CORRUPTIONS))
        if job.startswith("arms ") and job != "arms denoiser":
            network, condition = done.parent.name.partition(":")[0].removeprefix("arms_").rsplit("_", 1)
            for arm_name in arms.shown(condition, None):
                table = pd.read_csv(done.parent / f"{arm_name}.csv")
                write(figures / arms.FOLDER / network / f"{arm_name}_seed_{seed}.csv", table)
    publishing.publish_evidence(figures)


def row_of(job: str) -> str:
    """The folder of `evidence.SEEDS` for the answers of a job, "" where they are no row of a table."""
    ours = "_".join([evidence.OURS, *(word for word in job.split() if word != "main")])
    return ours if ours in {evidence.OURS, *evidence.VARIANTS} else PUBLISHED.get(job, "")


def publish_denoiser(job: Path, place: Path) -> None:
    """Card, history and quality on test films of a denoiser, trained alone or in front of a classifier."""
    alone = next(iter(job.glob("denoiser/*")), job)
    card = answers.read_card(alone)
    if alone != job:
        settings = runs.load_run(job).config
        card |= {"recipe": getattr(settings, settings.denoiser).text(), "train_images": learnt_from(job, settings)}
    runs.write_card(place, card)
    write(place / "history.csv", pd.read_csv(alone / "history.csv"))
    for name in (evidence.QUALITY, evidence.LEVELS):
        if (job / name).exists():
            write(place / name, pd.read_csv(job / name))


def learnt_from(job: Path, settings: config.Config) -> int:
    """How many films a run of a job trained on."""
    return len(pipeline.open_data(settings, job.parent.parent / "cache").subset("train"))


def publish_seed(job: Path, place: Path) -> None:
    """Card, history and answers of one network, or of a classifier and the denoiser in front of it."""
    classifier = next(iter(job.glob("classifier/*")), job)
    card = answers.read_card(classifier)
    history = pd.read_csv(classifier / "history.csv")
    facts = {"train_accuracy": float(history["train_score"].iloc[card["best_epoch"] - 1])}
    facts |= {"seed": int(job.name.partition(":")[2]), "train_images": card.get("train_images")}
    if classifier != job:
        settings = runs.load_run(job).config
        behind = getattr(settings, settings.denoiser)
        facts |= {"recipe": f"{settings.denoiser}: {behind.text()}; cnn2: {settings.classifier.text()}"}
        facts |= {"train_images": learnt_from(job, settings)}
        before = pd.read_csv(next(iter(job.glob("denoiser/*"))) / "history.csv")
        facts |= {"seconds": float(history["seconds"].sum() + before["seconds"].sum())}
    runs.write_card(place, {name: value for name, value in (card | facts).items() if name != "root"})
    write(place / "history.csv", history)
    for name in (answers.PREDICTIONS, evidence.VALIDATION):
        write(place / name, pd.read_csv(job / name))


def table(out: Path) -> pd.DataFrame:
    """Accuracy, log loss (nats) and recalls on validation of every job that wrote them; nothing of the test films."""
    rows = []
    for path in sorted((out / "jobs").glob("*/val.csv")):
        for protocol, part in answers.read_predictions(path).groupby("protocol"):
            hit = part["label"] == part["predicted"]
            facts = {"accuracy": hit.mean(), "loss": evidence.log_losses(part).mean()}
            facts |= hit.groupby(part["label"]).mean().to_dict()
            rows.append({"job": path.parent.name, "protocol": protocol, "n": len(part)} | facts)
    return pd.DataFrame(rows)


def main() -> None:
    """Run one job, or all, and pack what they made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--out", required=True, help="folder for jobs, cache and archives")
    parser.add_argument("--jobs", type=int, default=1, help="at a time")
    parser.add_argument("--deadline", type=float, default=0, help="seconds; 0 for none")
    parser.add_argument("--only", nargs="*", default=[], help="jobs whose name begins with one of these")
    parser.add_argument("--epochs", type=int, default=0, help="at most, for a try")
    parser.add_argument("--films", type=int, default=0, help="at most, for a try")
    parser.add_argument("--publish", default="", metavar="FIGURES", help="only copy what has ended to this folder")
    given = parser.parse_args()
    os.environ.setdefault("PNEUMO_QUIET", "1")  # the jobs are copies of this process
    if given.publish:
        publish(Path(given.out).resolve(), Path(given.publish))
        return
    run_all(given)
    pack(Path(given.out))
    print(table(Path(given.out)).to_string(float_format="%.4f"))


if __name__ == "__main__":
    main()
