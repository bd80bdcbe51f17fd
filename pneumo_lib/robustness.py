"""How a trained system bears test films that are worse than those it knows: every corruption at every level."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo_lib import answers, evaluation, noise, runs, trials
from pneumo_lib.data import ImageSet
from pneumo_lib.pipeline import Protocol

CORRUPTIONS = "corruptions.csv"


def corrupted(
    folder: Path, images: ImageSet, saved: runs.SavedModel, *, progress: Callable[..., Iterable] = iter
) -> pd.DataFrame:
    """Accuracy and calibration of a system on its test films under each corruption of `noise`, stored in its folder.

    Temperature and operating point are those that validation films fixed, without the corruption. Each film meets the
    same noise whichever system is asked.

    Returns:
        One row per kind and level, level 0 with each kind: kind, level (in the unit of `noise.NOISES`), value, low,
        high and n of the accuracy (fractions, Wilson interval), ece, brier.
    """
    rows = [_row(kind, level, images, saved) for kind, level in progress(_levels())]
    table = pd.DataFrame(rows)
    runs.write_text(folder / CORRUPTIONS, table.to_csv(index=False))
    return table


def _levels() -> list[tuple[str, float]]:
    return [(kind, level) for kind, how in noise.NOISES.items() for level in how.levels]


def _row(kind: str, level: float, images: ImageSet, saved: runs.SavedModel) -> dict[str, float | str]:
    said = trials.say(Protocol(f"{kind} {level:g}", "", "test", level, kind), images, saved)
    (accuracy,) = evaluation.accuracies(said).to_dict("records")
    (worth,) = answers.confidence(said, temperature=1.0, threshold=0.0).to_dict("records")
    facts = {name: accuracy[name] for name in ("value", "low", "high", "n")}
    return {"kind": kind, "level": level} | facts | {"ece": worth["ece"], "brier": worth["brier"]}


def areas(table: pd.DataFrame) -> pd.Series:
    """Area under the accuracy over each kind's levels, as a share of the range: 1 would be no error at any level."""
    return table.groupby("kind", sort=False)[["level", "value"]].apply(
        lambda part: np.trapezoid(part["value"], part["level"]) / part["level"].max()
    )


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracies for people: a row per kind, a column per step from no corruption to the worst, then the area."""
    steps = table.groupby("kind", sort=False).cumcount()
    texts = [
        f"{level:g}: {value:.1%}" if level else f"{value:.1%}" for level, value in table[["level", "value"]].to_numpy()
    ]
    wide = table.assign(step=steps, text=texts).pivot(index="kind", columns="step", values="text")
    wide = wide.loc[table["kind"].unique()].rename(columns=lambda step: f"level {step}" if step else "none")
    return wide.assign(area=areas(table).map("{:.3f}".format)).reset_index().rename_axis(columns=None)
