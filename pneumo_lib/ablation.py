"""The ablation grid: noise level x epochs x arm x seed, on validation films only.

Four arms, the ones that decide whether denoising helps the classifier:

    clean         trained on clean films, shown clean films
    unprepared    trained on clean films, shown noisy ones
    denoised      trained on and shown noisy films cleaned by an autoencoder
    noisy         trained on and shown noisy films as they are
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from pneumo_lib import evaluation, metrics, models, processes, runs, runtime, steps, training, workers
from pneumo_lib.config import Config
from pneumo_lib.errors import TrainingError
from pneumo_lib.recipe import Recipe

ARMS = ("clean", "unprepared", "denoised", "noisy")


@dataclass(frozen=True)
class Cell:
    """One noise level under one seed, with all that its trainings need; level 0 is the cell of the clean films."""

    level: float
    seed: int
    train: steps.Films
    val: steps.Films
    config: Config
    root: Path

    @property
    def folder(self) -> Path:
        """Where this cell keeps its trainings."""
        return self.root / f"level_{self.level:g}" / f"seed_{self.seed}"


def run_grid(train: steps.Films, val: steps.Films, config: Config, folder: Path) -> pd.DataFrame:
    """Train and score every cell of `config.ablation`; what is stored in `folder` is not trained again.

    Several processes, or the workers of one, take one cell at a time.

    Args:
        train, val: films of any size; reduced to the grid's image size.

    Returns:
        Tidy table: level, seed, arm, epoch, accuracy (fraction, on `val`), n, seconds (of the training of that arm
        up to that epoch, its denoiser included).
    """
    grid = config.ablation
    train = shrink(train.draw(grid.train_images, seed=config.seed), grid.image_size)
    val = shrink(val, grid.image_size)
    cells = [
        Cell(level, seed, train, val, config, Path(folder)) for level in (0.0, *grid.levels) for seed in grid.seeds
    ]
    title = "ablation: cells of the grid"
    share = processes.share_out if processes.count() > 1 else workers.run
    tables = share(_score_cell, cells, progress=runtime.progress, desc=title)
    return pd.concat(tables, ignore_index=True)


def shrink(films: steps.Films, size: int) -> steps.Films:
    """Films averaged down to size x size pixels; the present size must be a multiple of it."""
    side = films.images.shape[-1]
    if side == size:
        return films
    if side % size:
        raise TrainingError(f"the ablation works at {size} pixels, which does not divide the image size {side}.")
    parts = (torch.tensor(films.images[start : start + 512]) for start in range(0, len(films), 512))
    small = torch.cat([F.avg_pool2d(part[:, None].float(), side // size)[:, 0].round().byte() for part in parts])
    return steps.Films(small.numpy(), films.labels, films.keys)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over seeds with a 95 % t interval, cut to [0, 1], by arm, level and epoch."""
    rows = []
    for (arm, level, epoch), part in table.groupby(["arm", "level", "epoch"], sort=True):
        mean = metrics.seeds_interval(part.sort_values("seed")["accuracy"].to_numpy())
        cost = part["seconds"].mean()
        rows.append({"arm": arm, "level": level, "epoch": epoch, **mean.to_dict(), "seconds": cost})
    summary = pd.DataFrame(rows)
    return summary.assign(low=summary["low"].astype(float).clip(0, 1), high=summary["high"].astype(float).clip(0, 1))


def paired_differences(table: pd.DataFrame, arm: str, other: str) -> pd.DataFrame:
    """Accuracy of `arm` minus that of `other` at the last epoch, paired by seed, with 95 % t intervals, by level."""
    rows = []
    for level, part in _last_epoch(table).dropna(subset=[arm, other]).groupby("level"):
        difference = metrics.seeds_interval((part[arm] - part[other]).to_numpy())
        rows.append({"level": level, **difference.to_dict()})
    return pd.DataFrame(rows)


def pairs(table: pd.DataFrame, arm: str, other: str) -> dict[str, np.ndarray]:
    """The single differences behind `paired_differences`: by "sigma LEVEL", one fraction per seed."""
    wide = _last_epoch(table).dropna(subset=[arm, other])
    return {f"sigma {level:g}": (part[arm] - part[other]).to_numpy() for level, part in wide.groupby("level")}


