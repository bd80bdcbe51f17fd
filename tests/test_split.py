"""Splits by patient: nobody on both sides, shares kept, the same for everyone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pneumo_lib.data import ImageFolder, ImageSet, assign, carve, folds
from pneumo_lib.errors import DataError, UsageError

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")


def films(counts=(60, 200, 400), *, per_patient: int = 2, split: str = "train", known: float = 1.0) -> ImageFolder:
    """Films of each class; patients have 1..2 * per_patient - 1 films; a share of the patients is unknown."""
    rng, rows = np.random.default_rng(0), []
    for label, number in enumerate(counts):
        patient, left = 0, 0
        for i in range(number):
            if not left:
                patient, left = patient + 1, int(rng.integers(1, 2 * per_patient))
            left -= 1
            group = f"p{label}-{patient}" if patient <= known * number else ""
            rows.append((f"{split}/{CLASSES[label]}/{i}.png", split, label, 1, group, ""))
    table = pd.DataFrame(rows, columns=["path", "split", "label", "bytes", "group", "source"])
    return ImageFolder(Path("set"), CLASSES, table, ("first note",))


def joined(*parts: ImageFolder) -> ImageFolder:
    return ImageFolder(Path("set"), CLASSES, pd.concat([part.table for part in parts], ignore_index=True), ())


def groups(found: ImageFolder, split: str) -> set[str]:
    rows = found.table[found.table["split"] == split]
    return set(rows["group"].where(rows["group"] != "", rows["path"]))


def by_path(found: ImageFolder) -> dict[str, str]:
    return dict(zip(found.table["path"], found.table["split"], strict=True))


@pytest.mark.parametrize("known", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_carve_keeps_shares_and_patients_whole(fraction, known):
    given = films(known=known)
    found = carve(given, fraction=fraction, seed=3)
    assert not groups(found, "train") & groups(found, "val")
    assert groups(found, "train") | groups(found, "val") == groups(given, "train")
    share = (found.table["split"] == "val").groupby(found.table["label"]).mean()
    assert np.allclose(share, fraction, atol=0.02)
    assert given.table["split"].unique().tolist() == ["train"]


def test_the_split_depends_on_seed_and_names_not_on_row_order():
    given = films(known=0.2)
    shuffled = ImageFolder(given.root, CLASSES, given.table.sample(frac=1, random_state=1).reset_index(drop=True), ())
    first = by_path(carve(given, seed=0))
    assert by_path(carve(shuffled, seed=0)) == first
    assert by_path(carve(given, seed=1)) != first


def test_the_split_of_one_seed_never_changes():
    found = carve(films((10, 10, 10), per_patient=1), fraction=0.2, seed=0)
    assert sorted(groups(found, "val")) == ["p0-4", "p0-7", "p1-3", "p1-5", "p2-2", "p2-5"]


def test_other_splits_stay_and_notes_say_what_moved():
    given = joined(films(), films(split="test"), films(split="noisy_test"))
    found = carve(given, seed=0)
    before, after = by_path(given), by_path(found)
    assert all(after[path] == split for path, split in before.items() if split != "train")
    moved = sum(split == "val" for split in after.values())
    assert f"val got {moved} films of {len(groups(found, 'val'))} known patients" in found.notes[-1]
    assert "of unknown patient" in carve(films(known=0.0), seed=0).notes[-1]
    assert carve(films(), seed=0).notes[0] == "first note"


def test_image_sets_are_carved_too():
    table = films((10, 10, 10)).table
    found = carve(ImageSet(np.zeros((30, 2, 2), np.uint8), table, CLASSES), seed=0)
    assert isinstance(found, ImageSet) and len(found.subset("val")) + len(found.subset("train")) == 30


def test_a_patient_with_films_of_two_classes_stays_on_one_side():
    given = films((30, 30, 30), per_patient=1)
    given.table.loc[[0, 30, 31], "group"] = "both"
    for seed in range(20):
        found = carve(given, fraction=0.4, seed=seed)
        assert found.table.loc[[0, 30, 31], "split"].nunique() == 1


def test_a_published_validation_split_of_decent_size_is_kept():
    given = joined(films((100, 100, 100)), films((5, 5, 5), split="val"))
    found = carve(given, seed=0)
    assert by_path(found) == by_path(given)
    shared = len(groups(given, "train") & groups(given, "val"))
    assert shared and f"15 films; {shared} of its patients have films in train too" in found.notes[0]


def test_a_tiny_validation_split_goes_back_into_train():
    given = joined(films((200, 200, 200)), films((1, 1, 1), split="val"))
    found = carve(given, fraction=0.1, seed=0)
    assert "(3 films) is too small and was put back into train" in found.notes[0]
    assert (found.table["split"] == "val").sum() == pytest.approx(60, abs=4)
    assert not groups(found, "train") & groups(found, "val")


def test_three_patients_suffice_and_two_do_not():
    found = carve(films((3, 30, 30), per_patient=1), fraction=0.1, seed=0)
    assert (found.table.query("label == 0")["split"] == "val").sum() == 1
    with pytest.raises(DataError, match=r"COVID19 in set has 2 patients \(2 films\) to split; at least 3"):
        carve(films((2, 30, 30), per_patient=1), seed=0)


def test_a_large_patient_does_not_flood_validation():
    given = films((100, 100, 100), per_patient=1)
    given.table.loc[:79, "group"] = "often"
    for seed in range(10):
        found = carve(given, fraction=0.1, seed=seed)
        assert "often" in groups(found, "train")
        assert (found.table.query("label == 0")["split"] == "val").sum() == 10


def test_nothing_to_carve_from_and_impossible_fractions_are_refused():
    with pytest.raises(DataError, match=r"no split 'train' in set .*found are 'test'"):
        carve(films(split="test"), seed=0)
    for fraction in (0, -0.1, 0.6, float("nan")):
        with pytest.raises(UsageError, match="validation fraction"):
            carve(films(), fraction=fraction, seed=0)


def test_assign_deals_everything_by_patient():
    found = assign(films(split="", known=0.3), fractions=(0.7, 0.1, 0.2), seed=0)
    shares = pd.crosstab(found.table["label"], found.table["split"], normalize="index")
    assert np.allclose(shares[["train", "val", "test"]], [0.7, 0.1, 0.2], atol=0.03)
    parts = [groups(found, split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert "test got" in found.notes[-1] and "val got" in found.notes[-1]


def test_assign_gives_each_of_three_patients_a_split_of_its_own():
    found = assign(films((3, 3, 3), per_patient=1, split=""), seed=0)
    assert pd.crosstab(found.table["label"], found.table["split"]).to_numpy().tolist() == [[1, 1, 1]] * 3


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(UsageError, match="add up to 1"):
        assign(films(split=""), fractions=fractions, seed=0)


# ---- folds ----------------------------------------------------------------------------------------------------------


def whose(found: ImageFolder, rows: np.ndarray) -> set[str]:
    table = found.table.iloc[rows]
    return set(table["group"].where(table["group"] != "", table["path"]))


@pytest.mark.parametrize("known", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("k", [2, 5, 10])
def test_folds_test_every_film_once_keep_shares_and_patients_whole(k, known):
    given = films(known=known)
    dealt = folds(given, k=k, seed=3)
    assert len(dealt) == k
    assert sorted(np.concatenate([fold.test for fold in dealt])) == list(range(len(given.table)))
    labels = given.table["label"].to_numpy()
    for fold in dealt:
        assert sorted([*fold.train, *fold.test]) == list(range(len(given.table)))
        assert not whose(given, fold.train) & whose(given, fold.test)
        assert np.allclose(np.bincount(labels[fold.test]), np.bincount(labels) / k, atol=2)
    sizes = [len(fold.test) for fold in dealt]
    assert max(sizes) - min(sizes) <= 3


def test_folds_of_single_films_differ_by_one_film_at_most():
    given = films((98, 155, 7), per_patient=1)
    dealt = folds(given, k=5, seed=0)
    counts = np.array([np.bincount(given.table["label"].to_numpy()[fold.test]) for fold in dealt])
    assert (np.ptp(counts, axis=0) <= 1).all() and np.ptp(counts.sum(axis=1)) <= 1


def test_folds_depend_on_seed_and_names_not_on_row_order():
    given = films(known=0.2)
    shuffled = ImageFolder(given.root, CLASSES, given.table.sample(frac=1, random_state=1).reset_index(drop=True), ())
    first = [whose(given, fold.test) for fold in folds(given, seed=0)]
    assert [whose(shuffled, fold.test) for fold in folds(shuffled, seed=0)] == first
    assert [whose(given, fold.test) for fold in folds(given, seed=1)] != first


def test_the_folds_of_one_seed_never_change():
    given = films((4, 4, 4), per_patient=1)
    names = [sorted(whose(given, fold.test)) for fold in folds(given, k=4, seed=0)]
    assert names == [
        ["p0-4", "p1-3", "p2-2"],
        ["p0-2", "p1-4", "p2-3"],
        ["p0-1", "p1-1", "p2-1"],
        ["p0-3", "p1-2", "p2-4"],
    ]


def test_a_large_patient_fills_a_fold_of_its_class_and_the_others_share_the_rest():
    given = films((40, 40, 40), per_patient=1)
    given.table.loc[:19, "group"] = "often"
    tests = [np.bincount(given.table["label"].to_numpy()[fold.test])[0] for fold in folds(given, k=5, seed=0)]
    assert sorted(tests) == [5, 5, 5, 5, 20]


def test_too_few_patients_or_folds_are_refused():
    assert len(folds(films((5, 30, 30), per_patient=1), k=5, seed=0)) == 5
    with pytest.raises(DataError, match=r"COVID19 in set has 4 patients \(4 films\) to split; at least 5"):
        folds(films((4, 30, 30), per_patient=1), k=5, seed=0)
    with pytest.raises(UsageError, match="number of folds is 1"):
        folds(films(), k=1, seed=0)


def test_a_fold_becomes_splits_from_which_validation_can_be_carved():
    table = films((10, 20, 30), split="").table
    given = ImageSet(np.zeros((60, 2, 2), np.uint8), table, CLASSES)
    for fold in folds(given, k=3, seed=0):
        found = carve(fold.apply(given), seed=0)
        assert set(found.table["split"]) == {"train", "val", "test"}
        assert np.flatnonzero(found.table["split"] == "test").tolist() == fold.test.tolist()
    assert set(given.table["split"]) == {""}
