"""Tables of finished trials against counts made by hand, and against scikit-learn and SciPy."""

import math

import numpy as np
import pandas as pd
import pytest
import tiny_trials
from scipy import stats
from sklearn import metrics as oracle

from pneumo_lib import metrics, models, standings
from pneumo_lib.answers import Finished
from pneumo_lib.metrics import Estimate
from pneumo_lib.systems import COVID, SYSTEMS

THREE = ("COVID19", "NORMAL", "PNEUMONIA")
N_BOOT = 50


def two(found: int, missed: int, spared: int, alarmed: int, *, k: int = 1, **card: object) -> Finished:
    """A trial of two classes with these counts; the finding is class `k`, and it takes 0.7 to call a film one."""
    counts, high = (found, missed, spared, alarmed), (0.9, 0.6, 0.2, 0.8)
    labels = np.repeat([k, k, 1 - k, 1 - k], counts)
    p = np.repeat(high, counts)
    prob = np.stack([p, 1 - p] if k == 0 else [1 - p, p], axis=1)
    classes = tiny_trials.CT if k == 0 else tiny_trials.KERMANY
    return tiny_trials.finished(labels, prob, classes, positive=classes[k], cut=0.7, **card)


def right(wrong: set[int], *, n: int = 12, **card: object) -> Finished:
    """A trial of two classes over `n` films, right on all but the `wrong` ones."""
    labels = np.arange(n) % 2
    p = np.where([i in wrong for i in range(n)], 1 - labels, labels) * 0.8 + 0.1
    return tiny_trials.finished(labels, np.stack([1 - p, p], axis=1), tiny_trials.KERMANY, **card)


def three(seed: int = 0, *, n: int = 60, **card: object) -> Finished:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.2, 0.3, 0.5])
    prob = rng.dirichlet(np.ones(3), n) + 0.6 * np.eye(3)[labels]
    return tiny_trials.finished(labels, prob / prob.sum(axis=1, keepdims=True), THREE, **card)


# ---- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1])
def test_scores_of_two_classes_are_those_of_the_finding_wherever_it_stands(k):
    got = standings.scores(two(12, 3, 20, 5, k=k), n_boot=N_BOOT)
    assert set(got) == set(standings.SCORES)
    assert got["sensitivity"] == metrics.wilson(12, 15) and got["specificity"] == metrics.wilson(20, 25)
    assert got["accuracy"] == metrics.wilson(32, 40)
    assert got["plain"] == metrics.wilson(35, 40), "0.6 is the most probable class, though below the cut"
    pairs = 12 * 20 + 3 * 20 + 12 * 5  # of a finding and another film, in the right order
    assert got["auc"].value == pytest.approx(pairs / (15 * 25))
    assert got["auc"].low <= got["auc"].value <= got["auc"].high and got["auc"].n == 40


@pytest.mark.parametrize("k", [0, 1])
def test_the_area_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(3)
    labels, p = rng.integers(0, 2, 50), rng.random(50)
    classes = tiny_trials.CT if k == 0 else tiny_trials.KERMANY
    one = tiny_trials.finished(labels, np.stack([1 - p, p], axis=1), classes, positive=classes[k])
    area = standings.scores(one, n_boot=N_BOOT)["auc"].value
    assert area == pytest.approx(oracle.roc_auc_score(labels == k, one.y_prob[:, k]))


def test_scores_of_three_classes_are_macro_averages():
    one = three()
    got = standings.scores(one, n_boot=N_BOOT)
    assert got["accuracy"] == got["plain"] == metrics.accuracy(one.y_true, one.y_prob.argmax(axis=1))
    assert got["sensitivity"].value == pytest.approx(oracle.recall_score(one.y_true, one.y_pred, average="macro"))
    apart = [oracle.recall_score(one.y_true != k, one.y_pred != k) for k in range(3)]
    assert got["specificity"].value == pytest.approx(np.mean(apart))
    areas = [oracle.roc_auc_score(one.y_true == k, one.y_prob[:, k]) for k in range(3)]
    assert got["auc"].value == pytest.approx(np.mean(areas))


