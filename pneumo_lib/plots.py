"""Figures: arrays and tables in, one matplotlib ``Figure`` out, all in one style.

Films are (H, W), float in [0, 1] or uint8, in gray between fixed limits, aspect kept. Tables hold fractions; percent is
for labels. NaN is a gap or "n/a". pyplot never learns of a figure: none needs closing, threads do not meet.
"""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pneumo_lib.display import show as show  # plots.show(plots.roc(...), ...) reads as one thing
from pneumo_lib.display import show_png as show_png
from pneumo_lib.errors import UsageError

Names = Sequence[str]
Films = Sequence[np.ndarray | None]  # an array (N, H, W), or N arrays (H, W); None leaves a gap
WIDTH = 7.0  # inches: the text column of the report
OKABE_ITO = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#000000")
INK, FAINT, OURS, WRONG = "#222222", "#777777", "#0072B2", "#D55E00"
# NORMAL is not green and COVID19 not red: "neither of the other two" is no all-clear.
CLASS_STYLE = {
    "COVID19": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "NORMAL": {"color": "#CC79A7", "marker": "s", "linestyle": "--"},
    "PNEUMONIA": {"color": "#E69F00", "marker": "^", "linestyle": "-."},
}
# Magma whose opacity grows from nothing to one half: tissue without evidence stays as the film shows it.
CAM_MAP = mpl.colors.ListedColormap(np.c_[mpl.colormaps["magma"].colors[56:], np.linspace(0, 1.5, 200).clip(0, 0.5)])


