"""Test films under every corruption: what is asked of a network, what is told, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_trials
import torch
from PIL import Image

from pneumo_lib import evaluation, noise, robustness, runs, trials
from pneumo_lib.data import open_folder
from pneumo_lib.trials import Trial

SYSTEMS = Path(__file__).parents[1] / "figures" / "systems"
PUBLISHED = SYSTEMS / "chest_xray_covid" / "resnet18_s2d" / robustness.CORRUPTIONS


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_dir) -> tuple[Trial, pd.DataFrame]:
    """A small network that has learned something, and its table."""
    root = tiny_trials.draw(tmp_path_factory.mktemp("set") / "covid_ct", tiny_trials.CT, {"train": 40, "test": 15})
    images = open_folder(root, image_size=32, cache_dir=cache_dir, val_fraction=0.3, seed=0)
    system = tiny_trials.system("resnet18_s2d", epochs=8, keep="last")
    one = Trial(system, images, "covid_ct", tmp_path_factory.mktemp("run"), precision="no")
    trials.answer(one)
    return one, robustness.corrupted(one.folder, images, runs.load_model(one.folder))


def test_every_kind_meets_every_level_of_the_table(trained):
    one, table = trained
    assert list(zip(table["kind"], table["level"], strict=True)) == [
        (kind, level) for kind, how in noise.NOISES.items() for level in how.levels
    ]
    assert (table["n"] == 30).all() and table["value"].between(table["low"], table["high"]).all()
    assert table["ece"].between(0, 1).all() and table["brier"].between(0, 2).all()
    pd.testing.assert_frame_equal(pd.read_csv(one.folder / robustness.CORRUPTIONS), table)


def test_without_corruption_it_says_what_it_said_in_its_test(trained):
    one, table = trained
    said = trials.answer(one)
    plain = table[table["level"] == 0]
    assert len(plain) == len(noise.NOISES)
    assert (plain["value"] == (said.y_true == said.y_pred).mean()).all()


def test_it_can_be_asked_of_validation_films_to_choose_by_them(trained, monkeypatch, tmp_path):
    one, _ = trained
    monkeypatch.setattr(noise, "NOISES", {kind: noise.NOISES[kind] for kind in ("gaussian", "darker")})
    found = robustness.corrupted(tmp_path, one.images, runs.load_model(one.folder), split="val")
    own = len(one.images.subset("val"))
    assert (found["n"] == own).all() and own != 30, "there are 30 test films"


def test_a_network_that_learned_something_loses_it_in_the_worst_noise(trained):
    _, table = trained
    gaussian = table[table["kind"] == "gaussian"].set_index("level")["value"]
    assert gaussian[0] > 0.8, "else there is nothing to lose"
    assert gaussian[0] - gaussian[1.0] > 0.1


def test_answers_under_corruption_are_those_of_other_films(trained):
    one, _ = trained
    saved = runs.load_model(one.folder)
    protocol = robustness.Protocol("speckle 1", "", "test", 1.0, "speckle")
    said = trials.say(protocol, one.images, saved).filter(like="p_")
    again = trials.say(protocol, one.images, saved).filter(like="p_")
    assert said.equals(again), "nothing is drawn anew"
    gaussian = trials.say(robustness.Protocol("g", "", "test", 1.0, "gaussian"), one.images, saved).filter(like="p_")
    assert np.abs(said.to_numpy() - gaussian.to_numpy()).max() > 1e-3


def test_what_it_is_surest_of_and_the_coverage_of_its_sets_are_told_at_every_level(trained):
    one, table = trained
    said, card = trials.answer(one), runs.load_model(one.folder).card
    plain = table[table["level"] == 0]
    sure = said.y_prob[np.arange(30), said.y_pred]
    kept = sure >= np.sort(sure)[-27]  # and those that are as sure as the 27th of 30
    assert plain["accuracy_90"].to_numpy() == pytest.approx((said.y_true == said.y_pred)[kept].mean())
    cutoffs = np.array(card["decision"]["conformal"]["0.9"])
    own = said.y_prob[np.arange(30), said.y_true]
    assert plain["conformal_90"].to_numpy() == pytest.approx((own >= cutoffs[said.y_true]).mean())
    assert table[["accuracy_90", "conformal_90"]].stack().between(0, 1).all()
    assert table["conformal_90"].nunique() > 1, "noise changes it"


def test_a_card_without_conformal_sets_leaves_their_coverage_open(trained, monkeypatch, tmp_path):
    one, table = trained
    saved = runs.load_model(one.folder)
    old = {name: value for name, value in saved.card["decision"].items() if name != "conformal"}
    monkeypatch.setattr(noise, "NOISES", {kind: noise.NOISES[kind] for kind in ("gaussian", "darker")})
    found = robustness.corrupted(tmp_path, one.images, runs.SavedModel(saved.model, saved.card | {"decision": old}))
    assert found["conformal_90"].isna().all() and len(found) == 12
    rest = found.columns.drop("conformal_90")
    known = table[table["kind"].isin(["gaussian", "darker"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[rest], known[rest])


def test_every_film_meets_the_same_corruption_whichever_system_is_asked(trained, monkeypatch):
    one, _ = trained
    saved, seen = runs.load_model(one.folder), []
    shown = evaluation._shown
    monkeypatch.setattr(evaluation, "_shown", lambda *given: seen.append(shown(*given)) or seen[-1])
    other = runs.SavedModel(saved.model, saved.card | {"system": "another"})
    for system in (saved, other):
        trials.say(robustness.Protocol("r", "", "test", 10.0, "rotation"), one.images, system)
    assert len(seen) == 2 and torch.equal(*seen)


def test_the_area_is_one_without_errors_and_weighs_levels_by_their_distance():
    table = pd.DataFrame({"kind": ["a"] * 3 + ["b"] * 3, "level": [0, 1, 4] * 2, "value": [1, 1, 1, 1, 0, 0]})
    assert robustness.areas(table).to_dict() == {"a": 1.0, "b": 0.125}


def test_the_area_of_the_calibration_error_is_weighed_in_the_same_way():
    table = pd.DataFrame({"kind": ["a"] * 3, "level": [0, 1, 4], "value": [1, 1, 1], "ece": [0, 0.1, 0.3]})
    assert robustness.areas(table, "ece").to_dict() == {"a": pytest.approx((0.05 + 0.6) / 4)}
    assert robustness.readable(table)[["area", "area of ECE"]].to_numpy().tolist() == [["1.000", "0.163"]]


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_what_was_published_before_kinds_were_added_is_read_and_drawn():
    table = pd.read_csv(PUBLISHED).drop(columns=["accuracy_90", "conformal_90"])
    table = table[table["kind"].isin(list(noise.NOISES)[:7])]
    kinds = table["kind"].unique()
    assert len(robustness.readable(table)) == len(kinds) >= 7
    found = titles(robustness.figure({"resnet18_s2d": table}))
    assert len(found) == len(kinds) and found[0].startswith("gaussian\narea 0.9") and ", of ECE 0.0" in found[0]
    gone = robustness.figure({"a": table.replace({"kind": {"jpeg": "a_kind_that_is_gone"}})})
    assert "a kind that is gone" in titles(gone)[-1]


def test_areas_in_titles_keep_the_order_of_systems_and_gaps():
    both = pd.DataFrame({"kind": list("aabb"), "level": [0, 1] * 2, "value": 0.5, "low": 0.4, "high": 0.6, "ece": 0.1})
    first = both[both["kind"] == "a"].assign(value=0.9)
    assert titles(robustness.figure({"one": first, "other": both})) == [
        "a\narea 0.900 / 0.500\nof ECE 0.100 / 0.100",
        "b\narea – / 0.500\nof ECE – / 0.100",
    ]
    many = robustness.figure({"one": first} | {f"other {k}": both for k in range(3)})
    assert titles(many)[0] == "a\narea 0.500 to 0.900\nof ECE 0.100 to 0.100"


def test_systems_of_one_data_set_are_drawn_together_and_folds_are_not(trained, tmp_path):
    _, table = trained
    done = []
    for place, fold in (("a/one", None), ("a/other", None), ("b/one", None), ("c/fold", {"k": 2}), ("d/none", None)):
        one = tiny_trials.finished([0], [[0.9, 0.1]], tiny_trials.CT, system=place, fold=fold)
        done.append(replace(one, folder=tmp_path / place))
        if place != "d/none":
            runs.write_text(tmp_path / place / robustness.CORRUPTIONS, table.to_csv(index=False))
    drawn = robustness.draw(done)
    assert drawn == [tmp_path / "a" / robustness.FIGURE, tmp_path / "b" / robustness.FIGURE]
    assert all(min(Image.open(path).size) > 1000 for path in drawn)
    assert drawn[0].read_bytes() != drawn[1].read_bytes(), "two systems, and one"
    assert not [path for path in tmp_path.rglob("*.png") if path not in drawn]


def test_the_readable_table_has_a_row_for_each_kind_in_order():
    table = pd.DataFrame({"kind": ["b", "b", "a", "a"], "level": [0, 0.5, 0, 50], "value": [0.9, 0.8, 0.9, 0.4]})
    assert robustness.readable(table).to_numpy().tolist() == [
        ["b", "90.0%", "0.5: 80.0%", "0.850"],
        ["a", "90.0%", "50: 40.0%", "0.650"],
    ]
