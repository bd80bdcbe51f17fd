"""From a folder of films to an array with labels, splits and patients."""

from collections.abc import Sequence
from pathlib import Path

from pneumo_lib.data.cache import ImageSet, Progress, load
from pneumo_lib.data.cards import CARDS, CLASSES, DataCard, card
from pneumo_lib.data.folder import ImageFolder, scan
from pneumo_lib.data.split import Fold, assign, carve, folds

__all__ = [
    "CARDS",
    "CLASSES",
    "DataCard",
    "Fold",
    "ImageFolder",
    "ImageSet",
    "assign",
    "card",
    "carve",
    "folds",
    "load",
    "open_folder",
    "scan",
]

TEST_FRACTION = 0.2


def open_folder(
    root: str | Path,
    *,
    image_size: int,
    cache_dir: str | Path,
    val_fraction: float = 0.1,
    seed: int,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Find, decode (once) and split the films of a folder: how every notebook begins.

    Args:
        root: image folder, with or without splits.
        image_size: side of the square films, in pixels.
        cache_dir: where decoded films are kept, outside the image folder.
        val_fraction: share for validation, of train where the set has splits, of all films where it has none.
        seed: of the split.
        classes: the classes to expect, in the order of the label index; found from the folder names when None.
        progress: bar, called as ``progress(iterable, total=..., desc=...)``.

    Raises:
        DataError: the folder cannot be used; the message says why and what to do.
        UsageError: an argument lies outside its range.
    """
    films = load(scan(root, classes=classes), image_size=image_size, cache_dir=cache_dir, progress=progress)
    if (films.table["split"] != "").any():
        return carve(films, fraction=val_fraction, seed=seed)
    return assign(films, fractions=(1 - val_fraction - TEST_FRACTION, val_fraction, TEST_FRACTION), seed=seed)
