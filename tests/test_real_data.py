"""The real films: what the data set card and the published figures say of them still holds.

Set PNEUMO_DATA to the folder of chest_xray_covid; without it these tests are skipped, and say so. The other sets are
looked for in folders of their names beside it.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from pneumo_lib import data, images
from pneumo_lib.data.duplicates import without_duplicates

FOLDER = os.environ.get("PNEUMO_DATA", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="REAL FILMS NOT TESTED: set PNEUMO_DATA to the folder of chest_xray_covid"),
]


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> data.ImageSet:
    return data.open_folder(FOLDER, image_size=64, cache_dir=tmp_path_factory.mktemp("cache"), seed=0)


def test_counts(films):
    table = films.describe()
    assert table.loc["test", list(films.classes)].tolist() == [80, 309, 855]
    assert table.loc["noisy_test", list(films.classes)].tolist() == [26, 20, 20]
    trained_on = table.loc[["train", "val"], list(films.classes)].sum().tolist()
    assert trained_on == [353, 1266, 3410]
    published = data.card("chest_xray_covid").counts
    assert all(here <= there for here, there in zip(trained_on, published["train"], strict=True))


def test_validation_shares_no_patient_with_training(films):
    groups = {split: set(films.subset(split).table["group"]) - {""} for split in ("train", "val")}
    assert groups["val"] and not groups["train"] & groups["val"]


def test_films_are_readable_and_not_blank(films):
    paths = [Path(FOLDER) / path for path in films.table["path"].sample(50, random_state=0)]
    for film in map(images.read, paths):
        assert film.dtype == np.float32 and 0 <= film.min() < film.max() <= 1


# ---- the other sets -------------------------------------------------------------------------------------------------

OTHERS = {  # films of each class that are here; covid_ct lacks three slices, kermany its 16 validation films
    "chest_xray_kermany": {"train": [1341, 3875], "test": [234, 390]},
    "covid_ct": {"train": [191, 233], "val": [60, 56], "test": [98, 102]},
    "brain_mri": {"train": [69, 109], "val": [10, 15], "test": [19, 31]},
}


def beside(name: str) -> Path:
    folder = Path(FOLDER).parent / name
    if not folder.is_dir():
        pytest.skip(f"REAL FILMS NOT TESTED: there is no {folder}")
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_the_classes_of_the_other_sets_are_found_and_their_films_counted(name):
    folder, known = data.scan(beside(name)), data.card(name)
    table = folder.table.groupby(["split", "label"]).size()
    assert folder.classes == known.classes and folder.notes == ()
    assert {split: table[split].tolist() for split in table.index.levels[0]} == OTHERS[name]
    if "train" in known.counts:
        assert all((table[split].to_numpy() <= known.counts[split]).all() for split in OTHERS[name])
    else:
        assert table.groupby("label").sum().tolist() == list(known.counts[""])


def test_copies_among_the_brain_mri_are_removed_before_they_are_dealt_into_folds(tmp_path):
    films = data.load(data.scan(beside("brain_mri")), image_size=256, cache_dir=tmp_path)
    kept = without_duplicates(films)
    assert "92 have copies, in 39 clusters; 53 were removed, 0 of them" in kept.notes[-1]
    assert np.bincount(kept.labels).tolist() == [76, 124]
    assert "No copies were found" in without_duplicates(kept).notes[-1]
    for fold in data.folds(kept, k=5, seed=0):
        assert len(fold.test) == 40 and np.bincount(kept.labels[fold.test]).tolist() in ([15, 25], [16, 24])
