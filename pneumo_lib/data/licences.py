"""Films by the terms they came under: an image folder of those that a network to be given away may be made of."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pneumo_lib.data.download import beside
from pneumo_lib.data.folder import ImageFolder, read_manifest, scan
from pneumo_lib.errors import DataError, UsageError

FREE = ("CC BY", "CC0", "public domain")  # terms that ask for the author's name at most
SPOKEN = ", ".join(FREE)
UNKNOWN = "unknown"
TESTS = ("test", "noisy_test")  # splits that teach a network nothing
_VERSION = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True)
class Selection:
    """A folder made by `select`.

    Attributes:
        folder: what it holds.
        table: one row per split, class and licence: split, class, licence, films, kept (a number, all or none).
    """

    folder: ImageFolder
    table: pd.DataFrame


def allowed(licence: str, names: Sequence[str]) -> bool:
    """Whether a licence is one of these, word for word; a name without a version allows every version.

    So "CC BY" allows "CC BY 3.0" and "CC-BY-4.0", but neither "CC BY-NC 4.0" nor "CC BY-SA" nor "CC BY-ND".
    """
    words = _words(licence)
    plain = words[:-1] if words and _VERSION.fullmatch(words[-1]) else words
    return bool(words) and any(_words(name) in (words, plain) for name in names)


def licences_of(root: Path, paths: Sequence[str]) -> list[str]:
    """The licence of each film as manifest.csv says it; UNKNOWN where it says none or does not list the film.

    Args:
        root: image folder.
        paths: relative to it, with forward slashes.

    Raises:
        DataError: there is no manifest.csv, or it has no column `licence`.
    """
    path = root / "manifest.csv"
    if not path.is_file():
        raise DataError(
            f"There is no manifest.csv in {root}, so no film's licence is known. Put one there, a table with the "
            "columns path and licence and a row for each film."
        )
    manifest = read_manifest(path)
    if "licence" not in manifest:
        raise DataError(
            f"{path} has no column 'licence', only path, {', '.join(manifest)}. Add it: the terms of each film, "
            f"for example {FREE[0]} 4.0, and nothing where they are not known."
        )
    said = manifest["licence"].str.strip().reindex(paths).fillna("")
    return [licence or UNKNOWN for licence in said]


def select(root: str | Path, out: str | Path, names: Sequence[str] = FREE, *, every_split: bool = False) -> Selection:
    """Make an image folder of the films that came under certain terms, and a manifest.csv of those.

    By default only what a network learns from is filtered: train, val, and any split of another name. Test splits stay
    whole: a network may be tested on films that it must not be made of. Films without splits are all filtered.
    Files are hard links to the first folder's where both lie on one disk, and copies otherwise.

    Args:
        root: image folder with a manifest.csv that has a column `licence`.
        out: folder to make; it must not exist or be empty. A set keeps its card where the folder has the card's name.
        names: licences to keep, as `allowed` understands them.
        every_split: filter the test splits too.

    Raises:
        DataError: no manifest or no licences in it, no film of a class left in a split, a folder that has something in
            it or cannot be written.
        UsageError: no licence is named.
    """
    if not all(map(_words, names)) or not names:
        raise UsageError(f"The licences to keep are {list(names)}; name at least one, for example {FREE[0]!r}.")
    films, out = scan(root), Path(out)
    _check_place(films.root, out)
    table = films.table.assign(licence=licences_of(films.root, films.table["path"]))
    table["class"] = [films.classes[label] for label in table["label"]]
    table["kept"] = table["licence"].map(lambda licence: allowed(licence, names))
    if not every_split:
        table["kept"] |= table["split"].isin(TESTS)
    _check_left(table, films.root, names)
    try:
        _write(films.root, table.loc[table["kept"], "path"], out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}. Choose another folder.") from error
    return Selection(scan(out, classes=films.classes), _counted(table))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_-]+", name.casefold()) if word]


def _check_place(root: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already and not an empty folder. Delete it or choose another one.")
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise DataError(f"{out} lies inside the image folder {root}, which is read only. Choose a place outside it.")


def _check_left(table: pd.DataFrame, root: Path, names: Sequence[str]) -> None:
    left = table.groupby(["split", "class"])["kept"].sum()
    for split, name in left.index[left == 0]:
        there = table.loc[(table["split"] == split) & (table["class"] == name), "licence"].value_counts()
        raise DataError(
            f"No film of {name} in {root / split} is under {' or '.join(names)}: there are "
            f"{', '.join(f'{n} under {licence}' for licence, n in there.items())}. Allow one of these with --licence, "
            "or add films of that class."
        )


def _write(root: Path, paths: Sequence[str], out: Path) -> None:
    manifest = read_manifest(root / "manifest.csv")
    with beside(out) as half:
        for path in paths:
            (half / path).parent.mkdir(parents=True, exist_ok=True)
            _link(root / path, half / path)
        manifest.reindex(paths).dropna(how="all").reset_index(names="path").to_csv(half / "manifest.csv", index=False)
        if out.is_dir():
            out.rmdir()
        half.rename(out)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _counted(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby(["split", "class", "licence"], as_index=False)
    return groups.agg(films=("path", "size"), kept=("kept", "sum"))
