"""Calibration and abstention against plain numpy, scikit-learn and scipy."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn import metrics as sk

from pneumo_lib.calibration import (
    brier,
    choose_threshold,
    conformal_cutoffs,
    conformal_result,
    conformal_sets,
    coverage_curve,
    ece,
    fit_temperature,
    most_confident,
    nll,
    reliability,
    selective,
    softmax,
)
from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.metrics import wilson


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def cases(n=500, seed=0, sharpness=1.0):
    """Labels drawn from softmax(logits), and the logits multiplied by ``sharpness``: T = sharpness is the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 3))
    truth = (rng.random((n, 1)) > softmax(logits).cumsum(1)).sum(1)
    return truth, sharpness * logits


def reference_ece(confidence, correct, bins):
    """One case at a time: bin k holds (k/bins, (k+1)/bins], and the first bin 0 as well."""
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for k in range(bins):
        inside = (confidence > edges[k]) & (confidence <= edges[k + 1]) | ((k == 0) & (confidence == 0))
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def one_sided(confidence, correct):
    """Two columns whose larger one is ``confidence`` and whose label is right or wrong as asked."""
    prob = np.stack([confidence, np.zeros_like(confidence)], axis=1)
    return np.where(correct, 0, 1), prob


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_agrees_with_numpy_at_zero_and_one_and_on_the_edges(bins):
    rng = np.random.default_rng(bins)
    confidence = np.concatenate([[0.0] * 5, [1.0] * 9, np.arange(16) / 15, np.arange(11) / 10, rng.random(50)])
    correct = rng.random(len(confidence)) < 0.5
    assert ece(*one_sided(confidence, correct), bins=bins) == pytest.approx(reference_ece(confidence, correct, bins))


def test_ece_by_hand():
    assert ece([0, 1], [[1.0, 0.0], [1.0, 0.0]]) == 0.5  # sure of both, right once
    assert ece([0, 1], [[1.0, 0.0], [0.0, 1.0]]) == 0.0
    # 0.6 with accuracy 1/2 and 0.9 with accuracy 1, two cases each
    assert ece([0, 1, 0, 0], [[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]]) == pytest.approx(0.1)


def test_reliability_bins_hold_all_cases_and_empty_ones_are_nan():
    truth, logits = cases()
    curve = reliability(truth, softmax(logits), bins=10)
    assert len(curve.count) == 10 and curve.count.sum() == 500
    assert curve.count[:3].tolist() == [0, 0, 0] and np.isnan(curve.accuracy[:3]).all()  # three classes: at least 1/3
    full = curve.count > 0
    assert (curve.low[full] <= curve.accuracy[full]).all() and (curve.accuracy[full] <= curve.high[full]).all()
    edges = np.linspace(0, 1, 11)
    assert (curve.confidence[full] > edges[:-1][full]).all() and (curve.confidence[full] <= edges[1:][full]).all()


def test_equal_mass_bins_are_equal_and_keep_ties_together():
    truth, logits = cases(n=600)
    assert reliability(truth, softmax(logits), bins=6, equal_mass=True).count.tolist() == [100] * 6
    tied = np.full((8, 2), 0.5)
    assert sorted(reliability([0, 1] * 4, tied, bins=4, equal_mass=True).count) == [0, 0, 0, 8]
    assert ece([0, 1] * 4, tied, bins=4, equal_mass=True) == 0.0


@pytest.mark.parametrize("equal_mass", [False, True])
def test_calibration_ignores_the_order_of_cases(equal_mass):
    truth, logits = cases()
    prob, order = np.round(softmax(logits), 1), np.random.default_rng(1).permutation(500)
    expected = ece(truth, prob, equal_mass=equal_mass)
    assert ece(truth[order], prob[order], equal_mass=equal_mass) == pytest.approx(expected, abs=1e-12)
    assert 0 <= expected <= 1


def test_brier_and_nll_agree_with_scikit_learn():
    truth, logits = cases()
    prob = softmax(logits)
    assert nll(truth, prob) == pytest.approx(sk.log_loss(truth, prob))
    assert brier(truth, prob) == pytest.approx(sk.brier_score_loss(truth, prob, scale_by_half=False))
    assert brier([0], [[0.0, 1.0]]) == 2.0 and brier([1], [[0.0, 1.0]]) == 0.0
    assert nll([1], [[0.0, 1.0]]) == 0.0 and 30 < nll([0], [[0.0, 1.0]]) < 40


