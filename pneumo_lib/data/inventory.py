"""What a set of films consists of, as numbers small enough to keep: counts by source and licence, patients, sizes."""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from pneumo_lib import images, runtime
from pneumo_lib.data.cache import Progress
from pneumo_lib.data.folder import ImageFolder
from pneumo_lib.data.licences import licences_of
from pneumo_lib.errors import DataError, ImageError

FACTS = "data_card.json"  # where an inventory is kept
GROUPS = ["split", "class", "source", "licence"]
LEARNT = ("train", "val")  # splits that networks learn from


def inventory(folder: ImageFolder, *, progress: Progress | None = None) -> dict[str, Any]:
    """Count the films of a folder; every file is read once, for its size.

    Args:
        folder: with a manifest.csv that has a column `licence`.
        progress: bar, called as ``progress(iterable, total=..., desc=...)``.

    Returns:
        name, classes; patients: known ones by split; films: one record per split, class, source and licence with the
        number of films, of known patients, and of films of unknown patient; shared: patients by the splits in which
        they have films, where these are several; acquainted: paths of films of other splits whose patient has films in
        train or val; sizes: smallest, median and largest width and height in pixels by split; types: files by suffix;
        bytes; unreadable: files that are no films.

    Raises:
        DataError: no manifest.csv, or no licences in it.
    """
    table = folder.table.assign(licence=licences_of(folder.root, folder.table["path"]))
    table["class"] = [folder.classes[label] for label in table["label"]]
    sizes = _sizes(folder, progress)
    return {
        "name": folder.root.name,
        "classes": list(folder.classes),
        "films": _counts(table),
        "patients": _patients(table),
        "shared": _shared(table),
        "acquainted": acquainted(table),
        "sizes": _ranges(table["split"], sizes),
        "types": dict(sorted(Counter(PurePosixPath(path).suffix.lower() for path in table["path"]).items())),
        "bytes": int(table["bytes"].sum()),
        "unreadable": int(sizes["width"].isna().sum()),
    }


def read_inventory(path: Path) -> dict[str, Any]:
    """What `inventory` gave, from the file FACTS; a DataError where it is missing, damaged or of an earlier version."""
    try:
        facts = json.loads(path.read_text())
        if "acquainted" not in facts:
            raise ValueError("an earlier version counted these films, and not whose patients are in training")
        return facts
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. `pneumo cards --data FOLDER` counts the films of a folder and writes it."
        ) from error


def _counts(table: pd.DataFrame) -> list[dict[str, Any]]:
    known = table.assign(patient=table["group"].replace("", None))
    rows = known.groupby(GROUPS, as_index=False).agg(
        films=("path", "size"), patients=("patient", "nunique"), unknown=("patient", lambda names: names.isna().sum())
    )
    return rows.to_dict("records")


def _patients(table: pd.DataFrame) -> dict[str, int]:
    known = table["group"].where(table["group"] != "")
    return {split: int(n) for split, n in known.groupby(table["split"]).nunique().items()}


def _shared(table: pd.DataFrame) -> dict[str, int]:
    splits = table[table["group"] != ""].groupby("group")["split"].agg(lambda names: ", ".join(sorted(set(names))))
    return {names: int(n) for names, n in splits.value_counts().sort_index().items() if ", " in names}


def acquainted(table: pd.DataFrame) -> list[str]:
    """Paths of films of other splits whose patient has films in train or val; of unknown patients nothing is known.

    Args:
        table: of a folder or image set: path, split, group (the patient, "" where unknown).
    """
    learnt = table["split"].isin(LEARNT)
    patients = set(table["group"][learnt]) - {""}
    return sorted(table["path"][~learnt & table["group"].isin(patients)])


def _sizes(folder: ImageFolder, progress: Progress | None) -> pd.DataFrame:
    """Width and height of every film, in the order of the table; NaN for what cannot be read."""

    def size(path: str) -> tuple[float, float]:
        try:
            height, width = images.read(folder.root / path).shape
        except ImageError:
            return np.nan, np.nan
        return width, height

    found = runtime.in_threads(size, folder.table["path"])
    bar = progress(found, total=len(folder.table), desc="sizes") if progress else found
    return pd.DataFrame(list(bar), columns=["width", "height"], dtype=float)


def _ranges(splits: pd.Series, sizes: pd.DataFrame) -> dict[str, dict[str, list[int]]]:
    parts = sizes.dropna().groupby(splits)
    return {
        split: {name: [round(f) for f in part[name].quantile([0, 0.5, 1])] for name in sizes} for split, part in parts
    }
