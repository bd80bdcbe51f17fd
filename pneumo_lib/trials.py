"""One network trained on its recipe and tested: what every comparison is made of.

A `Trial` is one network with its films and its recipe. `learn` trains it and fixes, on validation films, whatever is
chosen there; `answer` then opens the test films. What is finished is read back instead of being made again.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from pneumo_lib import (
    augmentation,
    calibration,
    evaluation,
    models,
    pipeline,
    processes,
    runs,
    runtime,
    steps,
    training,
    training_machinery,
)
from pneumo_lib.answers import PREDICTIONS, Finished, decided, read, read_card
from pneumo_lib.config import Config
from pneumo_lib.data import CARDS, ImageSet
from pneumo_lib.models.ensemble import Ensemble
from pneumo_lib.recipe import Scale
from pneumo_lib.steps import Films
from pneumo_lib.system import System


@dataclass(frozen=True)
class Fold:
    """Which part of a cross-validation a trial is: the `number`-th of `k`, from 0, in which repeat."""

    k: int
    number: int
    repeat: int


@dataclass(frozen=True)
class Trial:
    """One network, and everything that decides what it will say of the test films.

    Attributes:
        system: network, input and recipe, shortened already.
        images: films of that size, split.
        dataset: name of the data set, a card's where there is one.
        folder: where its files are kept.
        scale: how far the recipe was shortened; it bounds the films drawn.
        seed: of weights, order, noise and drawn films.
        noise_kind, sigma: noise put on every film; sigma 0 for none.
        share: of the training films that get another strength, drawn up to 1.2 sigma (gaussian only).
        denoiser: cleans the noisy films first; None lets the network see them as they are.
        weights: "none" starts from scratch, "imagenet" from torchvision's.
        precision: as in Config.
        preset: the name it is reported under.
        protocol: the name its predictions carry.
        more_protocols: other ways in which test films reach it.
        target_accuracy: what the films not left undecided shall reach on validation; a fraction.
        fold: part of a cross-validation, if any.
        val_fraction: share of the training patients held out, for whoever opens the films again.
    """

    system: System
    images: ImageSet
    dataset: str
    folder: Path
    scale: Scale = field(default_factory=Scale)
    seed: int = 0
    noise_kind: str = "gaussian"
    sigma: float = 0.0
    share: float = 0.0
    denoiser: nn.Module | None = None
    weights: str = "none"
    precision: str = "auto"
    preset: str = "full"
    protocol: str = "clean"
    more_protocols: tuple[pipeline.Protocol, ...] = ()
    val_fraction: float = 0.1
    target_accuracy: float = Config.target_accuracy
    fold: Fold | None = None

    @property
    def view(self) -> evaluation.View:
        """How validation and test films reach the network."""
        return evaluation.View(self.noise_kind, self.sigma, self.seed)

    @property
    def protocols(self) -> tuple[pipeline.Protocol, ...]:
        """How test films reach the network; the first is what its table shows."""
        return (pipeline.Protocol(self.protocol, self.protocol, "test", self.sigma), *self.more_protocols)

    def films(self, split: str) -> Films:
        """The films of a split, as many as the scale allows."""
        most = {"train": self.scale.train_images, "val": self.scale.val_images, "test": self.scale.test_images}[split]
        return pipeline.films(self.images, split).draw(most, seed=self.seed)

    def task(self) -> training.Task:
        """What `training.fit` is asked for."""
        return training.Task(
            step=steps.ClassificationStep(self.denoiser, self.system.recipe.label_smoothing),
            train=self.films("train"),
            val=self.films("val"),
            corruption=steps.Corruption(self.noise_kind, self.sigma, share=self.share),
            recipe=self.system.recipe,
            seed=self.seed,
            precision=self.precision,
            name=f"{self.system.name} on {self.dataset}",
        )

    def fresh(self) -> nn.Module:
        """The network before training, drawn from the seed."""
        runtime.seed_everything(self.seed)
        return models.build(self.system.model, **self.arguments, weights=self.weights)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network is built from."""
        size = {"image_size": self.system.image_size, "n_classes": len(self.images.classes)}
        return size | dict(self.system.arguments)