def test_a_test_split_without_findings_has_no_sensitivity():
    got = standings.scores(two(0, 0, 8, 2), n_boot=N_BOOT)
    assert math.isnan(got["sensitivity"].value) and got["sensitivity"].n == 0
    assert got["specificity"].value == 0.8 and math.isnan(got["auc"].value)


# ---- paired tests ---------------------------------------------------------------------------------------------------


def test_two_trials_are_compared_on_the_films_that_both_answered():
    one, other = right({0, 1, 2, 3, 4, 5}), right({0, 6})
    got = standings.paired(one, other)
    assert (got.b, got.c) == (1, 5) and got.p == pytest.approx(stats.binomtest(1, 6).pvalue)
    assert got.difference.value == pytest.approx(-4 / 12)
    order = np.random.default_rng(0).permutation(12)
    shuffled = Finished(other.folder, other.card, other.predictions.iloc[order[:9]])
    kept = set(order[:9].tolist())
    fewer = standings.paired(one, shuffled)
    assert (fewer.b, fewer.c) == (len({6} & kept), len({1, 2, 3, 4, 5} & kept)) and fewer.difference.n == 9


def test_a_trial_is_no_different_from_itself():
    one = right({1, 2})
    assert standings.paired(one, one).p == 1.0


# ---- standings ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board() -> list[Finished]:
    """Five trials on two sets, in no order."""
    ct = {"dataset": "covid_ct"}
    return [
        right({0, 1, 2, 3, 4, 5}, system="cnn5", seconds=120.0),
        right({0, 1}, system="aernet", **ct),
        right({6}, system="cnn3", parameters=77, train_images=33, best_epoch=2),
        right(set(), system="resnet18_x3", starting_weights="imagenet", **ct),
        right({6, 7, 8}, system="my_own"),
    ]


def test_the_most_accurate_stands_first_in_each_data_set(board):
    table = standings.standings(board, n_boot=N_BOOT)
    assert table["dataset"].tolist() == ["chest_xray_kermany"] * 3 + ["covid_ct"] * 2
    assert table["system"].tolist() == ["cnn3", "my_own", "cnn5", "resnet18_x3", "aernet"]
    assert [cell.value for cell in table["accuracy"]] == [11 / 12, 9 / 12, 6 / 12, 1, 10 / 12]
    assert table.index.tolist() == list(range(5))


def test_p_is_that_of_the_paired_test_against_the_best_of_the_same_set(board):
    table = standings.standings(board, n_boot=N_BOOT)
    expected = [1, stats.binomtest(0, 2).pvalue, stats.binomtest(1, 7).pvalue, 1, stats.binomtest(0, 2).pvalue]
    assert table["p"].tolist() == pytest.approx(expected)


def test_the_source_s_figure_stands_beside_the_accuracy_and_nothing_where_there_is_none(board):
    table = standings.standings(board, n_boot=N_BOOT).set_index("system")
    assert table["reported"].drop(["resnet18_x3", "my_own"]).to_dict() == {
        "cnn3": 505 / 594,
        "cnn5": 0.97,
        "aernet": 0.972,
    }
    assert table["reported"][["resnet18_x3", "my_own"]].isna().all()
    assert table["report"].to_dict() == {"cnn3": "D", "my_own": "", "cnn5": "C", "resnet18_x3": "ours", "aernet": "B"}


def test_the_cards_tell_what_it_cost(board):
    row = standings.standings(board, n_boot=N_BOOT).set_index("system").loc["cnn3"]
    told = ["parameters", "train_images", "best_epoch", "epochs", "minutes", "image_size", "preset", "starting_weights"]
    assert row[told].tolist() == [77, 33, 2, 2, 1.5, 32, "tiny", "none"]


def test_system_a_has_the_source_s_figure_of_its_protocol():
    one = three(system="cnn2", dataset="chest_xray_covid + noise 0.5", protocol="test_noise")
    assert (
        standings.standings([one], n_boot=N_BOOT)["reported"].item() == SYSTEMS["cnn2"].reported["test_noise"].accuracy
    )


