"""The stages of one run, as the notebooks and the command line call them: data, denoisers, classifiers, predictions."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumo_lib import calibration, evaluation, models, processes, runs, runtime, steps, training
from pneumo_lib.config import Config
from pneumo_lib.data import ImageSet, open_folder, phantom
from pneumo_lib.data.inventory import LEARNT
from pneumo_lib.errors import DataError
from pneumo_lib.runs import Run
from pneumo_lib.steps import Films
from pneumo_lib.system import System

LOSSES = {"autoencoder": "mse", "unet_denoiser": "l1"}
DENOISERS = tuple(LOSSES)
COVERAGES = (0.9, 0.95)  # that conformal sets are made for


@dataclass(frozen=True)
class Protocol:
    """How test films reach a classifier.

    Attributes:
        split: the folder they come from.
        strength: of the noise added to them; 0 adds none.
        kind: of that noise; "" is the one that the network was trained with.
    """

    name: str
    title: str
    split: str
    strength: float
    kind: str = ""


def open_data(config: Config, cache_dir: str | Path) -> ImageSet:
    """The films of a run, decoded, resized and split; phantoms are drawn first where the configuration names no folder.

    Args:
        cache_dir: where decoded films, and phantoms, are kept between runs.
    """
    cache_dir = runtime.locate(cache_dir)
    options = {"image_size": config.image_size, "val_fraction": config.val_fraction, "seed": config.seed}
    with processes.first_before_others():
        root = runtime.locate(config.data_dir) if config.data_dir else _phantoms(config, cache_dir)
        return open_folder(root, cache_dir=cache_dir, progress=runtime.progress, **options)


def films(images: ImageSet, split: str) -> Films:
    """The films of one split as training and evaluation take them; their paths are their keys."""
    part = images.subset(split)
    return Films(part.images, part.labels, part.table["path"].tolist())


def train_denoiser(run: Run, images: ImageSet, name: str) -> training.Fitted:
    """Train one denoiser of the run and store it; a training that was finished before is only loaded.

    The autoencoder sees one strength of noise, as in its source. Ours sees others too (`Config.noise_share`), so that
    it also works where the level is unknown.

    Args:
        name: "autoencoder" or "unet_denoiser".
    """
    config, folder = run.config, run.model_folder("denoiser", name)
    share = config.noise_share if name == "unet_denoiser" and config.noise_kind == "gaussian" else 0.0
    fitted = _fit(
        run, images, name=name, architecture=name, arguments={}, step=steps.DenoisingStep(LOSSES[name]), share=share
    )
    runs.save_model(folder, fitted.model, _card(run, name, {}, fitted) | {"noise": _noise(config, share)})
    return fitted


def train_classifier(run: Run, images: ImageSet, denoiser: str) -> training.Fitted:
    """Train a classifier behind a denoiser of the run, fit its temperature and threshold on validation, store it."""
    config, behind = run.config, run.load_model("denoiser", denoiser)
    name, arguments = classifier_name(denoiser), {"image_size": config.image_size, "n_classes": len(images.classes)}
    share = behind.card["noise"]["share"]
    step = steps.ClassificationStep(behind.model, config.classifier.label_smoothing)
    fitted = _fit(run, images, name=name, architecture="cnn2", arguments=arguments, step=step, share=share)
    logits = evaluation.classify(fitted.model, films(images, "val"), view(config), denoiser=behind.model)
    card = _card(run, "cnn2", arguments, fitted) | {
        "classes": list(images.classes),
        "preprocessing": {
            "image_size": config.image_size,
            "denoiser": denoiser,
            "denoiser_sha256": behind.card["sha256"],
        },
        "noise": _noise(config, share),
        "decision": decide(logits, films(images, "val").labels, config.target_accuracy),
    }
    views = [view(config), evaluation.View()]  # noisy as in training, and as films usually come
    check = evaluation.fit_check(
        fitted.model, films(images, "train"), films(images, "val"), views, denoiser=behind.model
    )
    card["novelty"] = evaluation.store_check(run.model_folder("classifier", name), check)
    runs.save_model(run.model_folder("classifier", name), fitted.model, card)
    return fitted


@dataclass(frozen=True)
class Answers:
    """What a classifier of the run says of the validation films, with the noise of the run.

    Attributes:
        probabilities: (N, C) after temperature; uncalibrated: before.
        predicted: (N,) class indices.
        decision: as `decide` made it.
    """

    probabilities: np.ndarray
    uncalibrated: np.ndarray
    predicted: np.ndarray
    decision: dict[str, Any]


def validate(run: Run, images: ImageSet, denoiser: str) -> Answers:
    """Run the classifier behind that denoiser over the validation films."""
    classifier = run.load_model("classifier", classifier_name(denoiser))
    behind, decision = run.load_model("denoiser", denoiser).model, classifier.card["decision"]
    logits = evaluation.classify(classifier.model, films(images, "val"), view(run.config), denoiser=behind)
    prob = calibration.softmax(logits, decision["temperature"])
    return Answers(prob, calibration.softmax(logits), logits.argmax(axis=1), decision)


def decide(logits: np.ndarray, labels: np.ndarray, target_accuracy: float) -> dict[str, Any]:
    """What is fixed on validation films: temperature, threshold below which a film stays undecided, conformal cut-offs.

    Args:
        logits: (N, C); labels: (N,).
        target_accuracy: fraction that the decided films shall reach.

    Returns:
        temperature, threshold, what the threshold reaches on these films, and `conformal`: by wanted coverage (a
        fraction, as text) the cut-off of each class, for probabilities at that temperature.
    """
    temperature = calibration.fit_temperature(logits, labels)
    probabilities = calibration.softmax(logits, temperature)
    threshold = calibration.choose_threshold(labels, probabilities, target_accuracy=target_accuracy)
    return {
        "temperature": temperature,
        "threshold": threshold.value,
        "target_accuracy": target_accuracy,
        "target_reached": threshold.reached,
        "val_coverage": threshold.coverage,
        "val_accuracy": threshold.accuracy,
        "conformal": {
            f"{wanted:g}": calibration.conformal_cutoffs(labels, probabilities, coverage=wanted).tolist()
            for wanted in COVERAGES
        },
    }


def classifier_name(denoiser: str) -> str:
    """Folder name of the classifier trained behind that denoiser."""
    return f"cnn2_on_{denoiser}"


def view(config: Config) -> evaluation.View:
    """The noise of the run, as validation and test films get it."""
    return evaluation.View(config.noise_kind, config.sigma, config.seed)


def shown(protocol: Protocol, card: dict[str, Any]) -> evaluation.View:
    """How films reach the network of a card under a protocol."""
    return evaluation.View(protocol.kind or card["noise"]["kind"], protocol.strength, card["seed"])


def views(card: dict[str, Any]) -> list[evaluation.View]:
    """How films reach the network of a card under all of its protocols, each way once."""
    return list(dict.fromkeys(shown(Protocol(**one), card) for one in card["protocols"]))


def protocols(config: Config, images: ImageSet) -> list[Protocol]:
    """The source's two protocols and the clean one it never measured; noisy_test only where the set has that folder."""
    found = [
        Protocol("test_noise", f"test + noise {config.sigma:g}", "test", config.sigma),
        Protocol("noisy_test", "noisy_test as it is", "noisy_test", 0.0),
        Protocol("clean", "test as it is", "test", 0.0),
    ]
    there = set(images.table["split"])
    if "test" not in there:
        raise DataError(f"{images.root} has no test films; found are {', '.join(sorted(there))}.")
    return [protocol for protocol in found if protocol.split in there]


