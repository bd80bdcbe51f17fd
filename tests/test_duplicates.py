"""One film of each cluster stays, none of a disputed one, and everything else is untouched."""

import numpy as np
import pandas as pd
import pytest

from pneumo_lib.data.audit import Audit, audit
from pneumo_lib.data.cache import ImageSet
from pneumo_lib.data.duplicates import without_duplicates
from pneumo_lib.data.phantom import draw
from pneumo_lib.errors import DataError

CLASSES = ("NORMAL", "PNEUMONIA")


def film_set(images: np.ndarray, split: list[str], label: list[int]) -> ImageSet:
    n = len(images)
    table = {"path": [f"{s}/{i:02d}.png" for i, s in enumerate(split)], "split": split, "label": label}
    return ImageSet(images, pd.DataFrame(table | {"bytes": range(n), "group": "", "source": ""}), CLASSES, ("first",))


def numbered(split: list[str], label: list[int]) -> ImageSet:
    """Films that are as gray as their number."""
    return film_set(np.arange(len(split), dtype=np.uint8).repeat(16).reshape(-1, 4, 4), split, label)


def found(films: ImageSet, *pairs: tuple[int, int]) -> Audit:
    paths = [[films.table["path"][row] for row in side] for side in zip(*pairs, strict=True)] or [[], []]
    return Audit(pd.DataFrame({"path_a": paths[0], "path_b": paths[1]}), pd.DataFrame(), pd.DataFrame(), 0.9, {})


def left(films: ImageSet) -> list[int]:
    assert np.array_equal(films.images[:, 0, 0], [int(path[-6:-4]) for path in films.table["path"]])
    assert films.table.index.tolist() == list(range(len(films)))
    return films.images[:, 0, 0].tolist()


def test_chains_of_pairs_are_one_cluster_of_which_the_first_stays():
    films = numbered([""] * 8, [0, 1, 0, 1, 0, 1, 0, 1])
    kept = without_duplicates(films, found=found(films, (6, 4), (2, 4), (7, 5)))
    assert left(kept) == [0, 1, 2, 3, 5]
    assert kept.notes[-1].startswith("Of 8 films 5 have copies, in 2 clusters; 3 were removed, 0 of them")
    assert kept.notes[0] == "first" and kept.classes == CLASSES and len(films) == 8


def test_the_copy_in_test_stays_then_the_one_in_val():
    films = numbered(["train", "train", "train", "val", "test", "train", "val", "val"], [0, 1, 1, 1, 1, 0, 0, 1])
    kept = without_duplicates(films, found=found(films, (1, 4), (3, 4), (5, 6)))
    assert left(kept) == [0, 2, 4, 6, 7]


def test_all_films_of_a_cluster_with_contradictory_labels_go():
    films = numbered([""] * 6, [0, 1, 0, 1, 0, 1])
    kept = without_duplicates(films, found=found(films, (0, 2), (2, 3), (1, 5)))
    assert left(kept) == [1, 4]
    assert (
        "5 have copies, in 2 clusters; 4 were removed, 3 of them because copies carry contradictory labels"
        in (kept.notes[-1])
    )


def test_without_copies_everything_stays_and_a_note_says_so():
    films = numbered([""] * 4, [0, 1, 0, 1])
    kept = without_duplicates(films, found=found(films))
    assert left(kept) == [0, 1, 2, 3] and kept.notes[-1] == "No copies were found among the 4 films."


def test_the_set_that_is_left_has_another_identity():
    films = numbered([""] * 4, [0, 1, 0, 1])
    assert without_duplicates(films, found=found(films, (0, 2))).identity != films.identity


def test_a_class_that_would_vanish_and_an_audit_of_other_films_are_refused():
    films = numbered(["train"] * 3 + ["test"], [0, 1, 1, 0])
    with pytest.raises(DataError, match="All 1 films of NORMAL in train are copies"):
        without_duplicates(films, found=found(films, (0, 3)))
    with pytest.raises(DataError, match="not among the 4"):
        other = numbered(["val"] * 2, [0, 1])
        without_duplicates(films, found=found(other, (0, 1)))


def test_copies_that_the_audit_finds_are_removed_and_then_none_are_found():
    rng = np.random.default_rng(3)
    drawn = np.stack([draw(("NORMAL", "PNEUMONIA")[i % 2], size=96, rng=rng) for i in range(40)])
    copies = np.stack([drawn[0], drawn[0] // 2 + 40, drawn[2, ::1], drawn[3]])
    films = film_set(np.concatenate([drawn, copies]), [""] * 44, [i % 2 for i in range(40)] + [0, 0, 1, 1])
    kept = without_duplicates(films, hashes=False, planted=10)
    gone = {f"/{i:02d}.png" for i in (2, 40, 41, 42, 43)}
    assert set(films.table["path"]) - set(kept.table["path"]) == gone
    assert "5 were removed, 2 of them" in kept.notes[-1]
    assert audit(kept, hashes=False, planted=10).pairs.empty
