"""Planted copies must be found, films that only look alike must not, and the controls must say how sure this is."""

from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumo_lib.data.audit import ALTERATIONS, audit
from pneumo_lib.data.cache import ImageSet
from pneumo_lib.data.phantom import draw
from pneumo_lib.errors import DataError
from pneumo_lib.images import resize, to_uint8

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
SIZE = 128


def phantoms(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([draw(CLASSES[i % 3], size=SIZE, rng=rng) for i in range(n)])


def film_set(images: np.ndarray, split: list[str], root=None, **columns) -> ImageSet:
    n = len(images)
    table = {"path": [f"{s}/{i}.png" for i, s in enumerate(split)], "split": split, "label": [i % 3 for i in range(n)]}
    table |= {"bytes": range(n), "group": [""] * n, "source": [""] * n} | columns
    return ImageSet(images, pd.DataFrame(table), CLASSES, (), root)


def altered(film: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    return to_uint8(resize(ALTERATIONS[name](film / np.float32(255), rng), SIZE))


@pytest.fixture(scope="module")
def planted():
    """100 training films and, in test, one altered copy of each of the first films under another class."""
    originals, rng = phantoms(100, seed=5), np.random.default_rng(0)
    copies = np.stack([altered(originals[i], name, rng) for i, name in enumerate(ALTERATIONS)])
    split = ["train"] * 100 + ["test"] * len(copies)
    label = [i % 3 for i in range(100)] + [(i + 1) % 3 for i in range(len(copies))]
    films = film_set(np.concatenate([originals, copies]), split, label=label)
    return audit(films, hashes=False, planted=20)


def test_every_planted_alteration_is_found_and_nothing_else(planted):
    expected = {(f"train/{i}.png", f"test/{100 + i}.png") for i in range(len(ALTERATIONS))}
    assert set(zip(planted.pairs.path_a, planted.pairs.path_b, strict=True)) == expected
    assert set(planted.pairs.kind) == {"near"}
    assert planted.pairs.similarity.between(planted.threshold, 1).all()


def test_summary_counts_pairs_films_and_label_conflicts(planted):
    row = planted.summary.set_index(["split_a", "split_b"]).loc[("train", "test")]
    n = len(ALTERATIONS)
    assert (row.exact, row.near, row.films_a, row.films_b, row.label_conflicts) == (0, n, n, n, n)
    assert planted.summary.near.sum() == n


def test_involved_is_one_sided(planted):
    assert planted.involved("test", "train") == {f"test/{100 + i}.png" for i in range(len(ALTERATIONS))}
    assert planted.involved("train", ["test"]) == {f"train/{i}.png" for i in range(len(ALTERATIONS))}
    assert planted.involved("train", ["val"]) == frozenset()
    assert planted.involved("train", ["train"]) == frozenset()


def test_controls_justify_the_threshold(planted):
    controls = planted.controls.set_index("control")
    found = controls[controls.expected == "pair"]
    assert len(found) == len(ALTERATIONS)
    assert found.rate.min() >= 0.9
    others = controls.loc["nearest films of another class"]
    assert others.expected == "no pair"
    assert planted.scores["best_match"].shape == (100 + len(ALTERATIONS),)
    assert all(((s >= 0) & (s <= 1)).all() for s in planted.scores.values())
    assert {"planted", "other_class", "same_patient", "best_match"} == set(planted.scores)


def test_audit_is_repeatable_and_frozen():
    films = film_set(phantoms(24, seed=9), ["train"] * 24)
    first, second = (audit(films, hashes=False, planted=4, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first.controls, second.controls)
    assert first.threshold == second.threshold
    with pytest.raises(FrozenInstanceError):
        first.threshold = 0.0


def test_copies_within_one_split_do_not_hide_those_in_another():
    films, rng = phantoms(40, seed=2), np.random.default_rng(1)
    copies = [altered(films[0], "noise 0.1", rng) for _ in range(7)]
    result = audit(
        film_set(np.stack([*films, *copies]), ["train"] * 40 + ["train"] * 6 + ["test"]), hashes=False, planted=10
    )
    assert result.involved("test", "train") == {"test/46.png"}


def test_exact_copies_are_told_by_bytes_and_not_by_name(tmp_path):
    films = phantoms(30, seed=4)
    films[29] = films[0]
    split = ["train"] * 28 + ["val", "test"]
    for name in set(split):
        (tmp_path / name).mkdir()
    paths = [tmp_path / s / f"{i}.png" for i, s in enumerate(split)]
    for film, path in zip(films, paths, strict=True):
        Image.fromarray(film).save(path)
    size = [path.stat().st_size for path in paths]
    pairs = audit(film_set(films, split, tmp_path, bytes=size), planted=4).pairs
    assert pairs.iloc[0].tolist() == [
        "train/0.png", "train", "COVID19", "test/29.png", "test", "PNEUMONIA", "exact", 1.0
    ]  # fmt: skip
    assert (pairs.kind == "exact").sum() == 1


def test_a_film_that_has_gone_is_named(tmp_path):
    films = film_set(phantoms(4, seed=1), ["train"] * 4, tmp_path, bytes=[7, 7, 8, 9])
    with pytest.raises(DataError, match=r"0\.png"):
        audit(films, planted=2)


def test_patients_in_two_splits_are_counted_and_unknown_ones_are_not():
    group = ["p1", "p2", "p3", "", "p1", "p2", "p2", "", "p4"]
    films = film_set(phantoms(9, seed=6), ["train"] * 4 + ["test"] * 4 + ["val"], group=group)
    shared = audit(films, hashes=False, planted=3).summary.set_index(["split_a", "split_b"]).groups_shared
    assert shared["train", "test"] == 2
    assert shared["val", "train"] == shared["val", "test"] == shared["train", "train"] == 0


def test_write_makes_three_tables_that_read_back(planted, tmp_path):
    planted.write(tmp_path / "new" / "folder")
    pairs = pd.read_csv(tmp_path / "new" / "folder" / "audit_pairs.csv")
    assert pairs.path_a.tolist() == planted.pairs.path_a.tolist()
    assert {f.name for f in (tmp_path / "new" / "folder").iterdir()} == {
        "audit_pairs.csv", "audit_summary.csv", "audit_controls.csv"
    }  # fmt: skip


def test_one_film_cannot_be_compared():
    with pytest.raises(DataError, match="at least two"):
        audit(film_set(phantoms(1, seed=0), ["train"]))


def test_flat_films_and_a_single_class_end_in_numbers():
    films = phantoms(12, seed=8)
    films[3], films[4] = 0, 255
    result = audit(film_set(films, ["train"] * 12, label=[1] * 12), hashes=False, planted=3)
    assert np.isfinite(result.threshold)
    assert "nearest films of another class" not in set(result.controls.control)
    assert np.isfinite(result.scores["best_match"]).all()


def test_a_set_that_was_copied_whole_into_test_is_found():
    films = phantoms(30, seed=3)
    result = audit(film_set(np.concatenate([films, films]), ["train"] * 30 + ["test"] * 30), hashes=False, planted=10)
    assert len(result.involved("test", "train")) == 30


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128, 256])
def test_500_distinct_phantoms_give_no_pair(size):
    rng = np.random.default_rng(size)
    films = np.stack([draw(CLASSES[i % 3], size=size, rng=rng) for i in range(500)])
    result = audit(film_set(films, ["train"] * 350 + ["val"] * 50 + ["test"] * 100), hashes=False)
    assert result.pairs.empty
    assert result.controls[result.controls.expected == "pair"].rate.min() >= 0.9
