"""What a network said of test films: predictions and card of a finished trial, as its folder holds them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumo_lib.errors import DataError

PREDICTIONS = "predictions.csv"
TEXTS = ("path", "protocol", "system", "label", "predicted")  # columns that every table of predictions has
SUM_TOLERANCE = 1e-3  # of rounding, where somebody wrote fewer digits


@dataclass(frozen=True)
class Finished:
    """A trial that was tested: its folder, its card, and what it said of the test films.

    Attributes:
        predictions: path, split, protocol, system, label, predicted (at the operating point), p_CLASS (calibrated).
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
    return Finished(folder, card, read_predictions(stored))


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


def decided(probabilities: np.ndarray, card: dict[str, Any]) -> np.ndarray:
    """Class indices (N,): the most probable class, or, where the card has a cut, the finding that reaches it."""
    if card["decision"]["cut"] is None:
        return probabilities.argmax(axis=1)
    k = card["classes"].index(card["positive"])
    return np.where(probabilities[:, k] >= card["decision"]["cut"], k, 1 - k)
