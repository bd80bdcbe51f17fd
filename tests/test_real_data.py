"""The real films: what the data set card and the published figures say of them still holds.

Set PNEUMO_DATA to the folder of chest_xray_covid; without it these tests are skipped, and say so.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from pneumo_lib import data, images

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