def test_softmax_is_stable_and_cools():
    assert softmax([[1000.0, 0.0, -1000.0]]).tolist() == [[1.0, 0.0, 0.0]]
    np.testing.assert_allclose(softmax([[2.0, 0.0]], 2.0), softmax([[1.0, 0.0]]))
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="above 0"):
            softmax([[1.0, 0.0]], temperature)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_temperature_is_recovered(sharpness):
    truth, logits = cases(n=4000, sharpness=sharpness)
    temperature = fit_temperature(logits, truth)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    best = minimize(lambda t: nll(truth, softmax(logits, t[0])), [sharpness], method="Nelder-Mead").x[0]
    assert temperature == pytest.approx(best, rel=1e-2)
    assert nll(truth, softmax(logits, temperature)) <= nll(truth, softmax(logits)) + 1e-9


def test_temperature_repairs_calibration_and_moves_no_decision():
    truth, logits = cases(n=4000, sharpness=4.0)
    cooled = softmax(logits, fit_temperature(logits, truth))
    assert ece(truth, cooled) < 0.03 < 0.1 < ece(truth, softmax(logits))
    assert (cooled.argmax(1) == logits.argmax(1)).all()


def test_temperature_of_faultless_validation_is_the_bound():
    assert fit_temperature(np.eye(3), [0, 1, 2], bounds=(0.2, 5.0)) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.full((2, 3), np.nan), np.zeros(2)])
def test_temperature_refuses_broken_logits(logits):
    with pytest.raises(DataError, match="finite"):
        fit_temperature(logits, [0] * len(logits))


# Abstention: confidences 0.9 right, 0.8 right and wrong, 0.7 right, 0.6 wrong
TRUTH = np.array([0, 0, 1, 0, 1])
PROB = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])


def test_coverage_curve_by_hand_takes_ties_together():
    curve = coverage_curve(TRUTH, PROB)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.coverage.tolist() == pytest.approx([0.2, 0.6, 0.8, 1.0])
    assert curve.accuracy.tolist() == pytest.approx([1, 2 / 3, 3 / 4, 3 / 5])


@pytest.mark.parametrize(
    ("target", "min_coverage", "value", "coverage", "reached"),
    [
        (0.75, 0.1, 0.7, 0.8, True),  # 0.7, though accuracy is lower at 0.8: the smallest that reaches it
        (0.99, 0.1, 0.9, 0.2, True),
        (0.99, 0.5, 0.7, 0.8, False),  # 0.9 accepts too few: the best of the rest
        (0.60, 0.1, 0.0, 1.0, True),
    ],
)
def test_threshold_by_hand(target, min_coverage, value, coverage, reached):
    chosen = choose_threshold(TRUTH, PROB, target_accuracy=target, min_coverage=min_coverage)
    assert (chosen.value, chosen.coverage, chosen.reached) == (value, coverage, reached)
    again = selective(TRUTH, PROB, chosen.value)
    assert (again.coverage.value, again.accuracy.value) == (chosen.coverage, chosen.accuracy)


@pytest.mark.parametrize("options", [{"target_accuracy": 95}, {"target_accuracy": 0.9, "min_coverage": 2}])
def test_threshold_wants_fractions(options):
    with pytest.raises(UsageError, match="fractions"):
        choose_threshold(TRUTH, PROB, **options)


def test_selective_by_hand():
    result = selective(TRUTH, PROB, 0.8)
    assert (result.coverage, result.accuracy) == (wilson(3, 5), wilson(2, 3))
    nobody = selective(TRUTH, PROB, 1.1)
    assert nobody.coverage.value == 0.0 and str(nobody.accuracy) == "n/a (0 cases)"


SURE, RIGHT = PROB.max(1), PROB.argmax(1) == TRUTH


@pytest.mark.parametrize(
    ("share", "accepted", "right"), [(0.2, 1, 1), (0.21, 3, 2), (0.4, 3, 2), (0.6, 3, 2), (0.61, 4, 3), (1.0, 5, 3)]
)
def test_the_most_confident_by_hand_take_ties_together(share, accepted, right):
    result = most_confident(SURE, RIGHT, share)
    assert (result.coverage, result.accuracy) == (wilson(accepted, 5), wilson(right, accepted))
    shuffled = [3, 1, 4, 0, 2]
    assert most_confident(SURE[shuffled], RIGHT[shuffled], share) == result


