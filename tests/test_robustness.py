"""Test films under every corruption: what is asked of a network, what is told, and that nothing else changes."""

import numpy as np
import pandas as pd
import pytest
import tiny_trials

from pneumo_lib import noise, robustness, runs, trials
from pneumo_lib.data import open_folder
from pneumo_lib.trials import Trial


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


def test_the_area_is_one_without_errors_and_weighs_levels_by_their_distance():
    table = pd.DataFrame({"kind": ["a"] * 3 + ["b"] * 3, "level": [0, 1, 4] * 2, "value": [1, 1, 1, 1, 0, 0]})
    assert robustness.areas(table).to_dict() == {"a": 1.0, "b": 0.125}


def test_the_readable_table_has_a_row_for_each_kind_in_order():
    table = pd.DataFrame({"kind": ["b", "b", "a", "a"], "level": [0, 0.5, 0, 50], "value": [0.9, 0.8, 0.9, 0.4]})
    assert robustness.readable(table).to_numpy().tolist() == [
        ["b", "90.0%", "0.5: 80.0%", "0.850"],
        ["a", "90.0%", "50: 40.0%", "0.650"],
    ]
