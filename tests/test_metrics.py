"""Numbers against hand-computed fractions and against scikit-learn, scipy and plain numpy."""

import json
import time
import warnings
from math import inf, isnan, nan

import numpy as np
import pytest
from scipy import signal, stats
from sklearn import metrics as sk

from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.metrics import (
    CLASS_METRICS,
    Estimate,
    accuracy,
    auc,
    bootstrap,
    classification_table,
    confusion,
    mcnemar,
    mean_interval,
    psnr,
    roc_curve,
    seeds_interval,
    ssim,
    wilson,
)

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def cases(n=400, seed=0, decimals=2):
    """Imbalanced labels and imperfect probabilities, rounded so that scores tie."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[0.1, 0.3, 0.6])
    logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[truth]
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, np.round(prob, decimals)


# Estimate


def test_estimate_reads_well():
    e = Estimate(0.946, 0.932, 0.957, 1288)
    assert (e.percent(), str(e), f"{e}") == ("94.6 % [93.2, 95.7]", "0.946 [0.932, 0.957]", "0.946 [0.932, 0.957]")
    assert Estimate(27.131, 27.05, 27.211, 9).text(2, unit="dB") == "27.13 dB [27.05, 27.21]"
    assert Estimate(nan, nan, nan, 0).percent() == "n/a (0 cases)"
    assert Estimate(0.9, nan, nan, 1).percent() == "90.0 % (n = 1)"


@pytest.mark.parametrize("e", [Estimate(0.5, 0.25, 0.75, 4), wilson(np.int64(3), np.int64(7)), wilson(0, 0)])
def test_estimate_survives_strict_json(e):
    back = Estimate.from_dict(json.loads(json.dumps(e.to_dict(), allow_nan=False)))
    np.testing.assert_equal(back, e)
    assert Estimate(inf, 1.0, inf, 2).to_dict() == {"value": None, "low": 1.0, "high": None, "n": 2}


# Intervals


def test_wilson_by_hand():
    z = 1.959963984540054
    centre, half = (0.8 + z**2 / 20) / (1 + z**2 / 10), z * np.sqrt(0.016 + z**2 / 400) / (1 + z**2 / 10)
    e = wilson(8, 10)
    assert (e.value, e.n) == (0.8, 10)
    assert (e.low, e.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(0, 5).low == 0.0 and wilson(5, 5).high == 1.0
    assert wilson(8, 10, level=0.8).low > e.low


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(UsageError, match="expected a count"):
        wilson(successes, n)


def test_wilson_covers_as_promised():
    hits = np.random.default_rng(0).binomial(50, 0.9, 2000)
    known = {k: wilson(int(k), 50) for k in np.unique(hits)}
    assert 0.93 <= np.mean([known[k].low <= 0.9 <= known[k].high for k in hits]) <= 0.98


def test_accuracy_by_hand():
    e = accuracy([0, 1, 2, 2], [0, 1, 2, 1])
    assert (e.value, e.n) == (0.75, 4)
    assert isnan(accuracy([], []).value)


def test_bootstrap_agrees_with_scipy_and_repeats():
    values = np.random.default_rng(3).gamma(2.0, size=200)
    e = bootstrap(np.median, values, seed=1, n_boot=2000)
    expected = stats.bootstrap((values,), np.median, method="percentile", n_resamples=2000, rng=2).confidence_interval
    assert (e.low, e.high) == pytest.approx(tuple(expected), abs=0.05)
    assert e == bootstrap(np.median, values, seed=1, n_boot=2000) != bootstrap(np.median, values, seed=2, n_boot=2000)


def test_bootstrap_strata_keep_their_sizes_and_rows_stay_together():
    truth = np.repeat([0, 1, 2], [1, 9, 40])
    seen = []

    def statistic(labels, copy):
        seen.append(np.bincount(labels, minlength=3))
        assert (labels == copy).all()
        return float(labels.mean())

    e = bootstrap(statistic, truth, truth.copy(), strata=truth, seed=0, n_boot=30)
    assert (np.array(seen) == [1, 9, 40]).all() and e.low == e.high == e.value
    free = bootstrap(lambda labels: labels.mean(), truth, seed=0, n_boot=30)
    assert free.low < free.value < free.high


def test_bootstrap_leaves_out_draws_without_a_value():
    truth = np.array([1] + [0] * 9)
    e = bootstrap(lambda labels: 0.5 if labels.any() else nan, truth, seed=0, n_boot=50)
    assert (e.low, e.high) == (0.5, 0.5)


@pytest.mark.parametrize("options", [{"n_boot": 0}, {"strata": [0, 1]}])
def test_bootstrap_refuses(options):
    with pytest.raises((UsageError, DataError)):
        bootstrap(np.mean, [1.0, 2.0, 3.0], seed=0, **options)


def test_mean_interval_is_near_the_normal_one_and_survives_infinity():
    values = np.random.default_rng(0).normal(27, 2, 500)
    e = mean_interval(values, seed=0)
    assert e.value == pytest.approx(values.mean())
    assert (e.high - e.low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(500), rel=0.1)
    e = mean_interval([20.0, inf, inf], seed=0)
    assert e.value == e.high == inf and e.low == 20.0


def test_seeds_interval_is_students():
    e = seeds_interval([0.90, 0.92, 0.97])
    low, high = stats.t.interval(0.95, 2, loc=e.value, scale=stats.sem([0.90, 0.92, 0.97]))
    assert (e.value, e.low, e.high, e.n) == pytest.approx((0.93, low, high, 3))
    assert seeds_interval([0.9]).value == 0.9 and isnan(seeds_interval([0.9]).low)
    assert isnan(seeds_interval([]).value)


# Classification


def test_confusion_rows_are_the_truth():
    assert confusion([0, 0, 1, 2], [0, 1, 1, 1], 4).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0] * 4]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0.0, 1.0], [[0], [1]], ["a", "b"]])
def test_labels_that_are_no_indices_are_refused(labels):
    with pytest.raises(DataError, match="expected"):
        confusion(labels, [0, 1], 3)


def test_lengths_must_match():
    with pytest.raises(DataError, match="one row per case"):
        accuracy([0, 1], [0])


def test_table_by_hand():
    truth, predicted = np.array([0, 0, 1, 1, 1, 2]), [0, 1, 1, 1, 2, 2]
    table = classification_table(truth, np.eye(3)[predicted], CLASSES, seed=0, n_boot=20)
    assert [table.loc["NORMAL", name].value for name in CLASS_METRICS] == pytest.approx(
        [2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3]
    )
    assert table.loc["COVID19", "specificity"].value == 1.0
    assert table.support.tolist() == [2, 3, 1, 6]
    assert table.loc["NORMAL", "recall"] == wilson(2, 3) and table.loc["PNEUMONIA", "precision"] == wilson(1, 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_table_agrees_with_scikit_learn(seed):
    truth, prob = cases(seed=seed)
    table = classification_table(truth, prob, CLASSES, seed=0, n_boot=50).map(lambda e: getattr(e, "value", e))
    *scores, support = sk.precision_recall_fscore_support(truth, prob.argmax(1))
    rows = table.loc[list(CLASSES)]
    np.testing.assert_allclose(rows[["precision", "recall", "f1"]].to_numpy(float).T, scores)
    assert rows.support.tolist() == support.tolist()
    areas = [sk.roc_auc_score(truth == k, prob[:, k]) for k in range(3)]
    np.testing.assert_allclose(rows.auc.astype(float), areas)
    inverse = [sk.recall_score(truth != k, prob.argmax(1) != k) for k in range(3)]
    np.testing.assert_allclose(rows.specificity.astype(float), inverse)
    np.testing.assert_allclose(table.loc["macro average", "f1"], sk.f1_score(truth, prob.argmax(1), average="macro"))
    np.testing.assert_allclose(table.loc["macro average", "auc"], np.mean(areas))


def test_intervals_hold_their_value_and_stay_in_bounds():
    truth, prob = cases()
    table = classification_table(truth, prob, CLASSES, seed=0, n_boot=200)
    for name in CLASS_METRICS:
        for e in table[name]:
            assert 0 <= e.low < e.value < e.high <= 1


def test_an_absent_class_is_not_available_and_left_out_of_the_average():
    truth, prob = cases()
    kept = truth != 0
    table = classification_table(truth[kept], prob[kept], CLASSES, seed=0, n_boot=30)
    absent = table.loc["COVID19"]
    assert absent.support == 0
    assert [str(absent[name]) for name in ("recall", "f1", "auc")] == ["n/a (0 cases)"] * 3
    assert absent.specificity.n == kept.sum()
    expected = sk.f1_score(truth[kept], prob[kept].argmax(1), labels=[1, 2], average="macro")
    assert table.loc["macro average", "f1"].value == pytest.approx(expected)
    assert "n/a (0 cases)" in table.to_html()


def test_the_bootstrap_of_the_table_keeps_the_class_counts():
    truth = np.array([0] + [1] * 30)
    e = classification_table(truth, np.eye(3)[[1] * 31], CLASSES, seed=0, n_boot=50).loc["macro average", "recall"]
    assert (e.value, e.low, e.high) == (0.5, 0.5, 0.5)  # a draw without the one missed case would say 1


def test_a_class_never_predicted_has_no_precision_but_costs_the_average():
    truth = np.array([0, 0, 1, 2])
    table = classification_table(truth, np.eye(3)[[1, 1, 1, 2]], CLASSES, seed=0, n_boot=30)
    assert str(table.loc["COVID19", "precision"]) == "n/a (0 cases)"
    assert table.loc["COVID19", "f1"].value == 0.0
    expected = sk.precision_score(truth, [1, 1, 1, 2], average="macro", zero_division=0)
    assert table.loc["macro average", "precision"].value == pytest.approx(expected)


def test_only_one_class_has_cases():
    table = classification_table([1, 1, 1], np.full((3, 3), 1 / 3), CLASSES, seed=0, n_boot=10)
    assert isnan(table.loc["NORMAL", "auc"].value) and isnan(table.loc["macro average", "auc"].value)


def test_table_ignores_the_order_of_cases():
    truth, prob = cases()
    order = np.random.default_rng(1).permutation(len(truth))
    first, second = (classification_table(truth[i], prob[i], CLASSES, seed=0, n_boot=5) for i in (slice(None), order))
    for name in CLASS_METRICS:
        assert [e.value for e in first[name]] == pytest.approx([e.value for e in second[name]], rel=1e-12)


def test_shuffled_labels_fall_to_chance():
    truth, prob = cases(n=3000)
    shuffled = np.random.default_rng(0).permutation(truth)
    assert np.abs(auc(shuffled, prob) - 0.5).max() < 0.05 < np.abs(auc(truth, prob) - 0.5).min()


def test_table_is_quick():
    truth, prob = cases(n=1288, decimals=6)
    start = time.perf_counter()
    classification_table(truth, prob, CLASSES, seed=0, n_boot=1000)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("bad", [nan, 1.5, -0.1])
def test_probabilities_that_are_none_are_refused(bad):
    with pytest.raises(DataError, match="softmax"):
        auc([0, 1], [[0.5, 0.5], [bad, 0.5]])


def test_class_names_must_match_the_columns():
    with pytest.raises(UsageError, match="2 class names"):
        classification_table([0], [[1.0, 0.0, 0.0]], ("NORMAL", "PNEUMONIA"), seed=0)


def test_auc_counts_ties_as_half():
    assert auc([0, 0, 1], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]).tolist() == [0.5, 0.5]
    assert auc([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]).tolist() == [0.75, 0.75]


def test_roc_curve_agrees_with_scikit_learn():
    truth, prob = cases()
    curve = roc_curve(truth == 2, prob[:, 2])
    for ours, theirs in zip(
        (curve.fpr, curve.tpr, curve.threshold),
        sk.roc_curve(truth == 2, prob[:, 2], drop_intermediate=False),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(auc(truth, prob)[2])


def test_roc_curve_of_one_class_has_no_rate_for_the_other():
    curve = roc_curve([1, 1], [0.2, 0.8])
    assert np.isnan(curve.fpr).all() and curve.tpr.tolist() == [0, 0.5, 1]


# Two models


def test_mcnemar_by_hand():
    truth = np.zeros(20, int)
    a, b = np.zeros(20, int), np.zeros(20, int)
    a[:2], b[2:10] = 1, 1
    result = mcnemar(truth, a, b)
    # 2 * (C(10,0) + C(10,1) + C(10,2)) / 2**10
    assert (result.b, result.c, result.p) == (8, 2, pytest.approx(112 / 1024))
    centre, half = 6 / 22, 1.959963984540054 * np.sqrt((12 / 22 - (6 / 22) ** 2) / 22)
    assert result.difference.value == pytest.approx(0.3)
    assert (result.difference.low, result.difference.high) == pytest.approx((centre - half, centre + half))
    swapped = mcnemar(truth, b, a)
    assert swapped.p == result.p and swapped.difference.value == -result.difference.value
    assert swapped.difference.low == pytest.approx(-result.difference.high)


def test_mcnemar_of_equal_models_shows_nothing():
    truth, prob = cases()
    result = mcnemar(truth, prob.argmax(1), prob.argmax(1))
    assert (result.b, result.c, result.p, result.difference.value) == (0, 0, 1.0, 0.0)
    assert result.difference.low < 0 < result.difference.high


def test_mcnemar_interval_covers_the_paired_difference():
    rng, inside = np.random.default_rng(0), []
    for _ in range(400):
        a, b = rng.random(100) > 0.10, rng.random(100) > 0.16
        e = mcnemar(np.ones(100, int), a, b).difference
        inside.append(e.low <= 0.06 <= e.high)
    assert 0.92 <= np.mean(inside) <= 0.99


# Images


def images(n=3, size=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((n, size, size + 5))
    return x, np.clip(x + rng.normal(0, 0.1, x.shape), 0, 1)


def reference_ssim(x, y, data_range):
    """Wang et al. (2004) written out with an 11 x 11 window and no border."""
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()

    def blur(image):
        return signal.convolve2d(image, window, mode="valid")

    mx, my, c1, c2 = blur(x), blur(y), (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_psnr_by_hand():
    x = np.zeros((2, 4, 4), np.float32)
    y = x + np.array([0.1, 0.5], np.float32)[:, None, None]
    np.testing.assert_allclose(psnr(x, y), [20.0, 10 * np.log10(4)], rtol=1e-6)
    np.testing.assert_allclose(psnr(255 * x, 255 * y, data_range=255), psnr(x, y), rtol=1e-6)


def test_psnr_of_equal_images_is_infinite_and_of_nan_is_nan():
    x, y = images(2)
    y[0] = x[0]
    assert psnr(x, y)[0] == inf and np.isfinite(psnr(x, y)[1])
    x[1, 0, 0] = nan
    assert isnan(psnr(x, y)[1])


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_agrees_with_the_definition(data_range):
    x, y = (data_range * stack for stack in images())
    expected = [reference_ssim(a, b, data_range) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ssim(x, y, data_range=data_range), expected, atol=1e-9)


def test_ssim_is_one_for_equal_images_symmetric_and_bounded():
    x, y = images()
    np.testing.assert_allclose(ssim(x, x), 1.0)
    np.testing.assert_allclose(ssim(x, y), ssim(y, x))
    assert (np.abs(ssim(x, 1 - x)) <= 1).all() and (ssim(x, 1 - x) < 0).all()


def test_image_metrics_are_per_image_whatever_the_chunk():
    x, y = images(n=130, size=12)
    for metric in (psnr, ssim):
        np.testing.assert_allclose(metric(x, y), [metric(x[i : i + 1], y[i : i + 1])[0] for i in range(130)])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_image_metrics_refuse_what_would_be_silently_wrong(metric):
    x, y = images()
    with pytest.raises(UsageError, match="uint8"):
        metric((255 * x).astype(np.uint8), y)
    with pytest.raises(UsageError, match="shapes"):
        metric(x, y[:, :20])
    with pytest.raises(UsageError, match="11 x 11"):
        ssim(x[:, :10], y[:, :10])
