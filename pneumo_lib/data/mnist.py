"""MedMNIST sets, which come as one file of arrays, as image folders like all others.

The file holds ``train_images`` (N, S, S) uint8 and ``train_labels`` (N, 1), and the same for ``val`` and ``test``
(Yang et al., Scientific Data 10 (2023) 41).
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pneumo_lib.errors import DataError, UsageError

SPLITS = ("train", "val", "test")
SIZES = (28, 64, 128, 224)
MOST_BYTES = 2 * 10**9  # PneumoniaMNIST at 224 pixels has 0.3
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
)


def download(name: str, folder: Path, *, size: int) -> Path:
    """Fetch the file of a set into a folder, through the package `medmnist`.

    Args:
        name: as the package calls the set, for example ``pneumoniamnist``.
        folder: where the file goes; exists.
        size: side of the films in pixels, one of `SIZES`.

    Raises:
        UsageError: the set does not come in this size.
        Exception: whatever the package raises, ImportError if it is not installed.
    """
    if size not in SIZES:
        raise UsageError(f"The size is {size}; {name} comes in {', '.join(map(str, SIZES))} pixels.")
    import medmnist  # imported late: it draws scikit-learn in and makes a folder in the user's home

    getattr(medmnist, medmnist.INFO[name]["python_class"])(split="train", download=True, size=size, root=str(folder))
    return folder / file_name(name, size)


def file_name(name: str, size: int) -> str:
    """What MedMNIST calls the file: ``pneumoniamnist.npz`` at 28 pixels, ``pneumoniamnist_64.npz`` at 64."""
    return f"{name}.npz" if size == SIZES[0] else f"{name}_{size}.npz"


def write_folder(npz: Path, out: Path, classes: Sequence[str]) -> None:
    """Write the films of a MedMNIST file to ``OUT/SPLIT/CLASS/NNNNN.png``, numbered as in the file.

    Args:
        npz: the file.
        out: folder to make; `download.fetch` gives one that is renamed when it is whole.
        classes: class names in the order of the labels.

    Raises:
        DataError: not such a file, or one of gray films of these classes.
        OSError: the folder cannot be written.
    """
    for split, images, labels in _read(npz, len(classes)):
        for name in classes:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for number, (film, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(film).save(out / split / classes[label] / f"{number:05d}.png")


def _read(npz: Path, n_classes: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Split, (N, S, S) uint8 films and (N,) labels; all splits are looked at before the first is given."""
    if not npz.is_file():
        raise DataError(f"There is no file {npz}. Give the .npz file of the set.")
    parts = []
    try:
        _check_size(npz)
        with np.load(npz, allow_pickle=False) as arrays:
            for split in SPLITS:
                parts.append((split, *(_array(arrays, f"{split}_{kind}", npz) for kind in ("images", "labels"))))
    except _DAMAGE as error:
        raise DataError(f"{npz} is not a whole file of arrays (.npz): {error}. Download it again.") from error
    for part in parts:
        _check(*part, npz, n_classes)
    return ((split, images, labels.reshape(-1)) for split, images, labels in parts)


def _check_size(npz: Path) -> None:
    with zipfile.ZipFile(npz) as opened:
        total = sum(entry.file_size for entry in opened.infolist())
    if total > MOST_BYTES:
        raise DataError(f"{npz} unpacks to {total / 1e9:.1f} GB; at most {MOST_BYTES / 1e9:.0f} are read.")


def _array(arrays: np.lib.npyio.NpzFile, name: str, npz: Path) -> np.ndarray:
    if name not in arrays:
        raise DataError(
            f"{npz} has no array {name}, only {', '.join(arrays) or 'none'}. Give the file of a MedMNIST set."
        )
    return arrays[name]


def _check(split: str, images: np.ndarray, labels: np.ndarray, npz: Path, n_classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise DataError(
            f"{split}_images in {npz} are {images.dtype} of shape {images.shape}; expected are gray films, uint8 of "
            "shape (N, S, S)."
        )
    if labels.size != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{split}_labels in {npz} are {labels.dtype} of shape {labels.shape} for {len(images)} films; expected is "
            "one whole number each."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < n_classes:
        raise DataError(
            f"{split}_labels in {npz} go from {labels.min()} to {labels.max()}; expected are 0 to {n_classes - 1}."
        )