def test_equally_accurate_trials_keep_their_order():
    table = standings.standings([right({i}, system=name) for i, name in enumerate(("b", "a", "c"))], n_boot=N_BOOT)
    assert table["system"].tolist() == ["b", "a", "c"] and table["p"].tolist() == [1, 1, 1]


def test_the_readable_table_says_what_was_measured_on_what(board):
    table = standings.readable(standings.standings(board, n_boot=N_BOOT))
    first, last = table.iloc[0], table.iloc[3]
    assert first["data"] == "chest_xray_kermany, n = 12" and first["system"] == "cnn3"
    assert first["accuracy"] == metrics.wilson(11, 12).percent() and first["reported"] == "85.0%"
    assert first["sensitivity / specificity"] == "100.0% / 83.3%" and first["p"] == "–"
    assert "32 px, 33 films, 2 epochs (best 2), 2 min, preset tiny" in first["trained"]
    assert last["reported"] == "" and last["trained"].endswith("from imagenet")


# ---- averages, recalls, costs ---------------------------------------------------------------------------------------


def test_averages_are_the_macro_averages_of_scikit_learn():
    one = three(1, protocol="denoised", system="vgg16")
    row = standings.averages([one], n_boot=N_BOOT).iloc[0]
    options = {"average": "macro", "zero_division": 0}
    assert (row["condition"], row["system"]) == ("denoised", "vgg16")
    assert row["accuracy"].value == oracle.accuracy_score(one.y_true, one.y_pred)
    assert row["precision"].value == pytest.approx(oracle.precision_score(one.y_true, one.y_pred, **options))
    assert row["recall"].value == pytest.approx(oracle.recall_score(one.y_true, one.y_pred, **options))
    assert row["f1"].value == pytest.approx(oracle.f1_score(one.y_true, one.y_pred, **options))
    area = oracle.roc_auc_score(one.y_true, one.y_prob, multi_class="ovr", average="macro")
    assert row["auc"].value == pytest.approx(area)


def test_recalls_have_a_column_for_each_class_and_their_mean():
    one, other = three(0, protocol="none"), three(1, protocol="balanced")
    table = standings.recalls([one, other])
    assert table.index.tolist() == ["none", "balanced"] and table.columns.tolist() == [*THREE, "mean", "accuracy"]
    by_class = oracle.recall_score(one.y_true, one.y_pred, average=None)
    assert [cell.value for cell in table.loc["none", list(THREE)]] == pytest.approx(by_class.tolist())
    assert [cell.n for cell in table.loc["none", list(THREE)]] == np.bincount(one.y_true).tolist()
    assert table.loc["none", "mean"] == pytest.approx(by_class.mean())
    assert table.loc["balanced", "accuracy"].value == oracle.accuracy_score(other.y_true, other.y_pred)


def test_a_recall_is_that_of_the_operating_point():
    table = standings.recalls([two(12, 3, 20, 5)])
    assert table["PNEUMONIA"].item() == metrics.wilson(12, 15) and table["NORMAL"].item() == metrics.wilson(20, 25)
    assert table["mean"].item() == pytest.approx(0.8)


@pytest.mark.slow
def test_costs_name_every_network_with_its_parameters_and_time():
    names = ["cnn3", "cnn5", "resnet18"]
    table = standings.costs(names, 64, n_classes=3, repeats=3).set_index("system")
    assert table.index.tolist() == names
    for name, row in table.iterrows():
        network = models.build(name, image_size=64, n_classes=3)
        assert row["parameters"] == models.count_parameters(network)
        assert row["gflops"] == pytest.approx(models.count_flops(network, 64) / 1e9)
    assert (table["milliseconds"] > 0).all() and (table["milliseconds"] < 10_000).all()
    assert table.loc["cnn3", "gflops"] < table.loc["resnet18", "gflops"]