def test_the_most_confident_lie_on_the_coverage_curve():
    truth, logits = cases()
    prob = softmax(logits)
    curve = coverage_curve(truth, prob)
    for share in (0.8, 0.9, 0.95, 0.29, 1.0):  # 0.29 * 500 is 144.99999999999997 in floats
        found = most_confident(prob.max(1), prob.argmax(1) == truth, share)
        place = np.flatnonzero(curve.coverage == found.coverage.value)[0]
        assert found.accuracy.value == pytest.approx(curve.accuracy[place])
        assert found.coverage.value == pytest.approx(share), "no ties, and a whole number of cases"


@pytest.mark.parametrize(("share", "n"), [(0, 5), (1.1, 5), (90, 5), (float("nan"), 5), (0.9, 0)])
def test_an_impossible_share_is_refused(share, n):
    with pytest.raises(UsageError, match="expected a fraction above 0"):
        most_confident(SURE[:n], RIGHT[:n], share)


def test_coverage_rises_from_a_share_to_all_and_ends_at_the_accuracy():
    truth, logits = cases()
    prob = softmax(logits)
    curve = coverage_curve(truth, prob)
    assert (np.diff(curve.coverage) > 0).all() and (np.diff(curve.threshold) < 0).all()
    assert curve.coverage[-1] == 1 and curve.accuracy[-1] == pytest.approx((prob.argmax(1) == truth).mean())
    assert curve.accuracy[len(curve.accuracy) // 4] > curve.accuracy[-1]


def test_a_conformal_cutoff_is_the_quantile_of_the_definition():
    """At least ceil((n + 1) * coverage) of the n scores 1 - p lie at or below the cut's."""
    truth, logits = cases(400, seed=3)
    prob = softmax(logits)
    cutoffs = conformal_cutoffs(truth, prob, coverage=0.9)
    for k, cutoff in enumerate(cutoffs):
        scores = np.sort(1 - prob[truth == k, k])
        assert cutoff == pytest.approx(1 - scores[int(np.ceil((len(scores) + 1) * 0.9)) - 1])


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_conformal_sets_cover_every_class_of_new_cases(coverage):
    found = []
    for seed in range(200):
        truth, logits = cases(600, seed=seed, sharpness=3.0)  # overconfident: coverage must not hang on calibration
        prob = softmax(logits)
        cutoffs = conformal_cutoffs(truth[:300], prob[:300], coverage=coverage)
        found.append([one.value for one in conformal_result(truth[300:], prob[300:], cutoffs).by_class])
    mean = np.mean(found, axis=0)
    assert (mean >= coverage - 0.006).all() and (mean <= coverage + 0.02).all(), "not below, and not idly above"


def test_a_class_with_too_few_cases_stands_in_every_set():
    prob = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    cutoffs = conformal_cutoffs([0, 0, 1], prob, coverage=0.95)
    assert cutoffs.tolist() == [0.0, 0.0]
    assert conformal_sets(prob, cutoffs).all()
    result = conformal_result([0, 0, 1], prob, cutoffs)
    assert (result.coverage.value, result.size, result.single.value) == (1.0, 2.0, 0.0)


def test_a_conformal_set_may_be_empty_or_hold_several():
    sets = conformal_sets([[0.6, 0.4], [0.9, 0.1], [0.45, 0.55]], [0.5, 0.4])
    assert sets.tolist() == [[True, True], [True, False], [False, True]]
    assert not conformal_sets([[0.6, 0.4]], [0.7, 0.5]).any()
    result = conformal_result([1, 0, 0], [[0.6, 0.4], [0.9, 0.1], [0.45, 0.55]], [0.5, 0.4])
    assert (result.coverage.value, result.coverage.n) == (pytest.approx(2 / 3), 3)
    assert [one.value for one in result.by_class] == [0.5, 1.0]
    assert (result.size, result.single.value) == (pytest.approx(4 / 3), pytest.approx(2 / 3))


@pytest.mark.parametrize("coverage", [0, 1, 95])
def test_an_impossible_coverage_is_refused(coverage):
    with pytest.raises(UsageError, match=f"coverage {coverage}: expected a fraction"):
        conformal_cutoffs([0, 1], [[0.6, 0.4], [0.3, 0.7]], coverage=coverage)