def learn(trial: Trial, *, keep: bool = True) -> runs.SavedModel:
    """Train the network of a trial and store it with its card; one that was finished before is only loaded.

    Temperature and operating point are fixed here, on validation films.

    Args:
        keep: store its weights beside the card.

    Raises:
        TrainingError: its folder holds a training of other films, recipe, seed or scale.
    """
    task = trial.task()
    fitted = _fit(trial, task)
    logits = evaluation.classify(fitted.model, task.val, trial.view, denoiser=trial.denoiser)
    decision = pipeline.decide(logits, task.val.labels, trial.target_accuracy) | operating_point(
        trial, logits, task.val.labels
    )
    if read_card(trial.folder).get("trial") != _identity(trial):
        (trial.folder / PREDICTIONS).unlink(missing_ok=True)  # answers of another network, whose weights were forgotten
    saved = runs.SavedModel(fitted.model, _card(trial, task, fitted) | {"decision": decision})
    if keep:
        check = evaluation.fit_check(
            fitted.model, task.train, task.val, pipeline.views(saved.card), denoiser=trial.denoiser
        )
        saved.card["novelty"] = evaluation.store_check(trial.folder, check)
        runs.save_model(trial.folder, saved.model, saved.card)
    else:
        runs.write_card(trial.folder, saved.card)
    return saved


def _fit(trial: Trial, task: training.Task) -> training.Fitted:
    """The trained network; the members of an ensemble one after the other, under seeds that count up from the trial's.

    The history of an ensemble is the mean of its members', but for the seconds, which add up; its best epoch is the
    mean of theirs.
    """
    model = trial.fresh()
    if not isinstance(model, Ensemble):
        return training.fit(model, task, trial.folder)
    fitted = []
    for k, member in enumerate(model.members):
        own = replace(task, seed=task.seed + k, name=f"{task.name}, member {k + 1} of {len(model.members)}")
        fitted.append(training.fit(member, own, trial.folder / f"member_{k + 1}"))
    together = pd.concat([one.history for one in fitted]).groupby("epoch", as_index=False)
    history = together.mean().assign(seconds=together.sum()["seconds"])
    runs.write_text(trial.folder / "history.csv", history.to_csv(index=False))
    return training.Fitted(task.name, model.eval(), history, round(np.mean([one.best_epoch for one in fitted])))


def positive(dataset: str, classes: Sequence[str]) -> str | None:
    """Of two classes the one that counts as a finding: the card's, or the last; None with more."""
    known = CARDS.get(dataset)
    if len(classes) > 2:
        return None
    return known.positive if known and known.positive in classes else classes[-1]


