"""What the published trainings say together: systems over seeds, what parts of a recipe are worth, paired tests.

`benchmarks/evidence.py` makes them; `figures/seeds/SYSTEM/seed_K/` holds what each network said of each film:
predictions.csv of the test films, val.csv of the validation films, history.csv, model.json.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo_lib import answers, metrics, pipeline
from pneumo_lib.answers import PREDICTIONS
from pneumo_lib.data.audit import read_pairs
from pneumo_lib.data.inventory import FACTS, read_inventory
from pneumo_lib.errors import DataError
from pneumo_lib.metrics import Estimate

SEEDS, PAIRS = "seeds", "audit_pairs.csv"
SOURCES = "controls/source_of_the_film"
ROBUSTNESS = "robustness"  # tables of `robustness.corrupted`, SPLIT_VARIANT_seed_K.csv
DENOISERS, QUALITY, LEVELS = "denoisers", "quality.csv", "levels.csv"
MIRRORED = "mean of both ways round"  # end of a method's name in QUALITY: a network averaged with itself
VALIDATION = "val.csv"
MEAN = "mean of the seeds"
OURS, SOURCE = "resnet18_s2d", "cnn2_on_autoencoder"
SOURCE_FULL = f"{SOURCE}_full"  # trained as long as the source did
CHANGES = {  # to our recipe, by the name that folders have, and how tables tell them
    "balanced": "classes drawn equally often",
    "augmented": "every film augmented",
    "no_augmentation": "no augmentation",
    "contrast": "contrast 0.2 to 1.8",
    "no_mixup": "no mixup",
    "no_mean_of_weights": "no running mean of weights",
    "no_mean_nor_mixup": "neither mixup nor running mean of weights",
    "mirrored": "test films also mirrored, averaged",
    "denoising_first": "after as many epochs in which the same layers learnt to denoise",
    "no_anti-aliasing": "strides without averaging before them (no anti-aliasing)",
    "behind_a_denoiser": "the films cleaned by a U-Net",
    "twice_as_wide": "twice as wide",
}
REDUCED = {"small": "128 px, 30 epochs", "short": "128 px, 12 epochs"}  # rows of less work, each with its changes
VARIANTS = {f"{OURS}_{name}": told for name, told in CHANGES.items()}
for _length, _told in REDUCED.items():
    VARIANTS[f"{OURS}_{_length}"] = f"{_length}: {_told}"
    VARIANTS |= {f"{OURS}_{_length}_{name}": f"{_length}, {told}" for name, told in CHANGES.items()}


def reference(variant: str) -> str:
    """The row that a variant is held against: the one of its size and length, or the recipe itself."""
    return next((name for name in (f"{OURS}_{length}" for length in REDUCED) if variant.startswith(f"{name}_")), OURS)


def repeated(figures: Path, file: str = PREDICTIONS) -> pd.DataFrame:
    """What the networks of every system and seed said of every film.

    Args:
        figures: folder with `seeds/`.
        file: PREDICTIONS of test films, or VALIDATION.

    Returns:
        Rows of `answers.read_predictions` with `seed`, and the folder's name as `system`.

    Raises:
        DataError: there are none.
    """
    found = sorted((figures / SEEDS).glob(f"*/seed_*/{file}"))
    if not found:
        raise DataError(
            f"{figures / SEEDS} holds no SYSTEM/seed_K/{file}. `benchmarks/evidence.py --publish` makes them."
        )
    tables = [
        answers.read_predictions(path).assign(system=path.parent.parent.name, seed=int(path.parent.name.split("_")[1]))
        for path in found
    ]
    return pd.concat(tables, ignore_index=True)


def cards(figures: Path) -> dict[str, list[dict]]:
    """The cards of every system, by the folder's name, in the order of their seeds."""
    found: dict[str, list[dict]] = {}
    for path in sorted((figures / SEEDS).glob("*/seed_*/model.json")):
        found.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text()))
    return found


def averaged(said: pd.DataFrame) -> pd.DataFrame:
    """The mean of the probabilities of a system's seeds, as one more network: rows of `repeated` without `seed`.

    Source: Lakshminarayanan, Pritzel and Blundell 2017. Validation splits differ between seeds: for test films only.
    """
    given = [name for name in said if name.startswith("p_")]
    keys = ["system", "protocol", "path", "label", "split"]
    mean = said.groupby(keys, sort=False, as_index=False)[given].mean()
    classes = np.array([name.removeprefix("p_") for name in given])
    return mean.assign(predicted=classes[mean[given].to_numpy().argmax(axis=1)])


def known_films(figures: Path) -> set[str]:
    """Paths of films whose copy or patient stands in training or validation; a DataError without PAIRS and FACTS."""
    return pipeline.copies(read_pairs(figures / PAIRS)) | set(read_inventory(figures / FACTS)["acquainted"])


