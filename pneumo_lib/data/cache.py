"""Decode and resize every film once; afterwards epochs read one memory-mapped uint8 array.

A cache is a folder ``CACHE_DIR/KEY`` with ``meta.json`` and ``HASH.u8``, the bytes of the array. The key is a hash of
file list, sizes, modification times, image size and format version, so changed data has another key. Both files are
written under a temporary name and renamed when whole: a killed build leaves nothing that passes for a cache.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo_lib import images, runtime
from pneumo_lib.data.folder import ImageFolder, count
from pneumo_lib.data.picked import Picked
from pneumo_lib.errors import DataError, ImageError, UsageError

FORMAT_VERSION = 2  # another number when the same file gives other pixels
MOST_UNREADABLE = 0.01  # share of the files; above it the set is damaged rather than flawed
_ABANDONED_AFTER = 3600  # seconds without a write, after which a half-built cache has no living builder
_CHUNK = 1 << 24

Progress = Callable[..., Iterable]


@dataclass(frozen=True, repr=False, eq=False)
class ImageSet:
    """Films in memory order, with what is known about each.

    Attributes:
        images: (N, S, S) uint8, read-only and memory-mapped when it comes from a cache; of a split, rows of that.
        table: N rows with the columns of `ImageFolder.table`; row i describes images[i].
        classes: class names; `label` in the table is an index into them.
        notes: what was mapped, ignored, skipped or moved, one sentence each.
        root: folder that the paths in the table start from.
        key: hash of the files that the pixels come from; '' when they come from no cache.
    """

    images: np.ndarray | Picked
    table: pd.DataFrame
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    root: Path = Path()
    key: str = ""

    def __post_init__(self):
        if len(self.images) != len(self.table):
            raise DataError(
                f"{len(self.images)} images but {len(self.table)} rows: each image needs its row in the table."
            )

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        splits = ", ".join(
            f"{split or 'no split'} {n}" for split, n in count(self.table, self.classes).sum(axis=1).items()
        )
        size = "×".join(map(str, self.images.shape[1:]))
        return f"ImageSet({len(self)} films of {size}: {splits};\n{' ' * 9}{', '.join(self.classes)})"

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, indices into `classes`."""
        return self.table["label"].to_numpy(dtype=np.int64)

    @property
    def identity(self) -> str:
        """Hash of files, classes, labels, splits and patients: equal identities give equal results."""
        rows = self.table.drop(columns="bytes", errors="ignore").to_csv(index=False)
        return _digest(rows, self.classes, self.images.shape, self.key or _sha256(np.asarray(self.images).reshape(-1)))

    def subset(self, split: str) -> "ImageSet":
        """The films of one split, left where they are: a view of the array, or `Picked` rows of it.

        Raises:
            DataError: the set has no such split.
        """
        rows = np.flatnonzero(self.table["split"] == split)
        if not len(rows):
            found = ", ".join(repr(name) for name in sorted(self.table["split"].unique()))
            raise DataError(f"There is no split {split!r} in {self.root}; found are {found or 'none'}.")
        together = rows[-1] - rows[0] + 1 == len(rows)
        taken = self.images[rows[0] : rows[-1] + 1] if together else Picked(self.images, rows)
        return replace(self, images=taken, table=self.table.iloc[rows].reset_index(drop=True))

    def describe(self) -> pd.DataFrame:
        """One row per split: images per class, all images, known patients, megabytes of the files."""
        by_split = self.table.groupby("split")
        shown = count(self.table, self.classes)
        shown["all"] = shown.sum(axis=1)
        shown["patients known"] = by_split["group"].agg(lambda groups: groups[groups != ""].nunique())
        shown["files, MB"] = (by_split["bytes"].sum() / 1e6).round(1)
        return shown


def load(
    folder: ImageFolder,
    *,
    image_size: int,
    cache_dir: str | Path,
    progress: Progress | None = None,
    workers: int | None = None,
) -> ImageSet:
    """The films of a folder as one array, decoded now or by an earlier call.

    Args:
        folder: from `scan`.
        image_size: side S of the square films, in pixels.
        cache_dir: where caches are kept; never inside the data set.
        progress: bar, called as ``progress(iterable, total=..., desc=...)``.
        workers: decoding threads; the number of processors when None.

    Raises:
        DataError: more than 1 % of the files are unreadable, a class is left without films, the disk is full.
        UsageError: impossible image size, or a cache folder inside the data set.
    """
    _check_arguments(folder, image_size, Path(cache_dir))
    key, notes = _key(folder, image_size), []
    place, files = Path(cache_dir, key), len(folder.table)
    cache = _open(place, files, image_size)
    if cache is None or _readable_again(cache, folder.root, image_size):
        if (place / "meta.json").exists():
            notes.append("The cache of decoded films was damaged or out of date and was made again.")
        _build(place, folder, image_size, progress=progress, workers=workers)
        cache = _open(place, files, image_size)
    if cache is None:
        raise DataError(f"The cache {place} changed while it was read. Remove it and run again.")
    return _image_set(folder, cache, key, notes)


@dataclass(frozen=True)
class _Cache:
    images: np.ndarray
    skipped: dict[str, str]


def _check_arguments(folder: ImageFolder, image_size: int, cache_dir: Path) -> None:
    if not 1 <= image_size <= 4096:
        raise UsageError(f"image_size is {image_size}; expected is a side between 1 and 4096 pixels.")
    if cache_dir.resolve().is_relative_to(folder.root.resolve()):
        raise UsageError(f"The cache folder {cache_dir} lies inside the data set {folder.root}. Choose one outside it.")


