"""The real films: what the data set card and the published figures say of them still holds.

Set PNEUMO_DATA to the folder of chest_xray_covid; without it these tests are skipped, and say so. The other sets are
looked for in folders of their names beside it.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_novelty
from scipy.stats import fisher_exact

from pneumo_lib import comparison, config, data, evidence, images, pipeline, runs, systems, trials
from pneumo_lib.data.duplicates import without_duplicates
from pneumo_lib.diagnosis import Diagnoser

FOLDER, SIZE = os.environ.get("PNEUMO_DATA", ""), test_novelty.SIZE
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="REAL FILMS NOT TESTED: set PNEUMO_DATA to the folder of chest_xray_covid"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def films(cache) -> data.ImageSet:
    return data.open_folder(FOLDER, image_size=SIZE, cache_dir=cache, seed=0)


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


def test_the_readme_tells_which_pneumonias_no_seed_finds():
    figures = Path(__file__).parent.parent / "figures"
    said = evidence.repeated(figures).query("system == @evidence.OURS and protocol == 'clean'")
    missed = evidence.always_wrong(said)["path"]
    films = pd.read_csv(Path(FOLDER) / "manifest.csv").query("split == 'test' and label == 'PNEUMONIA'")
    viral, lost = films["source_name"].str.contains("virus"), films["path"].isin(missed)
    (virus, virus_found), (other, other_found) = [(part.sum(), (~part).sum()) for part in (lost[viral], lost[~viral])]
    assert films.loc[~viral, "source_name"].str.contains("bacteria").all()
    p = fisher_exact([[virus, virus_found], [other, other_found]]).pvalue
    told = f"{virus} of {viral.sum()} viral and {other} of {(~viral).sum()} bacterial ones"
    readme = " ".join((figures.parent / "README.md").read_text().split())
    assert f"{told}, by the names of Kermany's files (Fisher p = {p:.2f})" in readme


def test_no_film_of_another_adult_is_there_to_hold_covid19_against():
    films = pd.read_csv(Path(FOLDER) / "manifest.csv").query("split in ['train', 'test'] and label != 'COVID19'")
    assert set(films["source"]) == {"Kermany 2018"} and len(films) == 5840


# ---- what is refused ------------------------------------------------------------------------------------------------

MOST_REFUSED, MOST_OF_A_CLASS = 0.05, 0.07  # of real test films, which the check must take for what they are
NEVER_FILMS = ("photo chelsea", "photo page", "photo text")  # the cat, and two pages


@pytest.fixture(scope="module")
def diagnoser(films, cache, tmp_path_factory) -> Diagnoser:
    """One of the published classifiers after some seconds of training, with its check, as `pneumo train` stores it."""
    options = {"data_dir": FOLDER, "image_size": SIZE, "epochs": 3, "precision": "no"}
    run = runs.Run(tmp_path_factory.mktemp("run"), config.make("quick", **options))
    (trial,) = comparison.own_trials(systems.SYSTEMS["cnn5"], run, cache_dir=cache)
    trials.learn(trial)
    return Diagnoser.load(run.path, f"systems/{trial.dataset}/cnn5")


def refused(diagnoser: Diagnoser, pictures: np.ndarray) -> np.ndarray:
    parts = [np.asarray(pictures[start : start + 64]) for start in range(0, len(pictures), 64)]
    return np.array([diagnoser.decide(said).status == "refused" for part in parts for said in diagnoser.answer(part)])


def test_nearly_all_real_test_films_pass_the_check_those_of_every_class_too(diagnoser, films):
    test = pipeline.films(films, "test")
    found = refused(diagnoser, test.images)
    shares = {name: found[test.labels == k].mean() for k, name in enumerate(films.classes)}
    print({"all": found.mean()} | shares)  # `pytest -s` shows them
    assert found.mean() <= MOST_REFUSED and max(shares.values()) <= MOST_OF_A_CLASS, shares


def test_grey_noise_text_and_a_cat_are_refused_by_who_knows_real_films(diagnoser):
    others = test_novelty.strangers()
    wanted = {name: p for name, p in others.items() if not name.startswith("photo ") or name in NEVER_FILMS}
    assert len(wanted) > 15 and set(NEVER_FILMS) < set(wanted)
    found = refused(diagnoser, np.stack([*wanted.values()]))
    assert not [name for name, no_film in zip(wanted, found, strict=True) if not no_film]


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
