"""Data sets from Kaggle and MedMNIST (local stand-ins) and from archives, whole or hostile."""

import stat
import sys
import types
import zipfile
from pathlib import Path

import kagglehub
import numpy as np
import pandas as pd
import pytest

from pneumo_lib.data import CLASSES, card, download
from pneumo_lib.data.download import fetch
from pneumo_lib.errors import DataError, UsageError

NAME = "chest_xray_covid"
MEMBERS = {
    f"Data/{split}/{name}/{i}.jpg": bytes(range(i, 256))
    for split in ("train", "test")
    for name in CLASSES
    for i in range(3)
}


def archive(tmp_path: Path, members: dict[str, bytes] = MEMBERS, **options) -> Path:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return tmp_path / "archive.zip"


def remains(tmp_path: Path) -> list[str]:
    """Everything but the archive itself: a failed fetch leaves nothing."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "archive.zip")


def from_kaggle(monkeypatch, behaviour) -> list[str]:
    asked = []

    def stand_in(handle, path=None, *, force_download=False, output_dir=None):
        asked.append(handle)
        return behaviour(handle, Path(output_dir))

    monkeypatch.setattr(kagglehub, "dataset_download", stand_in)
    return asked


def deliver(_, place: Path) -> str:
    """What kagglehub leaves: the unpacked files and its own hidden mark."""
    for name, content in (MEMBERS | {".complete/prashant268/bundle.complete": b""}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return str(place)


# ---- from Kaggle ----------------------------------------------------------------------------------------------------


def test_a_download_arrives_whole_in_its_place(tmp_path, monkeypatch):
    asked = from_kaggle(monkeypatch, deliver)
    folder = fetch(NAME, out=tmp_path / "data" / NAME)
    assert asked == ["prashant268/chest-xray-covid19-pneumonia"]
    assert folder.root == tmp_path / "data" / NAME / "Data" and len(folder.table) == 18
    assert remains(tmp_path / "data") == [NAME]


def test_what_is_there_already_is_left_alone(tmp_path, monkeypatch):
    asked = from_kaggle(monkeypatch, deliver)
    fetch(NAME, out=tmp_path / NAME)
    (tmp_path / NAME / "mine.txt").write_text("kept")
    again = fetch(NAME, out=tmp_path / NAME)
    assert len(asked) == 1 and "was there already" in again.notes[-1] and (tmp_path / NAME / "mine.txt").exists()


def test_something_else_in_the_place_is_an_error_and_is_left_alone(tmp_path, monkeypatch):
    asked = from_kaggle(monkeypatch, deliver)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="No images found"):
        fetch(NAME, out=tmp_path / NAME)
    assert not asked and (tmp_path / NAME / "thesis.txt").read_text() == "years of work"


def test_the_second_handle_is_tried_after_the_first_and_half_a_download_is_dropped(tmp_path, monkeypatch):
    def behaviour(handle: str, place: Path) -> str:
        if handle.startswith("prashant268"):
            deliver(handle, place)
            (place / "half.part").write_bytes(b"x")
            raise ConnectionResetError("connection reset")
        assert not place.exists()
        return deliver(handle, place)

    asked = from_kaggle(monkeypatch, behaviour)
    folder = fetch(NAME, out=tmp_path / NAME)
    assert len(asked) == 2 and len(folder.table) == 18 and not (tmp_path / NAME / "half.part").exists()


@pytest.mark.parametrize("failure", [ConnectionError("no route to host"), OSError(28, "No space left"), ValueError("")])
def test_offline_says_what_to_do_by_hand(tmp_path, monkeypatch, failure):
    def behaviour(*_):
        raise failure

    from_kaggle(monkeypatch, behaviour)
    with pytest.raises(DataError) as caught:
        fetch(NAME, out=tmp_path / NAME)
    text = str(caught.value)
    assert "https://www.kaggle.com/datasets/prashant268/chest-xray-covid19-pneumonia" in text
    assert f"pneumo data download {NAME} --from-zip FILE" in text and str(tmp_path / NAME) in text
    assert type(failure).__name__ in text and str(failure) in text
    assert remains(tmp_path) == []


def test_where_kaggle_attaches_the_set_nothing_is_copied(tmp_path, monkeypatch):
    from_kaggle(monkeypatch, lambda handle, _: deliver(handle, tmp_path / "input"))
    folder = fetch(NAME, out=tmp_path / "working" / NAME)
    assert folder.root == tmp_path / "input" / "Data" and "attached at" in folder.notes[-1]
    assert remains(tmp_path / "working") == []


def test_a_delivery_that_is_another_set_is_refused(tmp_path, monkeypatch):
    def behaviour(_, place: Path) -> str:
        (place / "cats").mkdir(parents=True)
        return str(place)

    from_kaggle(monkeypatch, behaviour)
    with pytest.raises(DataError, match=f"not the data set {NAME}"):
        fetch(NAME, out=tmp_path / NAME)
    assert remains(tmp_path) == []


def test_unknown_names_and_drawn_sets_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no data set named 'chest'"):
        fetch("chest", out=tmp_path)
    with pytest.raises(UsageError, match="pneumo data phantom"):
        fetch("phantom", out=tmp_path)


# ---- from an archive ------------------------------------------------------------------------------------------------


def test_an_archive_is_unpacked_and_scanned(tmp_path):
    folder = fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path, compression=zipfile.ZIP_DEFLATED))
    assert len(folder.table) == 18 and remains(tmp_path) == [NAME]
    for name, content in MEMBERS.items():
        assert (tmp_path / NAME / name).read_bytes() == content


def test_an_empty_folder_in_the_place_is_used(tmp_path):
    (tmp_path / NAME).mkdir()
    assert len(fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path)).table) == 18


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/evil.jpg", "Data/../../evil.jpg", "C:/evil.jpg", "Data\\..\\..\\evil.jpg"]
)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="lies outside"):
        fetch(NAME, out=tmp_path / "in" / NAME, from_zip=archive(tmp_path, {**MEMBERS, name: b"evil"}))
    assert not list(tmp_path.rglob("evil*")) and remains(tmp_path / "in") == []


def test_links_in_an_archive_are_refused(tmp_path):
    path = archive(tmp_path)
    link = zipfile.ZipInfo("Data/train/NORMAL/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        fetch(NAME, out=tmp_path / NAME, from_zip=path)
    assert remains(tmp_path) == []


def test_archives_made_to_fill_the_disk_are_refused_before_unpacking(tmp_path, monkeypatch):
    bomb = archive(tmp_path, {"Data/train/NORMAL/0.jpg": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="was not unpacked"):
        fetch(NAME, out=tmp_path / NAME, from_zip=bomb)
    for limit in ("MOST_ENTRIES", "MOST_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(download, limit, 10)
            with pytest.raises(DataError, match="was not unpacked"):
                fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path))
    assert remains(tmp_path) == []


def test_two_files_of_one_name_are_refused(tmp_path):
    path = archive(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("Data/train/NORMAL/0.jpg", b"another")
    with pytest.raises(DataError):
        fetch(NAME, out=tmp_path / NAME, from_zip=path)
    assert remains(tmp_path) == []


def harmed(path: Path, harm: str) -> Path:
    content = bytearray(path.read_bytes())
    if harm == "cut":
        content = content[: len(content) // 2]
    elif harm == "text":
        content = b"<html>Sign in to Kaggle</html>"
    elif harm == "flipped":
        content[60] ^= 0xFF
    elif harm == "encrypted":
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("harm", ["cut", "text", "flipped", "encrypted"])
def test_a_damaged_archive_is_named(tmp_path, harm):
    with pytest.raises(DataError, match=r"archive\.zip is not a whole ZIP archive.*Download it again"):
        fetch(NAME, out=tmp_path / NAME, from_zip=harmed(archive(tmp_path), harm))
    assert remains(tmp_path) == []


def test_an_archive_that_is_missing_or_holds_something_else_is_named(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        fetch(NAME, out=tmp_path / NAME, from_zip=tmp_path / "gone.zip")
    with pytest.raises(DataError, match=f"not the data set {NAME}"):
        fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path, {"cats/1.jpg": b"meow"}))
    assert remains(tmp_path) == []


# ---- sets with other classes ----------------------------------------------------------------------------------------


def test_the_archive_of_the_brain_mri_is_understood(tmp_path):
    paths = [f"{name}/{i}.jpg" for name in ("no", "yes") for i in range(2)]
    members = dict.fromkeys([*paths, *(f"brain_tumor_dataset/{path}" for path in paths)], b"x")
    folder = fetch("brain_mri", out=tmp_path / "brain", from_zip=archive(tmp_path, members))
    assert folder.classes == ("NORMAL", "TUMOR") and len(folder.table) == 4


def test_a_set_of_other_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="not the data set brain_mri"):
        fetch("brain_mri", out=tmp_path / "brain", from_zip=archive(tmp_path))
    assert remains(tmp_path) == []


def test_where_kaggle_does_not_hold_a_set_the_message_says_where_it_is(tmp_path, monkeypatch):
    asked = from_kaggle(monkeypatch, deliver)
    with pytest.raises(DataError) as caught:
        fetch("covid_ct", out=tmp_path / "ct")
    for part in ("https://github.com/UCSD-AI4H/COVID-CT", "train, val, test", "COVID, NonCOVID", str(tmp_path / "ct")):
        assert part in str(caught.value)
    assert not asked and remains(tmp_path) == []


# ---- from MedMNIST --------------------------------------------------------------------------------------------------


def film_arrays(path: Path, size: int = 28, n: int = 4) -> Path:
    rng = np.random.default_rng(0)
    films = {f"{split}_images": rng.integers(0, 256, (n, size, size), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(n)[:, None] % 2 for split in ("train", "val", "test")}
    np.savez(path, **films, **labels)
    return path


def from_medmnist(monkeypatch, behaviour) -> list[int]:
    """A stand-in for the package `medmnist`, which is not installed for tests."""
    asked = []

    def data_set(*, split: str, download: bool, size: int, root: str) -> None:
        assert split == "train" and download
        asked.append(size)
        behaviour(Path(root), size)

    package = types.ModuleType("medmnist")
    package.INFO, package.PneumoniaMNIST = {"pneumoniamnist": {"python_class": "PneumoniaMNIST"}}, data_set
    monkeypatch.setitem(sys.modules, "medmnist", package)
    return asked


@pytest.mark.parametrize(("size", "file"), [(28, "pneumoniamnist.npz"), (64, "pneumoniamnist_64.npz")])
def test_a_medmnist_set_arrives_as_an_image_folder(tmp_path, monkeypatch, size, file):
    asked = from_medmnist(monkeypatch, lambda root, size: film_arrays(root / file, size))
    folder = fetch("pneumonia_mnist", out=tmp_path / "mnist", size=size)
    assert asked == [size] and folder.classes == ("NORMAL", "PNEUMONIA") and len(folder.table) == 12
    assert remains(tmp_path) == ["mnist"]
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == ["test", "train", "val"]
    again = fetch("pneumonia_mnist", out=tmp_path / "mnist")
    assert len(asked) == 1 and "was there already" in again.notes[-1]


def test_a_file_fetched_by_hand_is_read_and_other_counts_than_published_are_noted(tmp_path, monkeypatch):
    asked = from_medmnist(monkeypatch, lambda *_: pytest.fail("downloaded"))
    folder = fetch("pneumonia_mnist", out=tmp_path / "mnist", from_zip=film_arrays(tmp_path / "archive.npz"))
    assert not asked and len(folder.table) == 12
    assert "not hold as many films as are published" in folder.notes[-1] and "'train': (2, 2)" in folder.notes[-1]
    published = pd.DataFrame.from_dict(card("pneumonia_mnist").counts, orient="index")
    monkeypatch.setattr(download, "count", lambda table, classes: published)
    whole = fetch("pneumonia_mnist", out=tmp_path / "whole", from_zip=tmp_path / "archive.npz")
    assert whole.notes == ()


@pytest.mark.parametrize("failure", [RuntimeError("Automatic download failed!"), None])
def test_offline_or_without_the_package_the_message_says_what_to_do(tmp_path, monkeypatch, failure):
    def behaviour(*_):
        raise failure

    from_medmnist(monkeypatch, behaviour)
    if failure is None:
        monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError) as caught:
        fetch("pneumonia_mnist", out=tmp_path / "mnist", size=64)
    for part in (
        str(failure) if failure else "ModuleNotFoundError",
        "pip install -e '.[medmnist]'",
        "https://zenodo.org/records/10519652/files/pneumoniamnist_64.npz",
        "pneumo data download pneumonia_mnist --from-zip pneumoniamnist_64.npz",
    ):
        assert part in str(caught.value)
    assert remains(tmp_path) == []


def test_a_bad_file_of_arrays_or_size_leaves_nothing(tmp_path):
    (tmp_path / "archive.zip").write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match="not a whole file of arrays"):
        fetch("pneumonia_mnist", out=tmp_path / "mnist", from_zip=tmp_path / "archive.zip")
    with pytest.raises(UsageError, match="comes in 28, 64, 128, 224"):
        fetch("pneumonia_mnist", out=tmp_path / "mnist", size=100)
    assert remains(tmp_path) == []