def test_times_are_medians_without_the_first_two_rounds(monkeypatch):
    clock = iter(np.cumsum([0, 9000, 0, 9000, 0, 3, 0, 1, 0, 2]) / 1000)  # milliseconds per round: 9000 9000 3 1 2
    monkeypatch.setattr(standings.time, "perf_counter", lambda: float(next(clock)))
    table = standings.costs(["cnn3"], 32, repeats=3)
    assert table["milliseconds"].item() == pytest.approx(2)


# ---- over seeds -----------------------------------------------------------------------------------------------------


def test_accuracies_and_gains_over_seeds_have_student_intervals():
    wrong = {"plain": (4, 3, 5), "better": (1, 1, 2), "worse": (6, 5, 6)}
    done = [
        right(set(range(number)), protocol=variant, seed=seed)
        for seed in (2, 0, 1)
        for variant, numbers in wrong.items()
        for number in [numbers[seed]]
    ]
    table = standings.over_seeds(done).set_index("variant")
    assert table.index.tolist() == list(wrong), "in the order in which they came"
    for variant, row in table.iterrows():
        accuracies = 1 - np.array(wrong[variant]) / 12
        gains = accuracies - (1 - np.array(wrong["plain"]) / 12)
        assert np.allclose(row["accuracies"], accuracies) and np.allclose(row["gains"], gains)
        for values, cell in ((accuracies, row["accuracy"]), (gains, row["gain"])):
            assert cell.value == pytest.approx(values.mean()) and cell.n == 3
            if np.ptp(values):
                bounds = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
                least = 0 if values is accuracies else -1  # no accuracy leaves [0, 1], no difference of two [-1, 1]
                assert (cell.low, cell.high) == pytest.approx(np.clip(bounds, least, 1))
    assert table.loc["plain", "gain"] == Estimate(0.0, 0.0, 0.0, 3)


def test_gains_are_paired_by_seed():
    wrong = {"plain": (6, 0, 3), "better": (5, 0, 2)}
    done = [
        right(set(range(n)), protocol=name, seed=i) for name, numbers in wrong.items() for i, n in enumerate(numbers)
    ]
    row = standings.over_seeds(done).set_index("variant").loc["better"]
    assert row["gains"].tolist() == pytest.approx([1 / 12, 0, 1 / 12])
    assert row["gain"].high - row["gain"].low < 0.3 < row["accuracy"].high - row["accuracy"].low


def test_one_seed_has_no_interval():
    table = standings.over_seeds([right({0}, protocol="plain"), right(set(), protocol="more")])
    assert table["gain"][1].value == pytest.approx(1 / 12) and math.isnan(table["gain"][1].low)
    assert standings.survives(table["gain"][1]) == "too few seeds to tell"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.05, "better"), (-0.05, -0.01, "worse"), (-0.01, 0.05, "no difference"), (0.0, 0.0, "no difference")],
)
def test_a_gain_survives_where_its_interval_leaves_out_zero(low, high, verdict):
    assert standings.survives(Estimate((low + high) / 2, low, high, 3)).startswith(verdict)


# ---- cross-validation -----------------------------------------------------------------------------------------------


def fold(number: int, repeat: int, wrong: int, *, k: int = 2, **card: object) -> Finished:
    """Six films of their own, the first `wrong` of which are mistaken."""
    paths = [f"{number}_{i}.png" for i in range(6)]
    facts = {"fold": {"k": k, "number": number, "repeat": repeat}, "seed": repeat, "paths": paths}
    return right(set(range(wrong)), n=6, **(facts | card))


def test_accuracy_is_the_mean_over_repeats_on_films_that_count_once():
    folds = [fold(0, 0, 1), fold(1, 0, 2), fold(0, 1, 0), fold(1, 1, 2, epochs=5)]
    row = standings.cross_validated(folds, n_boot=N_BOOT).iloc[0]
    expected = metrics.wilson(10, 12)  # 9 and 10 of 12 right, 9.5 on average, which Python rounds to 10
    assert row["accuracy"].value == pytest.approx(9.5 / 12)
    assert (row["accuracy"].low, row["accuracy"].high, row["accuracy"].n) == (expected.low, expected.high, 12)
    assert (row["lowest"], row["highest"]) == (9 / 12, 10 / 12)
    assert (row["repeats"], row["folds"], row["epochs"], row["minutes"]) == (2, 2, 5, 6.0)
    assert (row["dataset"], row["system"]) == ("chest_xray_kermany", "cnn3")


