"""Plain facts about a set of films for its first notebook: sizes, brightness, and what imbalance does to accuracy."""

import numpy as np
import pandas as pd

from pneumo_lib import images as files
from pneumo_lib.data.cache import ImageSet


def film_sizes(films: ImageSet, *, per_class: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Width and height in pixels of a sample of the files, by class: (n, 2) int each."""
    rng, sizes = np.random.default_rng(seed), {}
    for label, name in enumerate(films.classes):
        rows = np.flatnonzero(films.labels == label)
        taken = rng.choice(rows, min(per_class, len(rows)), replace=False)
        paths = [films.root / films.table["path"].iloc[row] for row in taken]
        sizes[name] = np.array([files.read(path).shape[::-1] for path in paths])
    return sizes


def gray_histograms(films: ImageSet, *, bins: int = 32) -> dict[str, np.ndarray]:
    """Share of pixels per gray level, by class: (bins,) fractions each, over every fourth pixel both ways."""
    histograms = {}
    for label, name in enumerate(films.classes):
        pixels = films.images[np.flatnonzero(films.labels == label)][:, ::4, ::4]
        counts = np.histogram(pixels, bins=bins, range=(0, 256))[0]
        histograms[name] = counts / counts.sum()
    return histograms


def imbalance(films: ImageSet) -> pd.DataFrame:
    """What two classifiers that never look at a film would score: always the largest class, and blind guessing.

    Returns:
        One row each: accuracy and macro recall (the mean over classes), fractions.
    """
    shares = np.bincount(films.labels, minlength=len(films.classes)) / len(films)
    largest = films.classes[int(shares.argmax())]
    rows = {
        f"always {largest}": {"accuracy": shares.max(), "macro recall": 1 / len(shares)},
        "guess by class shares": {"accuracy": (shares**2).sum(), "macro recall": 1 / len(shares)},
    }
    return pd.DataFrame(rows).T


def sample_per_class(films: ImageSet, n: int, *, seed: int = 0) -> ImageSet:
    """`n` films of each class (fewer where there are fewer), drawn without repetition, class by class."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(films.labels == label))[:n] for label in range(len(films.classes))]
    taken = np.concatenate(rows)
    table = films.table.iloc[taken].reset_index(drop=True)
    return ImageSet(films.images[taken], table, films.classes, films.notes, films.root)
