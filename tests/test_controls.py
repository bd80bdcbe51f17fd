"""What is taken away from films so that only a shortcut is left: that it is gone, and that the rest is untouched."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny

from pneumo_lib import controls
from pneumo_lib.controls import VIEWS
from pneumo_lib.data import ImageSet

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
SIDE = 64
CLINICS = ("north", "south", "")


@pytest.fixture
def images() -> ImageSet:
    """Sixty films; COVID19 from two clinics and from nobody knows where, the others from one."""
    films = tiny.films(60, size=SIDE)
    split = np.array(["train", "val", "test", "noisy_test"])[np.arange(60) % 4]
    source = [CLINICS[k // 20] if label == 0 else "south" for k, label in enumerate(films.labels)]
    facts = {"path": films.keys, "split": split, "label": films.labels, "group": films.keys, "source": source}
    return ImageSet(films.images, pd.DataFrame(facts), CLASSES, key="the cache's")


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_keeps_shape_and_type_and_leaves_its_films_alone(images, name):
    before = images.images.copy()
    view = VIEWS[name](images.images)
    assert (view.shape, view.dtype) == (before.shape, np.uint8)
    assert np.array_equal(images.images, before)
    alone = np.concatenate([VIEWS[name](film[None]) for film in images.images])
    assert np.array_equal(view, alone), "films do not influence each other"


def test_what_is_blanked_tells_nothing_and_the_rest_everything(images):
    inside = np.zeros((SIDE, SIDE), bool)
    inside[8:56, 8:56] = True
    border, centre = (VIEWS[name](images.images) for name in ("border only", "centre only"))
    assert (border[:, inside] == controls.BLANK).all() and (centre[:, ~inside] == controls.BLANK).all()
    assert np.array_equal(border[:, ~inside], images.images[:, ~inside])
    assert np.array_equal(centre[:, inside], images.images[:, inside])


def test_a_thumbnail_has_sixteen_blocks_a_side_of_the_mean_grey(images):
    blocks = VIEWS["16 x 16 pixels"](images.images).reshape(60, 16, 4, 16, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    means = images.images.reshape(60, 16, 4, 16, 4).mean(axis=(2, 4))
    assert np.abs(blocks[:, :, 0, :, 0] - means).max() <= 0.5


def test_grey_levels_are_the_histogram_and_nothing_else(images):
    view = VIEWS["grey levels only"](images.images)
    for seen, film in zip(view, images.images, strict=True):
        assert np.array_equal(np.bincount(seen.ravel(), minlength=256), np.bincount(film.ravel(), minlength=256))
    moved = np.random.default_rng(0).permuted(images.images.reshape(60, -1), axis=1).reshape(images.images.shape)
    assert np.array_equal(VIEWS["grey levels only"](moved), view)


def test_films_seen_otherwise_are_other_films_and_several_blocks_are_one(images, monkeypatch):
    whole = controls.seen(images, controls.border_only)
    assert whole.identity != controls.seen(images, controls.centre_only).identity, "trainings must not be confused"
    monkeypatch.setattr(controls, "BLOCK", 7)
    assert np.array_equal(controls.seen(images, controls.border_only).images, whole.images)
    pd.testing.assert_frame_equal(whole.table, images.table)


def test_labels_are_shuffled_where_one_learns_and_not_where_one_is_tested(images):
    mixed = controls.shuffled(images, seed=0)
    learned = images.table["split"].isin(["train", "val"])
    assert (mixed.table["label"] != images.table["label"])[learned].mean() > 0.3
    assert np.array_equal(np.bincount(mixed.table["label"][learned]), np.bincount(images.table["label"][learned]))
    assert (mixed.table["label"] == images.table["label"])[~learned].all()
    assert mixed.table["label"].equals(controls.shuffled(images, seed=0).table["label"])
    assert not mixed.table["label"].equals(controls.shuffled(images, seed=1).table["label"])


def test_a_class_of_several_sources_can_be_kept_apart_by_source(images):
    assert sorted(controls.sources(images)) == [(0, "north"), (0, "south")], "the unknown one is none"
    table = images.table
    apart = controls.kept_apart(images, 0, "north").table
    trained, tested = (apart[apart["split"] == split] for split in ("train", "test"))
    assert "north" not in set(trained["source"]) and len(trained)
    covid = tested[tested["label"] == 0]
    assert (
        set(covid["source"]) == {"north"}
        and len(covid)
        == ((table["label"] == 0) & (table["source"] == "north") & (table["split"] != "noisy_test")).sum()
    )
    others = table[(table["split"] == "test") & (table["label"] != 0)]
    assert tested[tested["label"] != 0]["path"].tolist() == others["path"].tolist()
    assert (apart["split"] == "noisy_test").sum() == (table["split"] == "noisy_test").sum()


def test_films_can_be_asked_for_their_source(images):
    ((name, named),) = controls.by_source(images)
    assert name == "source of the film" and named.classes == ("north", "south") and named.identity != images.identity
    before, after = images.table, named.table
    known = before["source"] != ""
    assert (after["split"] == before["split"])[known].all() and set(after["split"][~known]) == {"unused"}
    assert [named.classes[k] for k in after["label"][known]] == before["source"][known].tolist()
    untaught = replace(images, table=before.assign(split=before["split"].mask(before["source"] == "north", "test")))
    assert not [*controls.by_source(untaught)], "one source is left to learn from"


def test_a_source_of_several_classes_is_kept_apart_whole(images):
    apart = controls.kept_apart(images, 0, "south").table
    assert "south" not in set(apart.loc[apart["split"].isin(["train", "val"]), "source"])
    assert set(apart.loc[apart["split"] == "test", "label"]) == {0}, "nobody else is left to be tested on"


def test_every_control_is_named_once(images):
    found = dict(controls.controls(images, seed=0))
    apart = [f"COVID19 of {source} kept apart" for _, source in controls.sources(images)]
    assert list(found) == [*VIEWS, "shuffled labels", *apart] and len(apart) == 2
    assert len({one.identity for one in found.values()}) == len(found)
    plain = replace(images, table=images.table.assign(source=""))
    assert list(dict(controls.controls(plain, seed=0))) == [*VIEWS, "shuffled labels"]
