"""The ablation grid: complete, resumable, paired by seed, and read out in plain English."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import films

from pneumo_lib import ablation, config, evaluation, metrics, recipe, runs, training
from pneumo_lib.errors import TrainingError
from pneumo_lib.steps import Films

LEVELS, SEEDS, EPOCHS = (0.2, 0.5), (0, 1), 2
TRAIN, VAL = films(24, size=64), films(9, size=64, seed=1)
KEYS = ["arm", "level", "seed", "epoch"]


@pytest.fixture(scope="module")
def settings() -> config.Config:
    """The preset demo with the smallest grid that has everything twice."""
    grid = recipe.Grid(image_size=32, train_images=20, levels=LEVELS, seeds=SEEDS, epochs=EPOCHS)
    return replace(config.make("demo"), ablation=grid, precision="no")


@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
    monkeypatch.setenv("PNEUMO_QUIET", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def table(settings, folder) -> pd.DataFrame:
    """The grid, trained once for all tests that read it."""
    return ablation.run_grid(TRAIN, VAL, settings, folder)


def accuracies(*rows: tuple[str, float, int, int, float]) -> pd.DataFrame:
    """A table of the grid from (arm, level, seed, epoch, accuracy)."""
    return pd.DataFrame(rows, columns=[*KEYS, "accuracy"]).assign(n=100, seconds=1.0)


def differences(intervals: dict[float, tuple[float, float]]) -> pd.DataFrame:
    """Rows of `paired_differences` from the ends of the intervals, by level."""
    rows = [(level, (low + high) / 2, low, high, 3) for level, (low, high) in intervals.items()]
    return pd.DataFrame(rows, columns=["level", "value", "low", "high", "n"])


# the grid


def test_the_table_is_complete(table):
    assert set(table.columns) == {*KEYS, "accuracy", "n", "seconds"}
    expected = {("clean", 0.0, seed, epoch) for seed in SEEDS for epoch in (1, 2)}
    expected |= {
        (arm, level, seed, epoch)
        for arm in ("unprepared", "denoised", "noisy")
        for level in LEVELS
        for seed in SEEDS
        for epoch in (1, 2)
    }
    assert set(table[KEYS].itertuples(index=False, name=None)) == expected
    assert len(table) == len(expected) and set(table["arm"]) == set(ablation.ARMS)
    assert table["accuracy"].between(0, 1).all() and (table["n"] == len(VAL)).all()
    right = table["accuracy"] * table["n"]
    np.testing.assert_allclose(right, right.round(), atol=1e-4)  # a count of films


def test_the_cost_adds_up_and_includes_the_denoiser(table, folder):
    for _, part in table.groupby(["arm", "level", "seed"]):
        assert part.sort_values("epoch")["seconds"].is_monotonic_increasing
    spent = table.set_index(KEYS)["seconds"]
    cell = folder / "level_0.5" / "seed_1"
    before, own = (pd.read_csv(cell / arm / "history.csv")["seconds"] for arm in ("denoiser", "denoised"))
    assert spent["denoised", 0.5, 1, 2] == pytest.approx(before.sum() + own.sum())
    assert spent["denoised", 0.5, 1, 1] == pytest.approx(before.sum() + own[0])


def test_the_accuracies_are_those_of_the_stored_networks(table, folder, settings):
    scores = table.set_index(KEYS)["accuracy"]
    val, model = ablation.shrink(VAL, 32), ablation.models.build("cnn2", image_size=32)
    for arm, level, shown in (("clean", 0.0, 0.0), ("unprepared", 0.5, 0.5), ("noisy", 0.5, 0.5)):
        trained = folder / (f"level_{level:g}" if arm == "noisy" else "level_0") / "seed_1"
        for epoch in (1, 2):
            weights = training.checkpoint(trained / ("noisy" if arm == "noisy" else "clean"), epoch)
            logits = evaluation.classify(runs.load_weights(model, weights), val, evaluation.View("gaussian", shown, 1))
            expected = (logits.argmax(1) == val.labels).mean()
            assert scores[arm, level, 1, epoch] == pytest.approx(expected), (arm, epoch)


def test_seeds_and_levels_are_trainings_of_their_own(folder, table):
    weights = [
        runs.read_weights(training.checkpoint(folder / f"level_{level:g}" / f"seed_{seed}" / "noisy", 2))
        for level in LEVELS
        for seed in SEEDS
    ]
    first = [state["classifier.1.weight"].sum().item() for state in weights]
    assert len(set(first)) == len(LEVELS) * len(SEEDS)


def test_a_second_call_trains_nothing(settings, folder, table, monkeypatch):
    monkeypatch.setattr(training.Loop, "run_epoch", lambda self: pytest.fail("trained again"))
    started = time.perf_counter()
    again = ablation.run_grid(TRAIN, VAL, settings, folder)
    pd.testing.assert_frame_equal(again, table)  # the seconds too: they are those of the training
    assert time.perf_counter() - started < 30


def test_an_interrupted_grid_goes_on_to_the_same_table(settings, table, tmp_path, monkeypatch):
    trained, whole = 0, training.Loop.run_epoch

    def run_epoch(loop: training.Loop) -> None:
        nonlocal trained
        if trained == 11:  # in the second level's cell, between two epochs of one network
            raise KeyboardInterrupt
        trained += 1
        whole(loop)

    with monkeypatch.context() as patched:
        patched.setattr(training.Loop, "run_epoch", run_epoch)
        with pytest.raises(KeyboardInterrupt):
            ablation.run_grid(TRAIN, VAL, settings, tmp_path)
    more = []
    monkeypatch.setattr(training.Loop, "run_epoch", lambda loop: more.append(1) or whole(loop))
    resumed = ablation.run_grid(TRAIN, VAL, settings, tmp_path)
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), table.drop(columns="seconds"))
    networks = len(SEEDS) * (1 + 3 * len(LEVELS))
    assert trained + len(more) == networks * EPOCHS  # nothing was trained twice


# films of the grid


def test_a_subset_is_drawn_without_repetition_and_by_the_seed():
    part = TRAIN.draw(10, seed=3)
    assert len(part) == len(set(part.keys)) == 10 and set(part.keys) < set(TRAIN.keys)
    rows = [TRAIN.keys.index(key) for key in part.keys]
    np.testing.assert_array_equal(part.images, TRAIN.images[rows])
    np.testing.assert_array_equal(part.labels, TRAIN.labels[rows])
    assert TRAIN.draw(10, seed=3).keys == part.keys != TRAIN.draw(10, seed=4).keys


@pytest.mark.parametrize("n", [0, 24, 100])
def test_a_subset_of_all_is_the_films_themselves(n):
    assert TRAIN.draw(n, seed=0) is TRAIN


def test_shrinking_averages_whole_blocks():
    small = ablation.shrink(TRAIN, 16)
    blocks = TRAIN.images.reshape(24, 16, 4, 16, 4).mean((2, 4))
    assert small.images.dtype == np.uint8 and small.images.shape == (24, 16, 16)
    assert np.abs(small.images - blocks).max() <= 0.5
    assert small.keys == TRAIN.keys and np.array_equal(small.labels, TRAIN.labels)
    assert ablation.shrink(TRAIN, 64) is TRAIN


def test_shrinking_many_films_keeps_their_order():
    counting = (np.arange(1100) % 251).astype(np.uint8)
    many = Films(np.broadcast_to(counting[:, None, None], (1100, 4, 4)), np.zeros(1100, int), ["film"] * 1100)
    np.testing.assert_array_equal(ablation.shrink(many, 2).images[:, 0, 0], counting)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(TrainingError, match="48 pixels, which does not divide the image size 64"):
        ablation.shrink(TRAIN, 48)


# what it says


def test_the_summary_averages_over_seeds():
    rows = [("noisy", 0.5, seed, 1, value) for seed, value in enumerate((0.7, 0.8, 0.9))]
    summary = ablation.summarise(accuracies(*rows, ("noisy", 0.5, 0, 2, 0.6), ("clean", 0.0, 0, 1, 0.95)))
    assert summary[["arm", "level", "epoch"]].to_numpy().tolist() == [
        ["clean", 0.0, 1],
        ["noisy", 0.5, 1],
        ["noisy", 0.5, 2],
    ]
    row = summary.iloc[1]
    half = 4.3027 * 0.1 / np.sqrt(3)  # Student's t with two degrees of freedom; the deviation is 0.1
    assert (row["value"], row["n"]) == (pytest.approx(0.8), 3)
    assert (row["low"], row["high"]) == (pytest.approx(0.8 - half, abs=1e-4), 1.0)  # cut: no accuracy is above 1
    assert np.isnan(summary.iloc[2]["low"])  # one seed has no interval


def test_differences_are_paired_by_seed_at_the_last_epoch():
    rows = []
    for seed, (denoised, noisy) in enumerate([(0.80, 0.70), (0.90, 0.82), (0.60, 0.48)]):
        rows += [("denoised", 0.5, seed, 2, denoised), ("noisy", 0.5, seed, 2, noisy)]
        rows += [("denoised", 0.5, seed, 1, 0.1), ("noisy", 0.5, seed, 1, 0.9)]  # an earlier epoch says the opposite
        rows += [("denoised", 0.25, seed, 2, 0.5), ("noisy", 0.25, seed, 2, 0.5), ("clean", 0.0, seed, 2, 1.0)]
    found = ablation.paired_differences(accuracies(*rows), "denoised", "noisy").set_index("level")
    assert found.index.tolist() == [0.25, 0.5]
    assert found.loc[0.25, ["value", "low", "high"]].tolist() == pytest.approx([0, 0, 0])
    half = 4.3027 * 0.02 / np.sqrt(3)  # differences 0.10, 0.08, 0.12
    expected = [0.1, 0.1 - half, 0.1 + half]
    assert found.loc[0.5, ["value", "low", "high"]].tolist() == pytest.approx(expected, abs=1e-4)
    single = ablation.pairs(accuracies(*rows), "denoised", "noisy")
    assert list(single) == ["sigma 0.25", "sigma 0.5"]
    np.testing.assert_allclose(single["sigma 0.5"], [0.10, 0.08, 0.12])


def test_a_seed_that_one_arm_lacks_is_left_out():
    rows = [("denoised", 0.5, 0, 1, 0.8), ("noisy", 0.5, 0, 1, 0.7), ("denoised", 0.5, 1, 1, 0.9)]
    found = ablation.paired_differences(accuracies(*rows), "denoised", "noisy")
    assert found["value"].tolist() == pytest.approx([0.1]) and found["n"].tolist() == [1]


def test_the_grid_can_be_read_out(table):
    found = ablation.paired_differences(table, "denoised", "noisy")
    assert found["level"].tolist() == list(LEVELS) and (found["n"] == len(SEEDS)).all()
    assert ablation.verdict(found).startswith("Putting a denoiser in front of the classifier")
    means = ablation.summarise(table).set_index(["arm", "level", "epoch"])
    part = table.query("arm == 'noisy' and level == 0.5 and epoch == 2")["accuracy"]
    assert means.loc[("noisy", 0.5, 2), "value"] == pytest.approx(metrics.seeds_interval(part.to_numpy()).value)


START = "Putting a denoiser in front of the classifier, rather than training it on the noisy films, "
HELPS, HURTS, UNCLEAR = (0.01, 0.05), (-0.05, -0.01), (-0.02, 0.03)


@pytest.mark.parametrize(
    ("intervals", "sentence"),
    [
        ({0.5: HELPS}, "helps at sigma 0.5."),
        ({0.25: HELPS, 1.0: HELPS}, "helps at sigma 0.25 and 1."),
        ({0.1: HURTS, 0.25: HURTS, 1.0: HURTS}, "hurts at sigma 0.1, 0.25 and 1."),
        ({0.5: UNCLEAR}, "makes no difference that these seeds can show at sigma 0.5."),
        (
            {0.1: HURTS, 0.25: UNCLEAR, 0.5: HELPS, 1.0: HELPS},
            "helps at sigma 0.5 and 1; it hurts at sigma 0.1; "
            "it makes no difference that these seeds can show at sigma 0.25.",
        ),
        (  # an interval that only touches zero, and one of a single seed, show nothing
            {0.5: (0.0, 0.1), 1.0: (np.nan, np.nan)},
            "makes no difference that these seeds can show at sigma 0.5 and 1.",
        ),
    ],
)
def test_the_verdict_reads_like_a_sentence(intervals, sentence):
    assert ablation.verdict(differences(intervals)) == START + sentence
