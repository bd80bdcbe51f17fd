"""Image folders as people have them -> one table of files.

Understood are ``ROOT/SPLIT/CLASS/image`` and ``ROOT/CLASS/image``, also with wrapper folders around them, as in
``Data/Data/train``. Nothing is decoded here and nothing is written.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pneumo_lib.data import layout
from pneumo_lib.data.cards import class_of, spellings
from pneumo_lib.errors import DataError

COLUMNS = ("path", "split", "label", "bytes", "group", "source")
# Kermany's file names: person63_bacteria_306, IM-0115-0001, NORMAL2-IM-0012-0001.
_PATIENT = re.compile(r"(person\d+)_|((?:NORMAL\d*-)?IM-\d+)-\d")


@dataclass(frozen=True)
class ImageFolder:
    """The files of one data set.

    Attributes:
        root: folder that holds the splits or the classes; `path` in the table is relative to it.
        classes: class names; `label` in the table is an index into them.
        table: one row per file, sorted by path: `path` (str, with forward slashes), `split` (str, '' when the set has
            none), `label` (int), `bytes` (int), `group` (str, the patient, '' when unknown), `source` (str or '').
        notes: what was mapped, ignored or found odd, one sentence each.
    """

    root: Path
    classes: tuple[str, ...]
    table: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...]


@dataclass
class _Found:
    """What a scan collects on its way."""

    ignored: Counter[str] = field(default_factory=Counter)
    renamed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def scan(root: str | Path, *, classes: Sequence[str] | None = None) -> ImageFolder:
    """List the images of a folder with their split, class and patient.

    Args:
        root: the folder, or one around it.
        classes: the classes to expect, in the order of the label index. When None they are found from the folder
            names: those of a data card that has just these, else the names themselves, sorted; a note says so.

    Raises:
        DataError: no such folder, no images, a class missing or empty in a split, a folder that is no known class.
        UsageError: fewer than two classes are expected, or one twice.
    """
    given, found = Path(root), _Found()
    try:
        base, classes, note = layout.locate(given, classes)
        found.notes += [note] if note else []
        table = pd.DataFrame(_rows(base, classes, found), columns=list(COLUMNS)).sort_values("path", ignore_index=True)
        table = _with_manifest(table, base, classes, found)
    except OSError as error:
        raise DataError(f"The image folder {given} cannot be read: {error}. Check its permissions.") from error
    if base != given:
        found.notes.insert(0, f"The images were found in {base.relative_to(given).as_posix()}.")
    return ImageFolder(base, classes, table, (*_spoken(found), *found.notes))


def count(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Number of images, one row per split, one column per class."""
    counts = pd.crosstab(table["split"], table["label"]).reindex(columns=range(len(classes)), fill_value=0)
    order = sorted(counts.index, key=lambda split: (["train", "val", "test", "noisy_test", split].index(split), split))
    return counts.loc[order].set_axis(list(classes), axis=1)


# ---- which files are meant ------------------------------------------------------------------------------------------


def _rows(base: Path, classes: tuple[str, ...], found: _Found) -> Iterator[tuple[str, str, int, int, str, str]]:
    for split, folder in _split_folders(base, classes, found):
        counts: Counter[str] = Counter()
        for name, class_folder in _class_folders(folder, classes, found):
            for path, size in _image_files(class_folder, found):
                counts[name] += 1
                yield path.relative_to(base).as_posix(), split, classes.index(name), size, _patient(path.name), ""
        _check_complete(folder, classes, counts)


def _split_folders(base: Path, classes: tuple[str, ...], found: _Found) -> Iterator[tuple[str, Path]]:
    if layout.classes_in(base, classes):
        yield "", base
        return
    for folder in _visible(base, found):
        split = layout.split_of(folder.name)
        if split and split != folder.name:
            found.renamed[folder.name] = split
        if not split and not layout.classes_in(folder, classes):
            found.notes.append(f"The folder {folder.name} is neither a split nor holds classes; it was left out.")
            continue
        if not split:
            found.notes.append(f"{folder.name} is no split known by name; it is kept as a split of its own.")
        yield split or folder.name, folder


