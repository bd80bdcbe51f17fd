"""MedMNIST files (stand-ins of the same shape) become image folders, or are refused by name."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumo_lib.data import mnist
from pneumo_lib.data.folder import scan
from pneumo_lib.errors import DataError, UsageError

CLASSES = ("NORMAL", "PNEUMONIA")


def arrays(n: int = 6, size: int = 28, **changed) -> dict[str, np.ndarray]:
    """What a MedMNIST file holds: films and a column of labels for each split."""
    rng, made = np.random.default_rng(0), {}
    for split in mnist.SPLITS:
        made[f"{split}_images"] = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(n, dtype=np.uint8) % 2)[:, None]
    return {name: array for name, array in (made | changed).items() if array is not None}


def saved(tmp_path: Path, **changed) -> Path:
    np.savez_compressed(tmp_path / "set.npz", **arrays(**changed))
    return tmp_path / "set.npz"


@pytest.mark.parametrize("size", [28, 64])
def test_every_film_arrives_unchanged_under_its_number_split_and_class(tmp_path, size):
    given = arrays(size=size)
    mnist.write_folder(saved(tmp_path, size=size), tmp_path / "out", CLASSES)
    folder = scan(tmp_path / "out")
    assert folder.classes == CLASSES and len(folder.table) == 18
    for row in folder.table.itertuples():
        number = int(Path(row.path).stem)
        assert np.array_equal(Image.open(folder.root / row.path), given[f"{row.split}_images"][number])
        assert row.label == given[f"{row.split}_labels"][number, 0]


def test_file_names_are_those_of_the_package():
    assert mnist.file_name("pneumoniamnist", 28) == "pneumoniamnist.npz"
    assert mnist.file_name("pneumoniamnist", 224) == "pneumoniamnist_224.npz"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"val_labels": None}, "no array val_labels, only train_images"),
        ({"test_images": np.zeros((6, 28, 28, 3), np.uint8)}, r"test_images .* shape \(6, 28, 28, 3\).* gray films"),
        ({"test_images": np.zeros((6, 28, 27), np.uint8)}, r"test_images .*expected are gray films"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "train_images .* are float32"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "train_labels .* for 6 films"),
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "train_labels .* for 6 films"),
        ({"train_labels": np.zeros((6, 1))}, "train_labels .* are float64"),
        ({"val_labels": np.full((6, 1), 2, np.uint8)}, "val_labels .* from 2 to 2; expected are 0 to 1"),
        ({"val_labels": np.full((6, 1), -1)}, "val_labels .* from -1 to -1"),
        ({"val_labels": np.array([{}] * 6, object)}, "not a whole file of arrays"),
    ],
)
def test_a_file_of_something_else_is_named_and_nothing_is_written(tmp_path, changed, said):
    with pytest.raises(DataError, match=said):
        mnist.write_folder(saved(tmp_path, **changed), tmp_path / "out", CLASSES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", ["cut", "text", "flipped", "npy", "empty"])
def test_a_damaged_file_is_named(tmp_path, harm):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    if harm == "npy":
        np.save(tmp_path / "one.npy", np.zeros(3))
        content = (tmp_path / "one.npy").read_bytes()
    if harm == "flipped":
        content[len(content) // 3] ^= 0xFF
    changed = {"cut": content[: len(content) // 2], "text": b"<html>Not found</html>", "empty": b""}
    path.write_bytes(changed.get(harm, content))
    with pytest.raises(DataError, match=r"set\.npz is not a whole file of arrays.*Download it again"):
        mnist.write_folder(path, tmp_path / "out", CLASSES)


def test_a_missing_file_and_one_made_to_fill_the_memory_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="There is no file"):
        mnist.write_folder(tmp_path / "gone.npz", tmp_path / "out", CLASSES)
    monkeypatch.setattr(mnist, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="unpacks to"):
        mnist.write_folder(saved(tmp_path), tmp_path / "out", CLASSES)


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    members["val_images.npy"] = members["val_images.npy"].replace(b"(6, 28, 28)", b"(9, 99, 99)")
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match="not a whole file of arrays"):
        mnist.write_folder(path, tmp_path / "out", CLASSES)


def test_sizes_that_there_are_not_are_refused(tmp_path):
    with pytest.raises(UsageError, match="comes in 28, 64, 128, 224 pixels"):
        mnist.download("pneumoniamnist", tmp_path, size=256)