def use_style() -> None:
    """Sets the one figure style: white, thin grid, and the font that matplotlib ships, the same on every machine."""
    rc = {"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "figure.dpi": 120}
    rc |= {"axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9}
    rc |= {"grid.linewidth": 0.5, "grid.color": "#DDDDDD", "axes.edgecolor": FAINT, "lines.linewidth": 1.8}
    sns.set_theme(style="whitegrid", palette=OKABE_ITO, rc=rc | {"axes.spines.top": False, "axes.spines.right": False})


def style_of(name: str, index: int = 0) -> dict[str, str]:
    """Colour, marker and line of a class by its name; of any other series by its position among its fellows."""
    line = ("-", "--", "-.", ":")[index % 4]
    return CLASS_STYLE.get(name, {"color": OKABE_ITO[index % 7], "marker": "osD^vPX"[index % 7], "linestyle": line})


def _canvas(height: float, columns: int = 1, rows: int = 1, **options) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def _finish(figure: Figure, ax: Axes, *, percent: str = "", legend: bool = True) -> Figure:
    for axis in percent:
        getattr(ax, f"{axis}axis").set_major_formatter(lambda value, _: f"{100 * value:.4g} %".replace("-", "−"))
    if legend:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _scale(figure: Figure, label: str, *, of: int = -1, extend: str = "neither") -> Figure:
    figure.set_figheight(figure.get_figheight() + 0.7)
    options = {"location": "bottom", "aspect": 50, "shrink": 0.6, "extend": extend, "label": label}
    figure.colorbar(figure.axes[of].images[-1], ax=figure.axes, **options).ax.set_facecolor(FAINT)  # as on gray tissue
    return figure


def class_counts(table: pd.DataFrame, classes: Names) -> Figure:
    """Images per split and class; ``table``: a row per image with ``split`` and ``label`` (index into ``classes``)."""
    splits, colours = table["split"].unique(), [style_of(name, i)["color"] for i, name in enumerate(classes)]
    figure, axes = _canvas(0.6 + 0.3 * len(classes), len(splits), sharex=True, sharey=True)
    for ax, split in zip(axes, splits, strict=True):
        counts = np.bincount(table.loc[table["split"] == split, "label"], minlength=len(classes))
        sns.barplot(x=counts, y=list(classes), hue=list(classes), palette=colours, saturation=1, legend=False, ax=ax)
        for bars in ax.containers:
            ax.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=9)
        ax.set(title=f"{split} ({counts.sum():,})", xticks=[], xmargin=0.45)
    figure.supxlabel("images", fontsize=10)
    return figure


def size_and_intensity(sizes: Mapping[str, np.ndarray], intensities: Mapping[str, np.ndarray]) -> Figure:
    """Per class: ``sizes`` (N, 2) width and height in pixels; ``intensities`` (bins,) fractions over gray 0 to 1."""
    figure, (left, right) = _canvas(3.2, 2)
    for i, (name, shares) in enumerate(intensities.items()):
        left.plot(*sizes[name].T, alpha=0.5, ms=4, mew=0, label=name, **style_of(name, i) | {"linestyle": ""})
        right.plot((np.arange(len(shares)) + 0.5) / len(shares), shares, **style_of(name, i) | {"marker": ""})
    left.set(xlabel="width (pixels)", ylabel="height (pixels)")
    right.set(xlabel="gray level (0 black, 1 white)", ylabel="share of pixels", ylim=(0, None))
    return _finish(_finish(figure, right, percent="y", legend=False), left)


def image_grid(images: Films, titles: Names, *, columns: int = 4, wrong: Sequence[bool] = (), **options: Any) -> Figure:
    """Films (N, H, W) in rows; one marked in ``wrong`` (N,) gets ✗, colour and frame; ``options`` go to ``imshow``."""
    if not len(images) == len(titles) > 0:
        raise UsageError(f"Got {len(images)} pictures and {len(titles)} titles; expected one title per picture.")
    (height, width), starts = images[0].shape, range(0, len(images), columns)
    lines = sum(max(title.count("\n") + bool(title) for title in titles[i : i + columns]) for i in starts)
    figure, axes = _canvas(len(starts) * (WIDTH / columns * height / width + 0.05) + 0.17 * lines, columns, len(starts))
    limits = {"cmap": "gray", "vmin": 0, "vmax": 255 if images[0].dtype == np.uint8 else 1} | options
    for ax, film, title, bad in zip_longest(axes, images, titles, wrong):
        ax.set(xticks=[], yticks=[], frame_on=bool(bad))
        if film is not None:
            ax.imshow(film, **limits)
            ax.set_title(f"✗ {title}" if bad else title, fontsize=9, color=WRONG if bad else INK)
            ax.spines[:].set(visible=True, color=WRONG, linewidth=3)
    return figure


def pair_grid(first: Films, second: Films, titles: Names) -> Figure:
    """Two pairs of films per row; ``first``, ``second`` (N, H, W); ``titles`` (N,) stand over the first of a pair."""
    films = [film for pair in zip(first, second, strict=True) for film in pair]
    return image_grid(films, [text for title in titles for text in (title, "")])


def noise_grid(rows: Mapping[str, Mapping[float, np.ndarray]]) -> Figure:
    """One film under every corruption: ``rows[kind][level]`` is the film (H, W) at that level."""
    columns = max(map(len, rows.values()))
    cells = [cell for row in rows.values() for cell in [*row.items(), *[(0, None)] * (columns - len(row))]]
    figure = image_grid([film for _, film in cells], [f"{level:g}" for level, _ in cells], columns=columns)
    for ax, kind in zip(figure.axes[::columns], rows, strict=True):
        ax.set_ylabel(kind.replace("_", "\n"), fontsize=9)
    return figure


def denoiser_strips(clean: np.ndarray, outputs: Mapping[str, tuple[np.ndarray, float]]) -> Figure:
    """A clean film (H, W), in [0, 1], beside the noisy one and others; below, the errors (film - clean) on one scale.

    ``outputs``: "noisy", then each method (or the checkpoints "epoch 10" and so on), to its film and PSNR in dB.
    """
    films = np.stack([clean, *(film for film, _ in outputs.values())])
    titles = [textwrap.fill(name.replace("_", " "), 12) + f"\n{psnr:.1f} dB" for name, (_, psnr) in outputs.items()]
    figure = image_grid([*films, *(films - clean)], ["clean", *titles, *[""] * len(films)], columns=len(films))
    for ax in figure.axes[len(films) :]:
        ax.images[0].set(cmap="PuOr", clim=(-0.5, 0.5))
    return _scale(figure, "error (gray levels; 0 black, 1 white)", extend="both")


def cam_grid(films: Films, maps: Films, titles: Names, *, vmax: float) -> Figure:
    """Each film (H, W) beside itself under its map (h, w) >= 0, or "no positive evidence"; 0 to ``vmax`` for all."""
    figure = pair_grid(films, films, titles)
    for ax, evidence in zip(figure.axes[1 : 2 * len(films) : 2], maps, strict=True):
        extent = ax.images[0].get_extent()
        ax.imshow(evidence, cmap=CAM_MAP, vmin=0, vmax=vmax, extent=extent, interpolation="bilinear")
        ax.set_title("" if np.max(evidence) > 0 else "no positive evidence", fontsize=9)
    _scale(figure, "evidence for the class (Grad-CAM, in units of its score)", of=1)
    figure.axes[-1].xaxis.set_major_formatter("{x:.1e}")
    figure.axes[-1].set_xticks([0, vmax])
    return figure


def feature_map_grid(maps: np.ndarray, *, columns: int = 8) -> Figure:
    """Every channel of ``maps`` (C, h, w), numbered from 0, all on one scale from the least to the greatest value."""
    limits = {"cmap": "magma", "vmin": maps.min(), "vmax": maps.max()}
    return _scale(image_grid(maps, [str(i) for i in range(len(maps))], columns=columns, **limits), "activation", of=0)


def curves(history: pd.DataFrame, quantities: Mapping[str, str], *, best: int | None = None) -> Figure:
    """Learning curves: one panel per quantity, training against validation; a line at the ``best`` epoch, if given.

    ``history``: ``epoch`` and, for each quantity Q, ``train_Q``, ``val_Q`` or both; ``quantities``: Q to its axis label
    with unit (accuracy is a fraction). Raises ``UsageError`` for a quantity that is not in the history.
    """
    figure, axes = _canvas(2.9, len(quantities))
    for ax, (quantity, label) in zip(axes, quantities.items(), strict=True):
        for i, (split, name) in enumerate((("train", "training"), ("val", "validation"))):
            if (column := f"{split}_{quantity}") in history:
                ax.plot("epoch", column, data=history, label=name, markevery=0.1, markersize=5, **style_of(name, i))
        if not ax.lines:
            raise UsageError(f"The history has no train_{quantity} or val_{quantity}; it has {', '.join(history)}.")
        if best is not None:
            ax.axvline(best, color=FAINT, lw=1, ls=":", label=f"weights kept: epoch {best}")
        ax.set(xlabel="epoch", ylabel=label)
        ax.locator_params(axis="x", integer=True, steps=[1, 2, 5, 10])
        _finish(figure, ax, percent="y" if quantity == "accuracy" else "", legend=ax is axes[0])
    return figure


def histories(tables: Mapping[str, pd.DataFrame], quantity: str, *, label: str) -> Figure:
    """Learning curves of several networks: training left, validation right.

    ``tables``: name to a history with ``epoch``, ``train_Q`` and ``val_Q`` for the ``quantity`` Q; ``label``: its axis.
    """
    figure, axes = _canvas(3.4, 2, sharey=True)
    for ax, split in zip(axes, ("train", "val"), strict=True):
        for i, (name, history) in enumerate(tables.items()):
            ax.plot("epoch", f"{split}_{quantity}", data=history, label=name, markersize=4, **style_of(name, i))
        ax.set(xlabel="epoch", title={"train": "training films", "val": "validation films"}[split])
        ax.locator_params(axis="x", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    axes[0].set_ylabel(label)
    percent = "y" if quantity == "score" else ""
    return _finish(_finish(figure, axes[1], percent=percent, legend=False), axes[0], percent=percent)


def intervals(table: pd.DataFrame, *, label: str, percent: bool = False, pairs: Mapping | None = None) -> Figure:
    """Values with 95 % intervals from the top down: points, as bars start at zero, where small differences vanish.

    ``table``: ``name``, ``value``, ``low``, ``high`` and, where a source states a figure, ``reported`` (may be NaN).
    ``pairs``: for mean differences, name to the single ones (n,), drawn as rings beside the line of zero.
    """
    places, (figure, (ax,)) = range(len(table)), _canvas(0.9 + 0.3 * len(table))
    ax.hlines(places, table["low"], table["high"], color=OURS, lw=2.5)
    ax.plot(table["value"], places, "o", color=OURS, label="measured here, 95 % interval")
    if "reported" in table:
        ax.plot(table["reported"], places, "D", color=WRONG, mfc="none", label="reported by the source")
    if pairs is not None:
        ax.axvline(0, color=INK, lw=1)
        rings = [(x, y) for y, name in enumerate(table["name"]) for x in pairs[name]]
        ax.plot(*np.transpose(rings), "o", color=WRONG, mfc="none", label="one pair (same seed)")
    form, scale = ("{:z.1f} % [{:z.1f}, {:z.1f}]", 100) if percent else ("{:z.2f} [{:z.2f}, {:z.2f}]", 1)
    for y, row in enumerate(scale * table[["value", "low", "high"]].to_numpy(float)):
        text = form.format(*row).replace("-", "−") if row[0] == row[0] else "n/a"
        ax.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    ax.set(yticks=places, yticklabels=table["name"], xlabel=label, ylim=(len(table) - 0.5, -0.5))
    ax.locator_params(axis="x", nbins=6)  # room for signs and percent signs
    return _finish(figure, ax, percent="x" if percent else "")


def lines_with_intervals(table: pd.DataFrame, *, xlabel: str, ylabel: str, percent: bool = True) -> Figure:
    """Lines with shaded intervals; ``table``: ``series``, ``x``, ``value``, ``low``, ``high``, a row per point."""
    figure, (ax,) = _canvas(3.4)
    for i, (name, rows) in enumerate(table.groupby("series", sort=False)):
        ax.plot("x", "value", data=rows, label=name, markersize=5, **style_of(name, i))
        ax.fill_between("x", "low", "high", data=rows, color=style_of(name, i)["color"], alpha=0.15, lw=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, xticks=table["x"].unique())
    return _finish(figure, ax, percent="y" if percent else "")


def heatmap(pivot: pd.DataFrame, *, label: str, texts: Any = True, cell: float = 0.4, **options: Any) -> Figure:
    """Fractions as percent; axes named by the pivot's index and columns; ``texts`` (like the pivot) replace numbers."""
    figure, (ax,) = _canvas(1.2 + cell * len(pivot))
    options |= {"cmap": "Blues", "linewidths": 1, "cbar_kws": {"label": f"{label} (%)"}}
    sns.heatmap(100 * pivot, annot=texts, fmt=".1f" if texts is True else "", ax=ax, **options)
    ax.tick_params(axis="y", rotation=0)
    ax.grid(False)
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Names) -> Figure:
    """Counts (C, C), rows true, columns predicted; a cell shows its count and, also as colour, its share of the row."""
    counts = pd.DataFrame(matrix, *(pd.Index(classes, name=name) for name in ("true", "predicted")))
    shares = counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)
    texts = counts.map("{:,}\n".format) + (100 * shares).map("{:.1f} %".format).replace("nan %", "n/a")
    return heatmap(shares.fillna(0), label="share of true class", texts=texts, cell=0.8, vmin=0, vmax=100, square=True)


