"""What networks said of test films: tables of predictions as files hold them, and what follows from those alone."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumo_lib import calibration, metrics
from pneumo_lib.errors import DataError, UsageError

PREDICTIONS = "predictions.csv"
TEXTS = ("path", "protocol", "system", "label", "predicted")  # columns that every table of predictions has
SUM_TOLERANCE = 1e-3  # of rounding, where somebody wrote fewer digits
SHARES = (0.8, 0.9, 0.95)  # of the films, the most confident ones, whose accuracy is told


@dataclass(frozen=True)
class Finished:
    """A trial that was tested: its folder, its card, and what it said of the test films.

    Attributes:
        predictions: path, split, protocol, system, label, predicted (at the operating point), p_CLASS (calibrated),
            of the card's own protocol; the file in its folder holds other protocols too.
    """

    folder: Path
    card: dict[str, Any]
    predictions: pd.DataFrame

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the label index."""
        return tuple(self.card["classes"])

    @property
    def positive(self) -> int | None:
        """Index of the class that counts as a finding; None with more than two classes."""
        return self.classes.index(self.card["positive"]) if self.card["positive"] else None

    @property
    def y_true(self) -> np.ndarray:
        """(N,) class indices."""
        return pd.Index(self.classes).get_indexer(self.predictions["label"])

    @property
    def y_pred(self) -> np.ndarray:
        """(N,) class indices at the operating point."""
        return pd.Index(self.classes).get_indexer(self.predictions["predicted"])

    @property
    def y_prob(self) -> np.ndarray:
        """(N, C) probabilities after temperature."""
        return self.predictions[[f"p_{c}" for c in self.classes]].to_numpy(float)

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.read_csv(self.folder / "history.csv")


def trained(run: Path) -> list[Path]:
    """Folders of the systems that were trained under a run folder, folds included, in the order of their names."""
    return sorted(path.parent for part in ("systems", "folds") for path in (run / part).rglob("model.json"))


def read(folder: Path) -> Finished:
    """A trial that was tested, from its files; a DataError where it was not."""
    card, stored = read_card(folder), folder / PREDICTIONS
    if not card or not stored.exists():
        raise DataError(f"{folder} holds no finished trial: it needs model.json and {PREDICTIONS}.")
    said = read_predictions(stored)
    return Finished(folder, card, said[said["protocol"] == card["protocol"]].reset_index(drop=True))


def read_predictions(path: Path) -> pd.DataFrame:
    """Predictions from their file: one row per film, system and protocol, probabilities in the columns p_CLASS.

    Raises:
        DataError: no such file, or it is no table of predictions: a column is missing, a class has no probability, or
            a row's probabilities do not add up to 1.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table of predictions: {error}.") from error
    if missing := [name for name in TEXTS if name not in table]:
        raise DataError(f"{path} is no table of predictions: it has no column {', '.join(missing)}.")
    given = table.filter(regex="^p_")
    if unknown := sorted({*table["label"], *table["predicted"]} - {name.removeprefix("p_") for name in given}):
        raise DataError(f"{path} speaks of {', '.join(unknown)}, for which it has no column p_{unknown[0]}.")
    numbers = given.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(~(np.abs(numbers.sum(axis=1) - 1) < SUM_TOLERANCE) | (numbers < 0).any(axis=1))
    if len(wrong):
        raise DataError(f"{path}, row {wrong[0] + 2}: {table['path'][wrong[0]]} has no probabilities that add up to 1.")
    return table


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a trial that was trained; empty before."""
    path = folder / "model.json"
    return json.loads(path.read_text()) if path.exists() else {}