def _image_set(folder: ImageFolder, cache: _Cache, key: str, notes: list[str]) -> ImageSet:
    table = folder.table[~folder.table["path"].isin(cache.skipped)].reset_index(drop=True)
    lost = sorted(_parts(folder.table) - _parts(table))
    if lost:
        split, label = lost[0]
        where = f"{folder.classes[label]} in {split or folder.root}"
        raise DataError(f"None of the files of {where} can be read. {_first(cache.skipped)}")
    if cache.skipped:
        notes = [
            *notes,
            f"Skipped {len(cache.skipped)} unreadable of {len(folder.table)} files. {_first(cache.skipped)}",
        ]
    return ImageSet(cache.images, table, folder.classes, (*folder.notes, *notes), folder.root, key)


def _parts(table: pd.DataFrame) -> set[tuple[str, int]]:
    return set(zip(table["split"], table["label"], strict=True))


def _first(skipped: dict[str, str], most: int = 5) -> str:
    more = [f"And {len(skipped) - most} more."] if len(skipped) > most else []
    return " ".join([*list(skipped.values())[:most], *more])


# ---- key and validity -----------------------------------------------------------------------------------------------


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:24]


def _key(folder: ImageFolder, image_size: int) -> str:
    return _digest(FORMAT_VERSION, image_size, *(_stamp(folder.root, path) for path in folder.table["path"]))


def _stamp(root: Path, path: str) -> str:
    try:
        status = os.stat(root / path)
    except OSError:
        return f"{path}\0absent"
    return f"{path}\0{status.st_size}\0{status.st_mtime_ns}"


def _open(place: Path, files: int, image_size: int) -> _Cache | None:
    """The cache at a place, or None when it is absent, truncated or altered."""
    try:
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
        skipped = dict(meta["skipped"])
        shape = (files - len(skipped), image_size, image_size)
        stored = np.memmap(place / f"{meta['sha256']}.u8", dtype=np.uint8, mode="r")
        whole = stored.size == np.prod(shape) and _sha256(stored) == meta["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _Cache(stored.reshape(shape), skipped) if whole else None


def _sha256(stored: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, stored.size, _CHUNK):
        digest.update(stored[start : start + _CHUNK])
    return digest.hexdigest()


def _readable_again(cache: _Cache, root: Path, image_size: int) -> bool:
    """Whether a skipped file can be read by now: permissions and network drives change without a trace in the key."""
    return any(isinstance(_decode(root, path, image_size), np.ndarray) for path in cache.skipped)


# ---- building -------------------------------------------------------------------------------------------------------


def _decode(root: Path, path: str, image_size: int) -> np.ndarray | str:
    """(S, S) uint8, or in words why the file cannot be read."""
    try:
        return images.to_uint8(images.resize(images.read(root / path, name=path), image_size))
    except ImageError as error:
        return str(error)


def _build(
    place: Path, folder: ImageFolder, image_size: int, *, progress: Progress | None, workers: int | None
) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place)
        _check_space(place, len(folder.table) * image_size**2)
        with tempfile.TemporaryDirectory(prefix="building-", dir=place, ignore_cleanup_errors=True) as half:
            meta = _write(Path(half, "images.u8"), folder, image_size, progress=progress, workers=workers)
            Path(half, "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            # The array is named by its hash and meta.json names it: builders that meet only replace like by like.
            os.replace(Path(half, "images.u8"), place / f"{meta['sha256']}.u8")
            os.replace(Path(half, "meta.json"), place / "meta.json")
    except OSError as error:
        raise DataError(
            f"The cache {place} cannot be written: {error}. Free some space or choose another folder."
        ) from error


def _write(
    target: Path, folder: ImageFolder, image_size: int, *, progress: Progress | None, workers: int | None
) -> dict:
    paths, skipped, digest = folder.table["path"].tolist(), {}, hashlib.sha256()
    # Threads suffice, as Pillow decodes and resizes outside the interpreter lock.
    decoded = runtime.in_threads(lambda path: _decode(folder.root, path, image_size), paths, threads=workers or 0)
    with open(target, "wb") as file, closing(decoded) as films:
        bar = progress(films, total=len(paths), desc="decoding") if progress else films
        for path, film in zip(paths, bar, strict=True):
            if isinstance(film, str):
                skipped[path] = film
                _check_share(skipped, len(paths), folder.root)
            else:
                file.write(film.data)
                digest.update(film.data)
    return {"sha256": digest.hexdigest(), "skipped": skipped}


def _check_share(skipped: dict[str, str], files: int, root: Path) -> None:
    if len(skipped) > MOST_UNREADABLE * files:
        raise DataError(
            f"More than {MOST_UNREADABLE:.0%} of the {files} files in {root} cannot be read; reading stopped after "
            f"{len(skipped)}. {_first(skipped)} Get these files again or remove them."
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise DataError(
            f"The cache needs {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free. "
            "Free some space, choose another cache folder or a smaller image size."
        )


def _remove_abandoned(place: Path) -> None:
    """Whatever a killed build left; what another process writes at this moment is younger."""
    for half in place.glob("building-*"):
        newest = max((path.stat().st_mtime for path in (half, *half.glob("*"))), default=0.0)
        if time.time() - newest > _ABANDONED_AFTER:
            shutil.rmtree(half, ignore_errors=True)