def roc(curves: Mapping[str, Any], auc: Mapping[str, float]) -> Figure:
    """Per class its ``RocCurve`` (that class against the rest) and its area, in [0, 1]."""
    figure, (ax,) = _canvas(4.2)
    for i, (name, curve) in enumerate(curves.items()):
        ax.plot(curve.fpr, curve.tpr, label=f"{name} (AUC {auc[name]:.3f})", **style_of(name, i) | {"marker": ""})
    ax.plot([0, 1], [0, 1], color=FAINT, lw=1, ls=":", label="chance")
    ax.set(xlabel="1 − specificity (false alarms)", ylabel="sensitivity (found)", aspect="equal")
    return _finish(figure, ax, percent="xy")


def reliability(curves: Mapping[str, Any]) -> Figure:
    """Names, for example "before" and "after", to their ``Reliability`` with bins of equal width."""
    figure, (left, right) = _canvas(3.4, 2)
    for i, (name, curve) in enumerate(curves.items()):
        style, shares = style_of(name, i), curve.count / curve.count.sum()
        left.plot(curve.confidence, curve.accuracy, label=name, markersize=5, **style)
        left.vlines(curve.confidence, curve.low, curve.high, color=style["color"], lw=1)
        right.stairs(shares, np.linspace(0, 1, len(shares) + 1), color=style["color"], ls=style["linestyle"], lw=1.8)
    left.plot([0, 1], [0, 1], color=FAINT, lw=1, ls=":", label="perfect")
    left.set(xlabel="confidence", ylabel="accuracy")
    right.set(xlabel="confidence", ylabel="share of images")
    return _finish(_finish(figure, right, percent="xy", legend=False), left, percent="xy")


