"""Tables of finished trials: accuracy with intervals beside the source's figure, cost, paired tests, seeds."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pneumo_lib import metrics, models
from pneumo_lib.answers import Finished
from pneumo_lib.errors import DataError
from pneumo_lib.metrics import Estimate
from pneumo_lib.systems import SYSTEMS

AVERAGES = ("precision", "recall", "f1", "auc")
SCORES = ("accuracy", "plain", "auc", "sensitivity", "specificity")


def standings(finished: Sequence[Finished], *, n_boot: int = 1000) -> pd.DataFrame:
    """One row per trial; within each data set the most accurate first.

    Returns:
        dataset, system, report; SCORES as `Estimate`; reported (the source's accuracy on that data, NaN if none);
        p (exact McNemar test against the data set's best); what its card says: parameters, image_size, train_images,
        epochs, minutes, preset.
    """
    scored = [_row(one, n_boot) for one in finished]
    rows = pd.DataFrame(scored, index=range(len(scored)))
    rows["first"] = [cell.value for cell in rows["accuracy"]]
    rows = rows.sort_values(["dataset", "first"], ascending=[True, False], kind="stable")
    best = rows.reset_index().groupby("dataset")["index"].first()
    rows["p"] = [paired(finished[i], finished[best[name]]).p for i, name in rows["dataset"].items()]
    return rows.drop(columns="first").reset_index(drop=True)


def _row(one: Finished, n_boot: int) -> dict[str, Any]:
    card, system = one.card, SYSTEMS.get(one.card["system"])
    known = system.reported if system else {}
    reported = known.get(card["dataset"]) or known.get(card["protocol"])
    facts = {"dataset": card["dataset"], "system": card["system"], "report": system.report if system else ""}
    said = {"reported": reported.accuracy if reported else float("nan"), "minutes": card["seconds"] / 60}
    cost = {"image_size": card["arguments"]["image_size"], "best_epoch": card["best_epoch"]}
    told = {name: card[name] for name in ("parameters", "train_images", "epochs", "starting_weights")}
    told["preset"] = _preset(card)
    return facts | scores(one, n_boot=n_boot) | said | cost | told


def _preset(card: Mapping[str, Any]) -> str:
    """The preset's name, and whether the system's recipe was shortened: a full one must not be taken for granted."""
    return card["preset"] + (", shortened" if any(card.get("scale", {}).values()) else "")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`standings` or `cross_validated` as texts, for people: what was measured, on what, and how it was trained."""
    crossed, columns = "folds" in table, {}
    columns["data"] = [
        f"{name}, n = {cell.n:,}" for name, cell in zip(table["dataset"], table["accuracy"], strict=True)
    ]
    columns["system"] = list(table["system"])
    columns["accuracy"] = [cell.percent() for cell in table["accuracy"]]
    if crossed:
        columns["of the repeats"] = [f"{a:.1%} to {b:.1%}" for a, b in table[["lowest", "highest"]].to_numpy()]
    columns["AUC"] = [cell.text() for cell in table["auc"]]
    if not crossed:
        pairs = table[["sensitivity", "specificity"]].to_numpy()
        columns["sensitivity / specificity"] = [f"{a.value:.1%} / {b.value:.1%}" for a, b in pairs]
        columns["most probable class"] = [f"{cell.value:.1%}" for cell in table["plain"]]
        columns["reported"] = ["" if np.isnan(value) else f"{value:.1%}" for value in table["reported"]]
        first = ~table["dataset"].duplicated()  # of its data set the best, which the others are held against
        columns["p"] = ["–" if best else _p(p) for best, p in zip(first, table["p"], strict=True)]
    return pd.DataFrame(columns | {"trained": [_trained(row) for _, row in table.iterrows()]})


def _p(p: float) -> str:
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def _trained(row: pd.Series) -> str:
    start = "" if row["starting_weights"] == "none" else f", from {row['starting_weights']}"
    how = f", {row['repeats']} x {row['folds']} folds" if "folds" in row else f" (best {row['best_epoch']})"
    size = f"{row['image_size']} px, {row['train_images']:,} films, {row['epochs']} epochs{how}"
    return f"{size}, {row['minutes']:.0f} min, preset {row['preset']}{start}"


def scores(one: Finished, *, n_boot: int = 1000) -> dict[str, Estimate]:
    """SCORES of a trial with 95 % intervals.

    accuracy is at the operating point fixed on validation, plain takes the most probable class. Of two classes, auc,
    sensitivity and specificity are those of the positive one; of more, the macro averages.
    """
    y_true, y_pred, y_prob, k = one.y_true, one.y_pred, one.y_prob, one.positive
    right = {"accuracy": metrics.accuracy(y_true, y_pred), "plain": metrics.accuracy(y_true, y_prob.argmax(axis=1))}
    options = {"strata": y_true, "n_boot": n_boot, "seed": 0}
    if k is None:
        macro = metrics.classification_table(y_true, y_prob, one.classes, seed=0, n_boot=n_boot)
        last = macro.loc["macro average"]
        return right | {"auc": last["auc"], "sensitivity": last["recall"], "specificity": last["specificity"]}
    area = metrics.bootstrap(lambda t, p: metrics.auc(t, p)[k], y_true, y_prob, **options)
    hit = {True: (y_pred == k)[y_true == k], False: (y_pred != k)[y_true != k]}
    found, spared = (metrics.wilson(int(hit[part].sum()), len(hit[part])) for part in (True, False))
    return right | {"auc": area, "sensitivity": found, "specificity": spared}


def paired(one: Finished, other: Finished) -> metrics.McNemar:
    """Exact McNemar test of two trials on the test films that both have answered; a DataError if there are none."""
    both = one.predictions.merge(other.predictions, on=["path", "label"], suffixes=("_a", "_b"))
    if not len(both):
        raise DataError(f"{one.folder} and {other.folder} were tested on no film in common: keep them in other runs.")
    labels = {name: k for k, name in enumerate(one.classes)}
    codes = [both[name].map(labels).to_numpy() for name in ("label", "predicted_a", "predicted_b")]
    return metrics.mcnemar(*codes)


def averages(finished: Sequence[Finished], *, n_boot: int = 1000) -> pd.DataFrame:
    """Report B's columns, one row per trial: condition, system, accuracy and the macro AVERAGES, as `Estimate`."""
    rows = []
    for one in finished:
        table = metrics.classification_table(one.y_true, one.y_prob, one.classes, seed=0, n_boot=n_boot)
        macro = table.loc["macro average", list(AVERAGES)].to_dict()
        facts = {"condition": one.card["protocol"], "system": one.card["system"]}
        rows.append(facts | {"accuracy": metrics.accuracy(one.y_true, one.y_pred)} | macro)
    return pd.DataFrame(rows)


def costs(names: Sequence[str], image_size: int, *, n_classes: int = 3, repeats: int = 15) -> pd.DataFrame:
    """What each architecture costs: parameters, GFLOPs per film, median milliseconds for one film, in evaluation.

    The networks take turns film by film, so that whatever else the machine does slows all of them alike.
    """
    networks = {name: models.build(name, image_size=image_size, n_classes=n_classes).eval() for name in names}
    milliseconds = _latencies(networks, image_size, repeats)
    rows = [
        {
            "system": name,
            "parameters": models.count_parameters(network),
            "gflops": models.count_flops(network, image_size) / 1e9,
            "milliseconds": milliseconds[name],
        }
        for name, network in networks.items()
    ]
    return pd.DataFrame(rows)


@torch.inference_mode()
def _latencies(networks: Mapping[str, nn.Module], image_size: int, repeats: int) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    film, times = torch.rand(1, 1, image_size, image_size, device=device), {name: [] for name in networks}
    ready = {name: network.to(device, memory_format=torch.channels_last) for name, network in networks.items()}
    for _ in range(repeats + 2):  # two rounds to warm up
        for name, network in ready.items():
            started = time.perf_counter()
            network(film).sum().item()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def cross_validated(folds: Sequence[Finished], *, n_boot: int = 1000) -> pd.DataFrame:
    """Repeated cross-validations: every film is tested once per repeat.

    Returns:
        One row per data set and system: accuracy (mean over repeats, Wilson interval as if the films had been tested
        once), auc (value and bootstrap bounds, means over repeats), lowest and highest accuracy of a repeat,
        repeats, folds, and what the cards say. A repeat with folds missing is left out.
    """
    rows, cards = [], pd.DataFrame([one.card | one.card["fold"] for one in folds])
    for _, part in cards.groupby(["dataset", "system"], sort=True):
        card = part.iloc[0]
        whole = [same.index for _, same in part.groupby("repeat") if len(same) == card["k"]]
        if not whole:
            continue
        repeats = [pd.concat(folds[i].predictions for i in index) for index in whole]
        right = [metrics.accuracy(one["label"].eq(one["predicted"]), np.ones(len(one), int)) for one in repeats]
        mean, n = float(np.mean([one.value for one in right])), right[0].n
        rows.append(
            {name: card[name] for name in ("dataset", "system", "parameters", "starting_weights")}
            | {"preset": _preset(card)}
            | {"accuracy": replace(metrics.wilson(round(mean * n), n), value=mean)}
            | {"auc": _mean_auc(repeats, folds[whole[0][0]], n_boot)}
            | {"lowest": min(one.value for one in right), "highest": max(one.value for one in right)}
            | {"repeats": len(whole), "folds": card["k"], "image_size": card["arguments"]["image_size"]}
            | {"epochs": int(part["epochs"].max()), "train_images": int(part["train_images"].mean())}
            | {"minutes": part["seconds"].sum() / 60}
        )
    return pd.DataFrame(rows)


def _mean_auc(repeats: Sequence[pd.DataFrame], like: Finished, n_boot: int) -> Estimate:
    areas = [scores(Finished(like.folder, like.card, table), n_boot=n_boot)["auc"] for table in repeats]
    value, low, high = np.mean([(area.value, area.low, area.high) for area in areas], axis=0).tolist()
    return Estimate(value, low, high, areas[0].n)


def over_seeds(finished: Sequence[Finished]) -> pd.DataFrame:
    """Accuracy of every variant over its seeds, and its gain over the first variant, paired by seed.

    Returns:
        variant, accuracy, gain: `Estimate` with Student's t intervals; accuracies, gains: arrays, one value per seed.
    """
    scored = [
        (one.card["protocol"], one.card["seed"], metrics.accuracy(one.y_true, one.y_pred).value) for one in finished
    ]
    wide = pd.DataFrame(scored, columns=["variant", "seed", "value"]).pivot(
        index="variant", columns="seed", values="value"
    )
    wide = wide.loc[list(dict.fromkeys(variant for variant, _, _ in scored))]
    gains = wide - wide.iloc[0]
    rows = [
        {
            "variant": variant,
            "accuracy": _within(metrics.seeds_interval(wide.loc[variant]), 0),
            "gain": _within(metrics.seeds_interval(gains.loc[variant]), -1),
            "accuracies": wide.loc[variant].to_numpy(),
            "gains": gains.loc[variant].to_numpy(),
        }
        for variant in wide.index
    ]
    return pd.DataFrame(rows)


def _within(estimate: Estimate, least: float) -> Estimate:
    """The interval cut to what an accuracy, or a difference of two, can be; NaN stays NaN."""
    low, high = np.clip([estimate.low, estimate.high], least, 1)
    return replace(estimate, low=float(low), high=float(high))


def survives(gain: Estimate) -> str:
    """Whether a paired gain differs from zero as far as its interval can tell; of two seeds, none is believed."""
    if gain.n < 3:
        return "too few seeds to tell"
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "no difference that these seeds can show"


def recalls(finished: Sequence[Finished]) -> pd.DataFrame:
    """Recall of every class, their mean and the accuracy: one row per trial, named by its protocol."""
    rows = {}
    for one in finished:
        counts = metrics.confusion(one.y_true, one.y_pred, len(one.classes))
        by_class = [metrics.wilson(int(counts[k, k]), int(counts[k].sum())) for k in range(len(counts))]
        named = dict(zip(one.classes, by_class, strict=True))
        mean = float(np.nanmean([cell.value for cell in by_class]))
        rows[one.card["protocol"]] = named | {"mean": mean, "accuracy": metrics.accuracy(one.y_true, one.y_pred)}
    return pd.DataFrame(rows).T