def of_decision(predictions: pd.DataFrame, decision: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of the system that a decision of `chosen` is for; DataError: there are none, or of other classes."""
    own, classes = predictions[predictions["system"] == decision["system"]], _classes(predictions)
    if own.empty:
        said = ", ".join(predictions["system"].unique())
        raise DataError(f"the card is of {decision['system']}, and the predictions are of {said}.")
    known = decision["classes"] or classes
    if tuple(known) != classes or any(len(cuts) != len(classes) for cuts in decision["conformal"].values()):
        raise DataError(f"the card is of {', '.join(known)}, and the predictions are of {', '.join(classes)}.")
    return own


def decided(probabilities: np.ndarray, card: dict[str, Any]) -> np.ndarray:
    """Class indices (N,): the most probable class, or, where the card has a cut, the finding that reaches it."""
    if card["decision"]["cut"] is None:
        return probabilities.argmax(axis=1)
    k = card["classes"].index(card["positive"])
    return np.where(probabilities[:, k] >= card["decision"]["cut"], k, 1 - k)


def arrays(
    predictions: pd.DataFrame, classes: tuple[str, ...], temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """y_true (N,) int and y_prob (N, C) at a temperature, from rows of `pipeline.predict`."""
    prob = predictions[[f"p_{c}" for c in classes]].to_numpy(float)
    y_true = pd.Index(classes).get_indexer(predictions["label"])
    return y_true, calibration.softmax(np.log(np.clip(prob, 1e-30, 1)), temperature)


def by_class(predictions: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """`metrics.classification_table` of each (system, protocol), from rows of `pipeline.predict`."""
    classes, pairs = _classes(predictions), predictions.groupby(["system", "protocol"], sort=False)
    return {pair: metrics.classification_table(*arrays(part, classes), classes, seed=0) for pair, part in pairs}


def confidence(predictions: pd.DataFrame, *, temperature: float, threshold: float) -> pd.DataFrame:
    """What confidence is worth, one row per system and protocol, from rows of `pipeline.predict`.

    Args:
        temperature: divides the logits before anything else; 1 leaves the probabilities as they are.
        threshold: films below this confidence stay undecided.

    Returns:
        Columns system, protocol, ece_before, ece, brier (both at the temperature), decided and decided_accuracy
        (Estimate).

    Raises:
        UsageError: a temperature that is not above 0, or a threshold outside 0 to 1.
    """
    if not (temperature > 0 and 0 <= threshold <= 1):
        raise UsageError(
            f"temperature is {temperature:g} and threshold {threshold:g}; expected are a temperature above 0 and a "
            "threshold between 0 and 1."
        )
    classes, rows = _classes(predictions), []
    for (system, protocol), part in predictions.groupby(["system", "protocol"], sort=False):
        y_true, y_prob = arrays(part, classes, temperature)
        row = {"system": system, "protocol": protocol}
        row |= {"ece_before": calibration.ece(y_true, arrays(part, classes)[1])}
        row |= {"ece": calibration.ece(y_true, y_prob), "brier": calibration.brier(y_true, y_prob)}
        decided = calibration.selective(y_true, y_prob, threshold)
        rows.append(row | {"decided": decided.coverage, "decided_accuracy": decided.accuracy})
    return pd.DataFrame(rows)


def at_coverage(
    predictions: pd.DataFrame, *, temperature: float = 1.0, shares: Sequence[float] = SHARES
) -> pd.DataFrame:
    """How right a system is where it is surest, from rows of `pipeline.predict`.

    The confidence of an answer is the probability of the class that was answered, so that where a finding needs more
    than even odds the films between those and the cut come last, and all films together give the accuracy.

    Args:
        temperature: as in `confidence`; with three classes or more it may change which films are the surest.
        shares: of the films that are answered for, fractions.

    Returns:
        One row per system, protocol and share: system, protocol, share; covered (Estimate), above the share where films
        of equal confidence stand at its edge; accuracy (Estimate) of these.
    """
    classes, rows = _classes(predictions), []
    for (system, protocol), part in predictions.groupby(["system", "protocol"], sort=False):
        y_true, y_prob = arrays(part, classes, temperature)
        answered = pd.Index(classes).get_indexer(part["predicted"])
        sure = y_prob[np.arange(len(part)), answered]
        for share in shares:
            found = calibration.most_confident(sure, answered == y_true, share)
            row = {"system": system, "protocol": protocol, "share": share}
            rows.append(row | {"covered": found.coverage, "accuracy": found.accuracy})
    return pd.DataFrame(rows)


def conformal(predictions: pd.DataFrame, decision: Mapping[str, Any]) -> pd.DataFrame:
    """What sets of classes are worth that shall hold the truth, from rows of `pipeline.predict`.

    Args:
        decision: temperature and cut-offs, as `pipeline.decide` made them on validation films; of a trial, whose
            probabilities are stored after the temperature, as `chosen.of_card` gives it.

    Returns:
        One row per system, protocol and wanted coverage (fraction): system, protocol, wanted; all, and a column named
        after each class (Estimate): share of the sets that hold the true class; size: mean number of classes in a set;
        single (Estimate): share of the sets of one class.
    """
    classes, rows = _classes(predictions), []
    for (system, protocol), part in predictions.groupby(["system", "protocol"], sort=False):
        y_true, y_prob = arrays(part, classes, decision["temperature"])
        for wanted, cutoffs in decision["conformal"].items():
            found = calibration.conformal_result(y_true, y_prob, cutoffs)
            row = {"system": system, "protocol": protocol, "wanted": float(wanted), "all": found.coverage}
            row |= dict(zip(classes, found.by_class, strict=True))
            rows.append(row | {"size": found.size, "single": found.single})
    return pd.DataFrame(rows)


def disagreements(predictions: pd.DataFrame) -> pd.DataFrame:
    """McNemar's test of every two systems that answered for the same films, from rows of `pipeline.predict`.

    Returns:
        Columns protocol, first, second, only_first and only_second (films that one alone has right), p, difference
        (Estimate, accuracy of the first minus the second).

    Raises:
        DataError: a system answered twice for a film under one protocol.
    """
    rows, twice = [], predictions.duplicated(["path", "protocol", "system"])
    if twice.any():
        first = predictions[twice].iloc[0]
        raise DataError(f"{first['system']} answers for {first['path']} twice under {first['protocol']}.")
    for protocol, part in predictions.groupby("protocol", sort=False):
        said = part.pivot(index="path", columns="system", values="predicted")
        truth = part.drop_duplicates("path").set_index("path")["label"].loc[said.index]
        for first, second in itertools.combinations(part["system"].unique(), 2):
            both = said[[first, second]].dropna()
            right = both.eq(truth.loc[both.index], axis=0).to_numpy(int)
            test = metrics.mcnemar(np.ones(len(both), int), right[:, 0], right[:, 1])
            told = {"protocol": protocol, "first": first, "second": second, "only_first": test.b, "only_second": test.c}
            rows.append(told | {"p": test.p, "difference": test.difference})
    return pd.DataFrame(rows)


def _classes(predictions: pd.DataFrame) -> tuple[str, ...]:
    return tuple(name.removeprefix("p_") for name in predictions.filter(regex="^p_"))
