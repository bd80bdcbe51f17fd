"""The table of systems against what SYSTEMS.md says of them."""

import pytest

from pneumo_lib import models, systems
from pneumo_lib.config import Recipe
from pneumo_lib.data import CARDS
from pneumo_lib.systems import SYSTEMS

A = SYSTEMS["A"]


def test_the_table_counts_both_networks():
    row = systems.table().loc["A"]
    assert row["parameters"] == 46_817 + 16_786_371 == 16_833_188
    assert row["networks"] == "autoencoder + cnn2"
    assert row["recipe"] == "50 + 50 epochs, batch 32, Adam 0.001"
    assert row["input"] == "256 x 256 gray"
    assert "94.57% of 1288" in row["reported"] and "96.97% of 66" in row["reported"]


def test_one_row_per_system():
    table = systems.table()
    assert list(table.index) == list(SYSTEMS)
    assert table.notna().all(axis=None)


def test_system_a_is_trained_as_its_source_says():
    assert A.denoiser_recipe == Recipe(epochs=50, batch_size=32, lr=1e-3, schedule="constant", checkpoint_every=10)
    assert A.classifier_recipe == Recipe(epochs=50, batch_size=32, lr=1e-3, schedule="constant")


def test_system_a_reports_both_protocols():
    assert {name: (r.accuracy, r.correct, r.n) for name, r in A.reported.items()} == {
        "test_noise": (0.9457, 1218, 116 + 317 + 855),
        "noisy_test": (0.9697, 64, 26 + 20 + 20),
    }


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_reported_figures_are_the_only_counts_that_round_to_them(system):
    for reported in system.reported.values():
        fitting = [k for k in range(reported.n + 1) if round(k / reported.n, 4) == reported.accuracy]
        assert fitting == [reported.correct], reported.protocol


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_every_name_in_the_table_exists(system):
    assert {system.denoiser, system.classifier} <= set(models.MODELS)
    assert system.dataset in CARDS
    assert SYSTEMS[system.name] is system