def predict(run: Run, images: ImageSet, denoiser: str, protocol: Protocol) -> pd.DataFrame:
    """Denoise and classify the films of a protocol.

    Returns:
        One row per film: path, split, protocol, system, label and predicted (class names), p_CLASS (probabilities
        before temperature, fractions).
    """
    name = classifier_name(denoiser)
    classifier = run.load_model("classifier", name)
    shown = films(images, protocol.split)
    seen = evaluation.View(run.config.noise_kind, protocol.strength, run.config.seed)
    logits = evaluation.classify(classifier.model, shown, seen, denoiser=run.load_model("denoiser", denoiser).model)
    probabilities, classes = calibration.softmax(logits), np.array(images.classes)
    facts = {"path": shown.keys, "split": protocol.split, "protocol": protocol.name, "system": name}
    answers = {"label": classes[shown.labels], "predicted": classes[logits.argmax(axis=1)]}
    return pd.DataFrame(facts | answers | {f"p_{c}": probabilities[:, k] for k, c in enumerate(classes)})


def compare(predictions: pd.DataFrame, source: System | None) -> pd.DataFrame:
    """Accuracy per system and protocol with intervals, and what the source reported of that protocol (NaN if nothing).

    Args:
        source: the system whose data these are; None where the films are others, phantoms for example.
    """
    table = evaluation.accuracies(predictions)
    reported = {name: figure.accuracy for name, figure in source.reported.items()} if source else {}
    own = table["system"] == classifier_name("autoencoder")
    return table.assign(reported=table["protocol"].map(reported).where(own).astype(float))


