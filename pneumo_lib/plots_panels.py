"""Figures of many small panels with one scale: tables in, one matplotlib ``Figure`` out, in the style of `plots`."""

import textwrap
from collections.abc import Mapping
from itertools import zip_longest

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pneumo_lib.plots import FAINT, WIDTH, style_of

COLUMNS = 3
WIDEST = 26  # characters of 9 points under a panel


def corruptions(
    tables: Mapping[str, pd.DataFrame], *, titles: Mapping[str, str], units: Mapping[str, str] | None = None
) -> Figure:
    """Accuracy with its band and, below it, calibration error over the strength of a corruption; a pair for each kind.

    All panels of a quantity have one scale, so that they can be held against each other: accuracy from the tens below
    the lowest bound to 1, calibration error from 0; both are fractions and shown as percent.

    Args:
        tables: by system, as `robustness.corrupted` makes them: kind, level, value, low, high, ece.
        titles: by kind, in the order of the panels; a system that has not met a kind has no line there.
        units: by kind, what its level measures.
    """
    rows, together = -(-len(titles) // COLUMNS), pd.concat(tables.values())
    figure = Figure(figsize=(WIDTH, 0.4 + 2.6 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.03, hspace=0)
    axes = figure.subplots(2 * rows, COLUMNS, squeeze=False, height_ratios=[5, 3] * rows)
    limits = (np.floor(10 * together["low"].min()) / 10, 1.005), (0, 1.1 * max(together["ece"].max(), 0.02))
    pairs = zip(axes[::2].flat, axes[1::2].flat, strict=True)
    for pair, (kind, title) in zip_longest(pairs, titles.items(), fillvalue=("", "")):
        for ax, limit in zip(pair, limits, strict=True):
            ax.set(ylim=limit, visible=bool(kind))
        for i, (name, table) in enumerate(tables.items()):
            _lines(*pair, table[table["kind"] == kind], style_of(name, i))
        pair[0].set_title(title)
        pair[1].set_xlabel(textwrap.fill((units or {}).get(kind, "level"), WIDEST))
    _scales(axes)
    figure.legend(handles=_key(list(tables)), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _lines(upper: Axes, lower: Axes, rows: pd.DataFrame, style: Mapping[str, str]) -> None:
    look = {"color": style["color"], "marker": style["marker"], "markersize": 4, "lw": 1.2}
    upper.fill_between("level", "low", "high", data=rows, color=style["color"], alpha=0.25, lw=0)
    upper.plot("level", "value", data=rows, **look)
    lower.plot("level", "ece", data=rows, **look, mfc="white", ls="--")


def _scales(axes: np.ndarray) -> None:
    """Ticks and labels: percent at the left edge, strengths under each pair."""
    for row, column in np.ndindex(axes.shape):
        ax, label = axes[row, column], ("accuracy", "ECE")[row % 2]
        ax.locator_params(axis="x", nbins=5)
        ax.locator_params(axis="y", nbins=(5, 3)[row % 2])
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        ax.tick_params(labelbottom=row % 2 == 1, labelleft=column == 0)
        ax.set_ylabel("" if column else label)


def _key(names: list[str]) -> list[Line2D | Patch]:
    lines = [
        Line2D([], [], color=style["color"], marker=style["marker"], lw=1.2)
        for style in map(style_of, names, range(len(names)))
    ]
    for line, name in zip(lines, names, strict=True):
        line.set_label(name)
    return [*lines, Patch(color=FAINT, alpha=0.25, lw=0, label="95 % interval")]