def test_the_area_is_that_of_all_folds_together_and_the_mean_over_repeats():
    folds = [fold(0, 0, 1), fold(1, 0, 2), fold(0, 1, 0), fold(1, 1, 2)]
    area, areas, bounds = standings.cross_validated(folds, n_boot=N_BOOT)["auc"].item(), [], []
    for pair in (folds[:2], folds[2:]):
        labels, prob = (np.concatenate([getattr(one, name) for one in pair]) for name in ("y_true", "y_prob"))
        areas.append(oracle.roc_auc_score(labels, prob[:, 1]))
        alone = standings.cross_validated(pair, n_boot=N_BOOT)["auc"].item()
        bounds.append((alone.low, alone.high))
    assert area.value == pytest.approx(np.mean(areas)) and area.n == 12
    assert (area.low, area.high) == pytest.approx(np.mean(bounds, axis=0))
    assert area.low <= area.value <= area.high, "an interval of one repeat could lie beside the mean of all"


def test_an_incomplete_repeat_is_left_out():
    complete = [fold(0, 0, 1), fold(1, 0, 1)]
    table = standings.cross_validated([*complete, fold(0, 1, 6)], n_boot=N_BOOT)
    assert table["accuracy"].item().value == pytest.approx(10 / 12) and table["repeats"].item() == 1
    assert standings.cross_validated([fold(0, 0, 1)], n_boot=N_BOOT).empty


def test_systems_and_data_sets_have_rows_of_their_own_in_any_order():
    folds = [fold(i, 0, wrong, system=name) for i in (0, 1) for name, wrong in (("cnn5", 0), ("cnn3", 3))]
    folds += [fold(i, 0, 1, dataset="brain_mri") for i in (1, 0)]
    table = standings.cross_validated(folds, n_boot=N_BOOT)
    assert table[["dataset", "system"]].to_numpy().tolist() == [
        ["brain_mri", "cnn3"],
        ["chest_xray_kermany", "cnn3"],
        ["chest_xray_kermany", "cnn5"],
    ]
    assert [cell.value for cell in table["accuracy"]] == pytest.approx([10 / 12, 6 / 12, 1])


def test_the_cut_of_each_fold_counts_in_its_accuracy():
    folds = [
        tiny_trials.finished(
            [0, 1], [[0.4, 0.6], [0.2, 0.8]], tiny_trials.KERMANY, cut=cut, fold={"k": 2, "number": i, "repeat": 0}
        )
        for i, cut in enumerate((0.7, 0.5))
    ]
    assert standings.cross_validated(folds, n_boot=N_BOOT)["accuracy"].item().value == 0.75


def test_three_classes_are_cross_validated_too():
    folds = [three(i, fold={"k": 2, "number": i, "repeat": 0}, dataset=COVID) for i in (0, 1)]
    row = standings.cross_validated(folds, n_boot=N_BOOT).iloc[0]
    labels, prob = (np.concatenate([getattr(one, name) for one in folds]) for name in ("y_true", "y_prob"))
    assert row["auc"].value == pytest.approx(oracle.roc_auc_score(labels, prob, multi_class="ovr", average="macro"))


def test_the_readable_table_says_how_often_it_was_repeated():
    table = standings.readable(standings.cross_validated([fold(0, 0, 1), fold(1, 0, 2)], n_boot=N_BOOT))
    assert isinstance(table, pd.DataFrame) and table["of the repeats"].item() == "75.0% to 75.0%"
    assert "2 epochs, 1 x 2 folds, 3 min, preset tiny" in table["trained"].item()
    assert not {"p", "reported", "most probable class"} & set(table)