def operating_point(trial: Trial, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Where two classes part, by the rule of the data set's card.

    Kermany's test films look different from its training films, so half a probability is too low a bar there: the
    bar is put as high as still finds that share of the findings on validation which the card asks for.

    Args:
        logits, labels: (N, C) and (N,), of validation films.

    Returns:
        cut: the probability, after temperature, that a finding needs; None where the most probable class is taken.
    """
    known, finding = CARDS.get(trial.dataset), positive(trial.dataset, trial.images.classes)
    if known is None or not known.sensitivity or finding not in known.classes:
        return {"cut": None}
    k = trial.images.classes.index(finding)
    found = np.sort(calibration.softmax(logits, calibration.fit_temperature(logits, labels))[labels == k, k])
    return {"cut": float(found[int((1 - known.sensitivity) * len(found) + 1e-9)]) if len(found) else None}


def answer(trial: Trial, *, keep: bool = True) -> Finished:
    """What the network of a trial says of the test films, trained first if need be.

    Args:
        keep: leave its weights in the folder; otherwise its predictions, history and card stay.
    """
    identity = _identity(trial)
    if processes.by_first(
        lambda: (trial.folder / PREDICTIONS).exists() and read_card(trial.folder).get("trial") == identity
    ):
        return read(trial.folder)
    done = test(trial.folder, trial.images, learn(trial, keep=keep), denoiser=trial.denoiser)
    if not keep:
        processes.by_first(lambda: forget(trial.folder))
    return done


def test(folder: Path, images: ImageSet, saved: runs.SavedModel, *, denoiser: nn.Module | None = None) -> Finished:
    """Open the test films for a trained network, under each protocol of its card, and store its answers."""
    card = saved.card
    said = [say(pipeline.Protocol(**one), images, saved, denoiser) for one in card["protocols"]]
    runs.write_text(folder / PREDICTIONS, pd.concat(said).to_csv(index=False))
    return read(folder)


def forget(folder: Path) -> None:
    """Delete the weights of a trial whose predictions are stored."""
    for name in ("model.safetensors", evaluation.CHECK):
        (folder / name).unlink(missing_ok=True)
    for state in [*folder.rglob("state_*")]:
        shutil.rmtree(state)


def say(
    protocol: pipeline.Protocol, images: ImageSet, saved: runs.SavedModel, denoiser: nn.Module | None = None
) -> pd.DataFrame:
    """What a network says of the films of one protocol: a row per film, as in `Finished.predictions`."""
    card, classes = saved.card, np.array(saved.card["classes"])
    films = pipeline.films(images, protocol.split).draw(card["scale"]["test_images"], seed=card["seed"])
    logits = evaluation.classify(saved.model, films, pipeline.shown(protocol, card), denoiser=denoiser)
    probabilities = calibration.softmax(logits, card["decision"]["temperature"])
    facts = {"path": films.keys, "split": protocol.split, "protocol": protocol.name, "system": card["system"]}
    answers = {"label": classes[films.labels], "predicted": classes[decided(probabilities, card)]}
    return pd.DataFrame(facts | answers | {f"p_{c}": probabilities[:, k] for k, c in enumerate(classes)})


def _identity(trial: Trial) -> str:
    """Hash of what decides the predictions, weights and pixels represented by what they come from."""
    facts = [repr((trial.system.model, trial.arguments, trial.system.recipe, trial.scale)), trial.images.identity]
    facts += [trial.dataset, trial.seed, trial.weights, trial.noise_kind, trial.sigma, trial.share, trial.precision]
    return training_machinery.fingerprint(facts, trial.denoiser)


def _card(trial: Trial, task: training.Task, fitted: training.Fitted) -> dict[str, Any]:
    last = fitted.history.iloc[fitted.best_epoch - 1]
    return {
        "trial": _identity(trial),
        "system": trial.system.name,
        "architecture": trial.system.model,
        "arguments": trial.arguments,
        "classes": list(trial.images.classes),
        "dataset": trial.dataset,
        "root": str(trial.images.root),
        "positive": positive(trial.dataset, trial.images.classes),
        "protocol": trial.protocols[0].name,
        "protocols": [asdict(one) for one in trial.protocols],
        "preset": trial.preset,
        "scale": asdict(trial.scale),
        "val_fraction": trial.val_fraction,
        "fold": asdict(trial.fold) if trial.fold else None,
        "starting_weights": trial.weights,
        "recipe": task.recipe.text(),
        "augmentation": augmentation.describe(task.recipe.augmentation),
        "preprocessing": {
            "image_size": trial.system.image_size,
            "denoiser": "not stored" if trial.denoiser is not None else None,
        },
        "noise": {"kind": trial.noise_kind, "strength": trial.sigma, "share": trial.share},
        "parameters": models.count_parameters(fitted.model),
        "train_images": len(task.train),
        "val_images": len(task.val),
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "seconds": fitted.history["seconds"].sum(),
        "device": runtime.device_name(),
        "seed": trial.seed,
        "metrics": {"val_loss": last["val_loss"], "val_score": last["val_score"]},
    }
