"""Public image sets: from Kaggle or MedMNIST by name, or from a file that was fetched by hand.

Everything arrives under a temporary name beside its place and is renamed when it proved to be a whole image folder.
"""

import shutil
import stat
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pneumo_lib.data import mnist
from pneumo_lib.data.cards import DataCard, card
from pneumo_lib.data.folder import ImageFolder, count, scan
from pneumo_lib.errors import DataError, UsageError

MOST_ENTRIES = 200_000
MOST_BYTES = 50 * 10**9
MOST_RATIO = 50  # films hardly compress: an archive that grows fiftyfold is made to fill the disk


def fetch(name: str, *, out: str | Path, from_zip: str | Path | None = None, size: int = 28) -> ImageFolder:
    """Put a data set into a folder, unless it is there.

    Args:
        name: data set, a key of `cards.CARDS`.
        out: the folder that will hold it; a folder that has something in it is checked and left as it is.
        from_zip: archive fetched by hand, for a MedMNIST set its .npz file; without it the set comes from the network.
        size: side in pixels in which a MedMNIST set is downloaded; other sets have the sizes of their files.

    Raises:
        UsageError: unknown name, a set that is drawn rather than downloaded, a size that there is not.
        DataError: no network, a bad archive, or not the expected image folder; the message says what to do by hand.
    """
    known, out = card(name), Path(out)
    if not (known.kaggle or known.page):
        raise UsageError(f"The data set {name} is drawn, not downloaded: run `pneumo data {name}`.")
    if out.is_dir() and any(out.iterdir()):
        return _noted(scan(out, classes=known.classes), f"{out} was there already and was left as it is.")
    try:
        with beside(out) as half:
            if known.medmnist:
                return _from_arrays(known, Path(from_zip) if from_zip else None, half, out, size=size)
            return _unpack(known, Path(from_zip), half, out) if from_zip else _download(known, half, out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}. Choose another folder with --out.") from error


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as `out`, gone afterwards whatever happens."""
    out.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield half / "set"
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _keep(known: DataCard, half: Path, out: Path) -> ImageFolder:
    """Rename into place what is a whole image folder."""
    try:
        scan(half, classes=known.classes)
    except DataError as error:
        raise DataError(
            f"What arrived is not the data set {known.name}. {str(error).replace(str(half), 'ARCHIVE')}"
        ) from error
    if out.is_dir():
        out.rmdir()
    half.rename(out)
    return scan(out, classes=known.classes)


def _noted(folder: ImageFolder, note: str) -> ImageFolder:
    return replace(folder, notes=(*folder.notes, note))


# ---- from Kaggle ----------------------------------------------------------------------------------------------------


def _download(known: DataCard, half: Path, out: Path) -> ImageFolder:
    import kagglehub  # imported late: it sets up logging of its own, and only a download needs it

    failures = []
    for handle in known.kaggle:
        try:
            place = Path(kagglehub.dataset_download(handle, output_dir=str(half)))
        except Exception as error:  # kagglehub lets pass whatever its network, credential and archive layers raise
            failures.append(textwrap.shorten(f"{handle}: {type(error).__name__} {error}", 160, placeholder=" ..."))
            shutil.rmtree(half, ignore_errors=True)
            continue
        if place.resolve() != half.resolve():  # Kaggle and Colab attach the set read-only where they like
            return _noted(
                scan(place, classes=known.classes), f"The data set is attached at {place}; nothing was copied to {out}."
            )
        return _keep(known, half, out)
    raise DataError(_by_hand(known, out, failures))


def _by_hand(known: DataCard, out: Path, failures: list[str]) -> str:
    if not known.kaggle:
        return (
            f"The data set {known.name} cannot be downloaded by name. By hand:\n"
            f"  1. open {known.page} in a browser and download the images and the lists of the published split;\n"
            f"  2. put the images into {out}/SPLIT/CLASS, SPLIT being one of {', '.join(known.counts)}\n"
            f"     and CLASS one of {', '.join(known.classes)}; of {out}/CLASS alone a split is drawn."
        )
    content = "train/ and test/" if "train" in known.counts else "the class folders"
    return (
        f"The data set {known.name} could not be downloaded ({'; '.join(failures)}). By hand:\n"
        f"  1. open https://www.kaggle.com/datasets/{known.kaggle[0]} in a browser and download the archive;\n"
        f"  2. run `pneumo data download {known.name} --from-zip FILE`, with FILE the archive,\n"
        f"     or unpack it so that {out} holds {content}."
    )


# ---- from MedMNIST --------------------------------------------------------------------------------------------------


def _from_arrays(known: DataCard, npz: Path | None, half: Path, out: Path, *, size: int) -> ImageFolder:
    mnist.write_folder(npz or _download_arrays(known, half.parent, size), half, known.classes)
    folder = _keep(known, half, out)
    found = {split: tuple(row) for split, *row in count(folder.table, folder.classes).itertuples()}
    if found == known.counts:
        return folder
    return _noted(folder, f"The file does not hold as many films as are published of {known.title}: {found}.")


def _download_arrays(known: DataCard, folder: Path, size: int) -> Path:
    try:
        return mnist.download(known.medmnist, folder, size=size)
    except UsageError:
        raise
    except Exception as error:  # medmnist lets pass whatever its network layers raise, and may not be installed
        failure = textwrap.shorten(f"{type(error).__name__} {error}", 160, placeholder=" ...")
        file = mnist.file_name(known.medmnist, size)
        raise DataError(
            f"The data set {known.name} could not be downloaded ({failure}). It needs a network and the package "
            "medmnist (`pip install -e '.[medmnist]'`). By hand:\n"
            f"  1. download {known.page}/files/{file} in a browser;\n"
            f"  2. run `pneumo data download {known.name} --from-zip {file}`."
        ) from error


# ---- from an archive ------------------------------------------------------------------------------------------------


def _unpack(known: DataCard, archive: Path, half: Path, out: Path) -> ImageFolder:
    if not archive.is_file():
        raise DataError(f"There is no file {archive}. Give the archive that Kaggle's Download button saves.")
    half.mkdir()
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_size(entries, archive, half)
            for entry in entries:
                _extract(opened, entry, half)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{archive} is not a whole ZIP archive: {error}. Download it again.") from error
    return _keep(known, half, out)


def _check_size(entries: list[zipfile.ZipInfo], archive: Path, half: Path) -> None:
    total, packed = sum(entry.file_size for entry in entries), archive.stat().st_size
    if len(entries) > MOST_ENTRIES or total > MOST_BYTES or total > MOST_RATIO * packed:
        raise DataError(
            f"{archive} holds {len(entries)} files of {total / 1e6:.0f} MB in {packed / 1e6:.1f} MB. An image set has "
            f"at most {MOST_ENTRIES} files, {MOST_BYTES / 1e9:.0f} GB and hardly compresses; it was not unpacked."
        )
    free = shutil.disk_usage(half).free
    if free < total * 1.05:
        raise DataError(
            f"{archive} unpacks to {total / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free. Free some space."
        )


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, half: Path) -> None:
    path = PurePosixPath(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    inside = not path.is_absolute() and ".." not in path.parts and not set("\\:\0") & set(entry.orig_filename)
    if not inside or kind not in (0, stat.S_IFREG):
        raise DataError(
            f"The archive holds {entry.orig_filename!r}, which is a link or lies outside it; nothing was kept."
        )
    target = half / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        opened.open(entry) as packed,
        open(target, "xb") as file,
    ):  # zipfile stops at the declared size and checks the CRC
        shutil.copyfileobj(packed, file, 1 << 20)
