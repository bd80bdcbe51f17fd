"""Which folder of a tree holds the splits or the classes, and which classes these are.

Only names are read, and whether a folder holds images; nothing is decoded. Names are understood in this order:

1. the classes that the caller expects;
2. those of the first data card, the standard three first, whose classes are just the ones found over all splits.
   Where one would fit but for a folder too many or a misspelt name, it is expected too, so that scanning on refuses
   the folder that does not fit instead of making a class of it;
3. else the folder names themselves, in sorted order: the set is one that nobody here knows.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pneumo_lib.data.cards import CLASS_LISTS, CLASSES, class_of, near_class, plain
from pneumo_lib.errors import DataError, UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".dcm", ".dicom")
SPLITS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "testing": "test", "noisytest": "noisy_test"},
}
_WRAPPER_DEPTH = 3
_SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "__pycache__", "$recycle.bin")
_Reading = Callable[[Path], str | None]  # what class, if any, a folder is taken for


def locate(root: Path, classes: Sequence[str] | None) -> tuple[Path, tuple[str, ...], str]:
    """The folder that holds the splits or the classes, the classes, and a note where they are the folder's own.

    Args:
        root: that folder, or one around it.
        classes: the classes to expect; found from the folder names when None.

    Raises:
        DataError: no such folder, no class folders in it, several image folders.
        UsageError: fewer than two classes are expected, or one twice.
        OSError: a folder cannot be read.
    """
    _check_root(root)
    if classes is not None:
        return _find_base(root, _checked(tuple(classes))), tuple(classes), ""
    for reading, enough in ((_known, 2), (_known, 1), (_own, 2)):
        base = _search(root, reading, enough)
        if base:
            return base, *_understood(base, reading)
    return _find_base(root, CLASSES), CLASSES, ""


def classes_in(folder: Path, classes: tuple[str, ...]) -> set[str]:
    """Which of the classes have a folder here."""
    return _read(folder, lambda child: class_of(child.name, classes))


def split_of(name: str) -> str | None:
    """The split that a folder name means, or None: ``Validation`` -> ``val``."""
    return SPLITS.get(plain(name))


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in order of name; links are not followed, so a loop of links ends here."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not is_system(e.name))
    return [folder / name for name in names]


def is_system(name: str) -> bool:
    """Whether a name is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def listing(folder: Path, most: int = 6) -> str:
    """The first names in a folder, for error messages."""
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"


def ignored_kind(entry: os.DirEntry[str]) -> str:
    """Why an entry of a class folder is no image, in words; '' when it is one."""
    if is_system(entry.name):
        return "hidden or system entries"
    if entry.is_symlink():
        return "symbolic links"
    if entry.is_dir():
        return "folders inside class folders"
    suffix = Path(entry.name).suffix.lower()
    if suffix in IMAGE_SUFFIXES or (not suffix and _has_dicom_mark(entry.path)):
        return ""
    return f"files that are not JPEG, PNG or DICOM by name ({suffix or 'no suffix'})"


def _has_dicom_mark(path: str) -> bool:
    """DICOM files often come without a suffix; they carry DICM after 128 free bytes (DICOM part 10)."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _check_root(root: Path) -> None:
    if not root.exists():
        raise DataError(
            f"There is no folder {root}. Give the folder that holds train/ and test/, or the class folders."
        )
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder. Unpack it first, then give the folder with the images.")


def _checked(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(classes) < 2 or len({plain(name) for name in classes}) < len(classes):
        raise UsageError(f"The classes are {classes}; expected are at least two, each once.")
    return classes


# ---- which folder is meant ------------------------------------------------------------------------------------------


def _find_base(root: Path, classes: tuple[str, ...]) -> Path:
    for enough in (2, 1):
        base = _search(root, lambda child: class_of(child.name, classes), enough)
        if base:
            return base
    raise DataError(
        f"No images found in {root}: it holds {listing(root)}. Expected is SPLIT/CLASS/image or CLASS/image with the "
        f"splits train, val, test and the classes {', '.join(classes)}, or at least two class folders of other names."
    )


def _search(root: Path, reading: _Reading, enough: int) -> Path | None:
    """The outermost folder that holds splits or `enough` classes; wrapper folders around it are looked through."""
    level = [root]
    for _ in range(_WRAPPER_DEPTH + 1):
        bases = [folder for folder in level if _is_base(folder, reading, enough)]
        if len(bases) > 1:
            names = ", ".join(str(base.relative_to(root)) for base in bases)
            raise DataError(f"{root} holds several image folders ({names}). Give one of them.")
        if bases:
            return bases[0]
        level = [child for folder in level for child in subfolders(folder)]
    return None


def _is_base(folder: Path, reading: _Reading, enough: int) -> bool:
    return any(_read(split, reading) for split in _splits(folder)) or len(_read(folder, reading)) >= enough


def _read(folder: Path, reading: _Reading) -> set[str]:
    return {name for child in subfolders(folder) if (name := reading(child))}


def _splits(folder: Path) -> list[Path]:
    return [child for child in subfolders(folder) if split_of(child.name)]


# ---- which classes are meant ----------------------------------------------------------------------------------------


def _known(folder: Path) -> str | None:
    """Its name, where some data card has a class of that name."""
    return plain(folder.name) if any(class_of(folder.name, classes) for classes in CLASS_LISTS) else None


def _own(folder: Path) -> str | None:
    """Its name, where it holds images and is no split."""
    return folder.name if not split_of(folder.name) and _holds_images(folder) else None


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(not ignored_kind(entry) for entry in entries)


def _understood(base: Path, reading: _Reading) -> tuple[tuple[str, ...], str]:
    """The classes of an image folder, and a note where no card has them."""
    found = {child.name for parent in _parents(base, reading) for child in subfolders(parent) if _counts(child)}
    names = tuple({plain(name): name for name in sorted(found, reverse=True)}.values())[::-1]
    for fits in (_covers, _nearly_covers, _belongs):
        for classes in CLASS_LISTS:
            if fits(names, classes):
                return classes, ""
    if len(names) < 2:
        raise DataError(f"{base} holds images of one class only, {names[0]}. To tell classes apart, two are needed.")
    return names, f"The classes are the names of the folders, {', '.join(names)}: no data card has just these."


def _parents(base: Path, reading: _Reading) -> Iterator[Path]:
    """The folders whose subfolders are classes."""
    splits = [child for child in _splits(base) if _read(child, reading)]
    if reading is _own:
        yield from splits or [base]
    elif _read(base, _known):
        yield base
    else:
        yield from (child for child in subfolders(base) if _read(child, _known))


def _counts(folder: Path) -> bool:
    return bool(_known(folder) or _own(folder))


def _covers(names: tuple[str, ...], classes: tuple[str, ...]) -> bool:
    return {class_of(name, classes) for name in names} == set(classes)


def _nearly_covers(names: tuple[str, ...], classes: tuple[str, ...]) -> bool:
    return {near_class(name, classes) for name in names} - {None} == set(classes)


def _belongs(names: tuple[str, ...], classes: tuple[str, ...]) -> bool:
    """A single class of a known set: what is missing can be said."""
    return len(names) == 1 and class_of(names[0], classes) is not None