def coverage_accuracy(curve: Any, *, threshold: float) -> Figure:
    """A ``CoverageCurve``; the point where films below the confidence ``threshold`` stay undecided is marked."""
    figure, (ax,) = _canvas(3.2)
    ax.plot(curve.coverage, curve.accuracy, color=OURS)
    decided = np.where(curve.threshold >= threshold, curve.coverage, 0)
    x, y = decided.max(), curve.accuracy[decided.argmax()]
    label = f"confidence ≥ {threshold:.2f}: {100 * x:.1f} % decided, {100 * y:.1f} % of them right"
    ax.plot(x, y, "D", color=WRONG, label=label)
    ax.set(xlabel="share of the films that are decided (coverage)", ylabel="accuracy of the decided")
    return _finish(figure, ax, percent="xy")


def histogram_controls(controls: np.ndarray, matches: np.ndarray, *, threshold: float) -> Figure:
    """Similarities (n,) of pairs known to differ, (m,) of planted copies, on a log scale, and the cut between them."""
    figure, (ax,) = _canvas(3.0)
    bins = np.histogram_bin_edges(np.r_[controls, matches], 60)
    for values, name, colour in ((controls, "different films", OURS), (matches, "planted copies", OKABE_ITO[1])):
        sns.histplot(x=values, bins=bins, element="step", color=colour, label=f"{name} ({len(values):,})", ax=ax)
    ax.axvline(threshold, color=INK, ls="--", label=f"threshold {threshold:.3f}")
    ax.set(yscale="log", xlabel="similarity (correlation of thumbnails)", ylabel="pairs")
    return _finish(figure, ax)