def copies(pairs: pd.DataFrame) -> set[str]:
    """Paths of the films with an exact or near copy in train or val, by the pairs of `data.audit`."""
    learnt_a, learnt_b = (pairs[split].isin(LEARNT) for split in ("split_a", "split_b"))
    return set(pairs["path_a"][learnt_b]) | set(pairs["path_b"][learnt_a])


def without(predictions: pd.DataFrame, known: Collection[str]) -> pd.DataFrame:
    """The rows of films that are not among the known ones, by their paths."""
    return predictions[~predictions["path"].isin(known)]


def cases(predictions: pd.DataFrame, n: int, *, classes: tuple[str, ...]) -> pd.DataFrame:
    """For each true class the `n` right and the `n` wrong answers of highest confidence; `right` says which."""
    sure = predictions.filter(like="p_").max(axis=1)
    ranked = predictions.assign(right=predictions["label"] == predictions["predicted"], sure=sure)
    ranked = ranked.sort_values("sure", ascending=False, kind="stable")
    parts = [
        ranked[(ranked["label"] == name) & (ranked["right"] == right)].head(n)
        for name in classes
        for right in (True, False)
    ]
    return pd.concat(parts, ignore_index=True)


def films_at(images: ImageSet, paths: pd.Series) -> Films:
    """The films with those paths, in that order."""
    rows = pd.Series(range(len(images)), index=images.table["path"]).loc[list(paths)].to_numpy()
    return Films(images.images[rows], images.labels[rows], list(paths))


def _phantoms(config: Config, cache_dir: Path) -> Path:
    size, share = max(config.image_size, 128), config.phantoms
    folder, counts = cache_dir / f"phantom_{size}px_seed{config.seed}_x{share:g}", phantom.scaled_counts(share)
    return phantom.write_folder(folder, counts=counts, size=size, seed=config.seed, progress=runtime.progress)


def _fit(
    run: Run, images: ImageSet, *, name: str, architecture: str, arguments: dict, step: steps.Step, share: float
) -> training.Fitted:
    config, role = run.config, "denoiser" if architecture in DENOISERS else "classifier"
    runtime.seed_everything(config.seed)
    task = training.Task(
        step=step,
        train=films(images, "train"),
        val=films(images, "val"),
        corruption=steps.Corruption(config.noise_kind, config.sigma, share=share),
        recipe=getattr(config, architecture if role == "denoiser" else role),
        seed=config.seed,
        precision=config.precision,
        name=name,
    )
    return training.fit(models.build(architecture, **arguments), task, run.model_folder(role, name))


def _card(run: Run, architecture: str, arguments: dict, fitted: training.Fitted) -> dict:
    last = fitted.history.iloc[fitted.best_epoch - 1]
    return {
        "architecture": architecture,
        "arguments": arguments,
        "parameters": models.count_parameters(fitted.model),
        "preset": run.config.preset,
        "trained_on": Path(run.config.data_dir).name or "phantoms",
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "metrics": {"val_loss": last["val_loss"], "val_score": last["val_score"]},
    }


def _noise(config: Config, share: float) -> dict:
    return {"kind": config.noise_kind, "strength": config.sigma, "share": share}