def verdict(differences: pd.DataFrame) -> str:
    """One sentence for the rows of `paired_differences`: where an arm is better, worse or not to be told apart."""
    signs = {"helps": differences["low"] > 0, "hurts": differences["high"] < 0}
    signs["makes no difference that these seeds can show"] = ~(signs["helps"] | signs["hurts"])
    parts = [
        f"{effect} at sigma {_enumerated(differences['level'][where])}"
        for effect, where in signs.items()
        if where.any()
    ]
    return (
        "Putting a denoiser in front of the classifier, rather than training it on the noisy films, "
        + "; it ".join(parts)
        + "."
    )


def _enumerated(levels: Iterable[float]) -> str:
    *first, last = (f"{level:g}" for level in levels)
    return f"{', '.join(first)} and {last}" if first else last


def _last_epoch(table: pd.DataFrame) -> pd.DataFrame:
    last = table[table["epoch"] == table["epoch"].max()]
    return last.pivot_table(index=["level", "seed"], columns="arm", values="accuracy")


def _score_cell(cell: Cell) -> pd.DataFrame:
    return pd.concat(_noisy_cell(cell) if cell.level else _clean_cell(cell))


def _clean_cell(cell: Cell) -> list[pd.DataFrame]:
    """A classifier of clean films, scored on clean films and, after every epoch, on noisy ones of each level."""
    fitted = _fit(cell, "clean", steps.ClassificationStep())
    tables = [_rows(cell, "clean", fitted.history)]
    for level in cell.config.ablation.levels:
        view = evaluation.View(cell.config.noise_kind, level, cell.seed)
        scores = [_score(fitted.model, weights, cell.val, view) for weights in _checkpoints(cell, "clean")]
        tables.append(_rows(replace(cell, level=level), "unprepared", fitted.history.assign(val_score=scores)))
    return tables


def _noisy_cell(cell: Cell) -> list[pd.DataFrame]:
    """Two classifiers of noisy films: behind an autoencoder trained for that level, and without."""
    denoiser = _fit(cell, "denoiser", steps.DenoisingStep())
    denoised = _fit(cell, "denoised", steps.ClassificationStep(denoiser.model))
    noisy = _fit(cell, "noisy", steps.ClassificationStep())
    before = denoiser.history["seconds"].sum()
    return [_rows(cell, "denoised", denoised.history, before=before), _rows(cell, "noisy", noisy.history)]


def _fit(cell: Cell, arm: str, step: steps.Step) -> training.Fitted:
    """One training; `training.fit` gives a stored result at once, which is what makes the grid resumable."""
    config, size = cell.config, cell.train.images.shape[-1]
    runtime.seed_everything(cell.seed)
    network = models.build("autoencoder") if arm == "denoiser" else models.build("cnn2", image_size=size)
    recipe = Recipe(epochs=config.ablation.epochs, checkpoint_every=1)
    corruption = steps.Corruption(config.noise_kind, cell.level)
    task = training.Task(step, cell.train, cell.val, corruption, recipe, cell.seed, config.precision, arm)
    return training.fit(network, task, cell.folder / arm)


def _checkpoints(cell: Cell, arm: str) -> list[Path]:
    return [training.checkpoint(cell.folder / arm, epoch + 1) for epoch in range(cell.config.ablation.epochs)]


def _score(model: nn.Module, weights: Path, films: steps.Films, view: evaluation.View) -> float:
    logits = evaluation.classify(runs.load_weights(model, weights), films, view)
    return float((logits.argmax(axis=1) == films.labels).mean())


def _rows(cell: Cell, arm: str, history: pd.DataFrame, *, before: float = 0.0) -> pd.DataFrame:
    facts = {"level": cell.level, "seed": cell.seed, "arm": arm, "n": len(cell.val)}
    table = history[["epoch", "val_score"]].rename(columns={"val_score": "accuracy"})
    return table.assign(**facts, seconds=before + history["seconds"].cumsum())
