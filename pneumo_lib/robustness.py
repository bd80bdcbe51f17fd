"""How a trained system bears test films that are worse than those it knows: every corruption at every level."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pneumo_lib import answers, chosen, display, evaluation, noise, plots, plots_panels, processes, runs, trials
from pneumo_lib.data import ImageSet
from pneumo_lib.pipeline import Protocol

CORRUPTIONS = "corruptions.csv"
FIGURE = "corruptions.png"
MOST = 3  # systems whose areas are all told in a title


def corrupted(
    folder: Path,
    images: ImageSet,
    saved: runs.SavedModel,
    *,
    split: str = "test",
    progress: Callable[..., Iterable] = iter,
) -> pd.DataFrame:
    """Accuracy and calibration of a system on its test films under each corruption of `noise`, stored in its folder.

    Temperature, operating point and conformal cut-offs are those that validation films fixed, without the corruption.
    Each film meets the same noise whichever system is asked.

    Args:
        folder: where CORRUPTIONS is written.
        split: "val" to choose between recipes by it.

    Returns:
        One row per kind and level, level 0 with each kind: kind, level (in the unit of `noise.NOISES`), value, low,
        high and n of the accuracy (fractions, Wilson interval), ece, brier; accuracy_90: of the 90 % of the films that
        it is surest of; conformal_90: share of the sets for 90 % coverage that hold the truth, NaN where its card has
        no cut-offs.
    """
    plain = _facts("gaussian", 0, split, images, saved)
    rows = [
        {"kind": kind, "level": level} | (_facts(kind, level, split, images, saved) if level else plain)
        for kind, level in progress(_levels())
    ]
    table = pd.DataFrame(rows)
    runs.write_text(folder / CORRUPTIONS, table.to_csv(index=False))
    return table


def _levels() -> list[tuple[str, float]]:
    return [(kind, level) for kind, how in noise.NOISES.items() for level in how.levels]


def _facts(kind: str, level: float, split: str, images: ImageSet, saved: runs.SavedModel) -> dict[str, float]:
    said = trials.say(Protocol(f"{kind} {level:g}", "", split, level, kind), images, saved)
    (accuracy,) = evaluation.accuracies(said).to_dict("records")
    (worth,) = answers.confidence(said, temperature=1.0, threshold=0.0).to_dict("records")
    (surest,) = answers.at_coverage(said, shares=(0.9,))["accuracy"]
    facts = {name: accuracy[name] for name in ("value", "low", "high", "n")}
    facts |= {"ece": worth["ece"], "brier": worth["brier"], "accuracy_90": surest.value}
    return facts | {"conformal_90": _held(said, chosen.of_card(saved.card))}


def _held(said: pd.DataFrame, decision: Mapping[str, Any]) -> float:
    """Share of the sets for 90 % coverage that hold the true class; NaN without cut-offs."""
    cutoffs = decision.get("conformal", {}).get("0.9")
    if cutoffs is None:
        return float("nan")
    (found,) = answers.conformal(said, {**decision, "conformal": {"0.9": cutoffs}})["all"]
    return found.value


def areas(table: pd.DataFrame, column: str = "value") -> pd.Series:
    """Area under the accuracy, or another column, over each kind's levels, as a share of the range.

    Of the accuracy 1 would be no error at any level; of the ece 0 would be perfect calibration at each.
    """
    return table.groupby("kind", sort=False)[["level", column]].apply(
        lambda part: np.trapezoid(part[column], part["level"]) / part["level"].max()
    )


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracies for people: a row per kind, a column per step from no corruption to the worst, then the areas."""
    steps = table.groupby("kind", sort=False).cumcount()
    texts = [
        f"{level:g}: {value:.1%}" if level else f"{value:.1%}" for level, value in table[["level", "value"]].to_numpy()
    ]
    wide = table.assign(step=steps, text=texts).pivot(index="kind", columns="step", values="text")
    wide = wide.loc[table["kind"].unique()].rename(columns=lambda step: f"level {step}" if step else "none")
    found = {"area": "value"} | ({"area of ECE": "ece"} if "ece" in table else {})
    told = {name: areas(table, column).map("{:.3f}".format) for name, column in found.items()}
    return wide.assign(**told).reset_index().rename_axis(columns=None)


def figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """One panel per kind of corruption with a line per system; the areas stand in the titles, in the order of systems.

    Args:
        tables: by system, what `corrupted` made, today or before kinds were added to `noise.NOISES`.
    """
    kinds = dict.fromkeys(kind for table in tables.values() for kind in table["kind"])
    units = {kind: noise.NOISES[kind].unit for kind in kinds if kind in noise.NOISES}
    return plots_panels.corruptions(tables, titles={kind: _title(kind, tables) for kind in kinds}, units=units)


def _title(kind: str, tables: Mapping[str, pd.DataFrame]) -> str:
    accuracy, error = (_areas_of(kind, tables, column) for column in ("value", "ece"))
    return f"{kind.replace('_', ' ')}\narea {accuracy}{', ' if len(tables) == 1 else chr(10)}of ECE {error}"


def _areas_of(kind: str, tables: Mapping[str, pd.DataFrame], column: str) -> str:
    found = [areas(table, column).get(kind, np.nan) for table in tables.values()]
    if len(found) > MOST:
        return f"{np.nanmin(found):.3f} to {np.nanmax(found):.3f}"
    return " / ".join("–" if np.isnan(area) else f"{area:.3f}" for area in found)


def draw(done: Sequence[answers.Finished]) -> list[Path]:
    """Draw what systems bear, those of one data set together, in the folder around theirs.

    Args:
        done: systems; those without a table of corruptions are left out, and folds of cross-validations.

    Returns:
        The figures written.
    """
    return processes.by_first(lambda: [_drawn(folder, tables) for folder, tables in _by_place(done).items()])


def _by_place(done: Sequence[answers.Finished]) -> dict[Path, dict[str, pd.DataFrame]]:
    tables: dict[Path, dict[str, pd.DataFrame]] = {}
    for one in done:
        if not one.card["fold"] and (one.folder / CORRUPTIONS).exists():
            tables.setdefault(one.folder.parent, {})[one.card["system"]] = pd.read_csv(one.folder / CORRUPTIONS)
    return tables


def _drawn(folder: Path, tables: Mapping[str, pd.DataFrame]) -> Path:
    plots.use_style()
    display.save(figure(tables), folder / FIGURE)
    return folder / FIGURE