def over_seeds(said: pd.DataFrame, known: Collection[str]) -> pd.DataFrame:
    """Every system under every protocol, over its seeds.

    Args:
        said: as `repeated` gives it.
        known: films that `distinct` leaves out, as `known_films` names them.

    Returns:
        system, protocol, seeds (number); accuracy, distinct (without those films), averaged
        (`averaged`, with more than one seed): Estimate; lowest and highest accuracy of a seed; recall: by class, means
        over seeds. The interval of a mean is Wilson's as if the films had been tested once.
    """
    alone, together, rows = said[~said["path"].isin(known)], averaged(said), []
    for (system, protocol), part in said.groupby(["system", "protocol"], sort=False):
        by_seed = [_right(one) for _, one in part.groupby("seed")]
        values = [one.value for one in by_seed]
        hit = part["label"] == part["predicted"]
        same = alone[(alone["system"] == system) & (alone["protocol"] == protocol)]
        mean = together[(together["system"] == system) & (together["protocol"] == protocol)]
        rows.append(
            {"system": system, "protocol": protocol, "seeds": len(values), "accuracy": _mean(by_seed)}
            | {"lowest": min(values), "highest": max(values)}
            | {"recall": hit.groupby(part["label"]).mean().to_dict()}
            | {"distinct": _mean([_right(one) for _, one in same.groupby("seed")]) if len(same) else _right(same)}
            | {"averaged": _right(mean) if len(values) > 1 else None}
        )
    return pd.DataFrame(rows)


def reruns(said: pd.DataFrame) -> pd.DataFrame:
    """Whether a rerun under another seed lands where one seed's interval says.

    Returns:
        One row per ordered pair of seeds of a system and protocol: system, protocol, seed (whose Wilson interval is
        taken), other (whose accuracy is held against it), inside.
    """
    rows = []
    for (system, protocol), part in said.groupby(["system", "protocol"], sort=False):
        found = {seed: _right(one) for seed, one in part.groupby("seed")}
        for seed, other in permutations(found, 2):
            inside = found[seed].low <= found[other].value <= found[seed].high
            facts = {"system": system, "protocol": protocol, "seed": seed, "other": other}
            rows.append(facts | {"inside": inside})
    return pd.DataFrame(rows, columns=["system", "protocol", "seed", "other", "inside"])


def always_wrong(said: pd.DataFrame) -> pd.DataFrame:
    """The films that every network has wrong: path, label.

    Args:
        said: as `repeated` gives it, of one protocol.
    """
    wrong = (said["label"] != said["predicted"]).groupby([said["path"], said["label"]]).all()
    return wrong[wrong].index.to_frame(index=False)


def paired(said: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Two systems on the same films, seed by seed, and the means of the seeds that both have.

    Returns:
        protocol, seed (a number, or MEAN), difference (Estimate, accuracy of the first minus the second), only_first,
        only_second (films), p (exact McNemar test).
    """
    both = said[said["system"].isin([first, second])]
    both = both[both.groupby("seed")["system"].transform("nunique") == 2]
    rows = []
    for seed, part in [*both.groupby("seed"), (MEAN, averaged(both))]:
        ordered = part.sort_values("system", key=lambda names: names != first, kind="stable")
        rows.append(answers.disagreements(ordered).assign(seed=seed))
    kept = ["protocol", "seed", "difference", "only_first", "only_second", "p"]
    return pd.concat(rows, ignore_index=True)[kept].sort_values("protocol", kind="stable", ignore_index=True)


def differences(said: pd.DataFrame) -> pd.DataFrame:
    """Every variant of our recipe against its `reference`, over the seeds that both have, by `paired`.

    Args:
        said: as `repeated` gives it; of test films the seeds' answers are averaged, of validation films, which differ
            between seeds, these are nearly all of them together.

    Returns:
        system, protocol, difference (Estimate), p; nothing of a variant that shares no seed.
    """
    parts, seeds = [], said.groupby("system")["seed"].agg(set).to_dict()
    for name in VARIANTS:
        if seeds.get(name, set()) & seeds.get(reference(name), set()):
            table = paired(said, name, reference(name))
            parts.append(table[table["seed"] == MEAN].assign(system=name))
    columns = ["system", "protocol", "difference", "p"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def ablation(validation: pd.DataFrame, systems: Sequence[str]) -> pd.DataFrame:
    """Variants of a recipe on validation films: mean over seeds of accuracy and log loss (nats), by protocol.

    Returns:
        system, protocol, seeds, accuracy, loss; loss is of the calibrated probabilities.
    """
    told = validation.assign(hit=validation["label"] == validation["predicted"], loss=log_losses(validation))
    by_seed = told[told["system"].isin(systems)].groupby(["system", "protocol", "seed"])[["hit", "loss"]].mean()
    means = by_seed.groupby(["system", "protocol"]).agg(
        seeds=("hit", "size"), accuracy=("hit", "mean"), loss=("loss", "mean")
    )
    return means.reset_index()


def log_losses(said: pd.DataFrame) -> np.ndarray:
    """(N,) minus the logarithm of the true class's probability (nats), which counts as 1e-6 at least."""
    chance = [row[f"p_{row['label']}"] for row in said.to_dict("records")]
    return -np.log(np.clip(np.array(chance, float), 1e-6, 1))


def fastest_epochs(figures: Path) -> dict[str, str]:
    """By system, how long the fastest epoch of any of its seeds took (seconds, the least disturbed one) and on what."""
    found: dict[str, tuple[float, str]] = {}
    for path in sorted((figures / SEEDS).glob("*/seed_*/history.csv")):
        seconds = float(pd.read_csv(path)["seconds"].min())
        device = json.loads((path.parent / "model.json").read_text()).get("device", "machine not recorded")
        name = path.parent.parent.name
        found[name] = min(found.get(name, (seconds, device)), (seconds, device))
    return {name: f"{seconds:.1f} s, {device}" for name, (seconds, device) in found.items()}


def _right(part: pd.DataFrame) -> Estimate:
    return metrics.wilson(int((part["label"] == part["predicted"]).sum()), len(part))


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of accuracies on the same films, with the interval as if these had been tested once."""
    value, n = float(np.mean([one.value for one in estimates])), estimates[0].n
    return replace(metrics.wilson(round(value * n), n), value=value)