def _class_folders(folder: Path, classes: tuple[str, ...], found: _Found) -> Iterator[tuple[str, Path]]:
    for child in _visible(folder, found):
        name = class_of(child.name, classes)
        if name is None and len(layout.classes_in(child, classes)) > 1:  # as in the Kaggle archive of the brain MRI
            found.notes.append(f"The folder {child.name} holds the classes once more; it was left out.")
            continue
        if name is None:
            known = "; ".join(f"{name} ({', '.join(spellings(name, classes))})" for name in classes)
            raise DataError(
                f"The folder {child} is none of the expected classes. Known names, whatever their case: {known}. "
                "Rename the folder to the class that it means, move it out of the data set, or name your own classes "
                "in Python: open_folder(FOLDER, classes=...)."
            )
        if name != child.name:
            found.renamed[child.name] = name
        yield name, child


def _visible(folder: Path, found: _Found) -> list[Path]:
    """The subfolders to look at; everything else beside them is counted as ignored, except documents."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if layout.is_system(entry.name):
                found.ignored["hidden or system entries"] += 1
            elif entry.is_symlink():
                found.ignored["symbolic links"] += 1
            elif entry.is_file() and Path(entry.name).suffix.lower() in layout.IMAGE_SUFFIXES:
                found.ignored["images outside the class folders"] += 1
    return layout.subfolders(folder)


def _image_files(folder: Path, found: _Found) -> Iterator[tuple[Path, int]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            kind = layout.ignored_kind(entry)
            if kind:
                found.ignored[kind] += 1
            else:
                yield folder / entry.name, entry.stat(follow_symlinks=False).st_size


def _patient(file_name: str) -> str:
    match = _PATIENT.match(file_name)
    return (match[1] or match[2]) if match else ""


def _check_complete(folder: Path, classes: tuple[str, ...], counts: Counter[str]) -> None:
    absent = [name for name in classes if not counts[name]]
    if absent:
        held = ", ".join(f"{counts[name]} of {name}" for name in classes)
        raise DataError(
            f"No images of {', '.join(absent)} in {folder}: found {held}; the folder holds {layout.listing(folder)}. "
            f"Each of {', '.join(classes)} needs a folder with at least one JPEG, PNG or DICOM file; or remove the "
            "split."
        )


def _spoken(found: _Found) -> Iterator[str]:
    if found.renamed:
        pairs = ", ".join(f"{given} as {meant}" for given, meant in sorted(found.renamed.items()))
        yield f"Folder names read as: {pairs}."
    if found.ignored:
        yield f"Ignored: {', '.join(f'{n} {kind}' for kind, n in sorted(found.ignored.items()))}."


# ---- manifest.csv ---------------------------------------------------------------------------------------------------


def _with_manifest(table: pd.DataFrame, base: Path, classes: tuple[str, ...], found: _Found) -> pd.DataFrame:
    """Patients and sources from manifest.csv where there is one; where it disagrees with the folders, they win."""
    path = base / "manifest.csv"
    if not path.is_file():
        return table
    manifest = read_manifest(path)
    named = manifest.reindex(table["path"])
    for column in ("group", "source"):
        if column in named:
            given = named[column].fillna("").to_numpy()
            table[column] = table[column].where(given == "", given)
    found.notes += _disagreements(table, manifest, named, classes)
    return table


def read_manifest(path: Path) -> pd.DataFrame:
    """The texts of a manifest.csv, one row per file, indexed by its path with forward slashes.

    Raises:
        DataError: it is no CSV file, or has no column `path`.
    """
    try:
        manifest = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path} is not a readable CSV file: {error}. Repair or remove it.") from error
    if "path" not in manifest:
        raise DataError(f"{path} has no column 'path', only {', '.join(manifest)}. Repair or remove it.")
    manifest["path"] = manifest["path"].str.replace("\\", "/", regex=False)
    return manifest.drop_duplicates("path").set_index("path")


def _disagreements(
    table: pd.DataFrame, manifest: pd.DataFrame, named: pd.DataFrame, classes: tuple[str, ...]
) -> Iterator[str]:
    gone, unlisted = len(manifest.index.difference(table["path"])), int((~table["path"].isin(manifest.index)).sum())
    if gone:
        yield f"manifest.csv lists {gone} files that are not in the folder."
    if unlisted:
        yield f"manifest.csv does not list {unlisted} of the {len(table)} files."
    actual = {"label": [classes[label] for label in table["label"]], "split": table["split"].tolist()}
    reading = {"label": lambda name: class_of(name, classes), "split": layout.split_of}
    for column in sorted(actual.keys() & set(named)):
        pairs = zip(named[column].fillna(""), actual[column], strict=True)
        wrong = sum(bool(said) and (reading[column](said) or said) != truth for said, truth in pairs)
        if wrong:
            yield f"manifest.csv gives {wrong} files another {column} than their folder does; the folder counts."
