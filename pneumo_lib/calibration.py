"""How far a probability can be trusted: calibration, and leaving a case undecided.

Labels are class indices (N,), probabilities (N, C) in [0, 1]; the confidence of a case is its largest probability.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.optimize import minimize_scalar

from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.metrics import Estimate, Floats, Ints, as_labels, as_probabilities, same_length, wilson


@dataclass(frozen=True)
class Reliability:
    """One entry per bin: mean confidence, accuracy with its Wilson bounds, count; an empty bin is NaN and 0."""

    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    count: Ints


def reliability(y_true: ArrayLike, y_prob: ArrayLike, *, bins: int = 15, equal_mass: bool = False) -> Reliability:
    """Accuracy against confidence (the largest probability), in bins of equal width or of equal numbers of cases.

    A bin holds its upper edge; 0.0 lies in the first and 1.0 in the last. Equal confidences share a bin.
    """
    confidence, correct = _decisions(y_true, y_prob)
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    which = np.searchsorted(np.quantile(confidence, inner) if equal_mass else inner, confidence, side="left")
    count, hits, total = (np.bincount(which, w, minlength=bins) for w in (None, correct, confidence))
    bounds = [wilson(int(hit), int(n)) for hit, n in zip(hits, count, strict=True)]
    share, low, high = np.array([[bound.value, bound.low, bound.high] for bound in bounds]).T
    mean = np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
    return Reliability(mean, share, low, high, count)


def ece(y_true: ArrayLike, y_prob: ArrayLike, *, bins: int = 15, equal_mass: bool = False) -> float:
    """Expected calibration error (Naeini et al., 2015): gap between confidence and accuracy, weighted by cases."""
    curve = reliability(y_true, y_prob, bins=bins, equal_mass=equal_mass)
    return float(np.nansum(np.abs(curve.accuracy - curve.confidence) * curve.count) / curve.count.sum())


def brier(y_true: ArrayLike, y_prob: ArrayLike) -> float:
    """Mean squared distance to the one-hot truth, summed over the classes: 0 is perfect, 2 the worst (Brier, 1950)."""
    truth, prob = as_probabilities(y_true, y_prob)
    return float(((prob - np.eye(prob.shape[1])[truth]) ** 2).sum(1).mean())


def nll(y_true: ArrayLike, y_prob: ArrayLike) -> float:
    """Mean negative log-likelihood in nats; a probability of 0 counts as 2.2e-16 so that the mean stays finite."""
    truth, prob = as_probabilities(y_true, y_prob)
    return float(-np.log(np.maximum(prob[np.arange(len(truth)), truth], np.finfo(np.float64).eps)).mean())


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities (N, C) from logits (N, C) divided by a positive temperature."""
    if not temperature > 0:
        raise UsageError(f"temperature {temperature}: expected a number above 0")
    return special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


def fit_temperature(logits: ArrayLike, y: ArrayLike, *, bounds: tuple[float, float] = (0.05, 20.0)) -> float:
    """The temperature that minimises the negative log-likelihood of validation cases (Guo et al., 2017).

    Where every case is right the likelihood grows without end as T falls: the lower bound is the answer.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or not len(scores) or not np.isfinite(scores).all():
        raise DataError(f"logits of shape {scores.shape}: expected finite numbers (N, C) with at least one case")
    truth, rows = as_labels(y, scores.shape[1]), np.arange(len(scores))
    same_length(truth, scores)

    def loss(log_t: float) -> float:
        return -special.log_softmax(scores / np.exp(log_t), axis=1)[rows, truth].mean()

    return float(np.exp(minimize_scalar(loss, bounds=tuple(np.log(bounds)), method="bounded").x))


@dataclass(frozen=True)
class CoverageCurve:
    """One point per distinct confidence, falling: share of cases accepted and how many of those are right."""

    coverage: Floats
    accuracy: Floats
    threshold: Floats


@dataclass(frozen=True)
class Threshold:
    """Accept when confidence >= ``value``; ``reached`` is False where no threshold met ``target``."""

    value: float
    coverage: float
    accuracy: float
    target: float
    reached: bool


@dataclass(frozen=True)
class Selective:
    """What a threshold does: share of cases accepted, and accuracy among them."""

    coverage: Estimate
    accuracy: Estimate


def coverage_curve(y_true: ArrayLike, y_prob: ArrayLike) -> CoverageCurve:
    """Selective accuracy (El-Yaniv and Wiener, 2010): cases of equal confidence are accepted together."""
    confidence, correct = _decisions(y_true, y_prob)
    threshold, rank = np.unique(-confidence, return_inverse=True)
    accepted, hits = np.cumsum(np.bincount(rank)), np.cumsum(np.bincount(rank, weights=correct))
    return CoverageCurve(accepted / len(confidence), hits / accepted, -threshold)


def choose_threshold(
    y_true: ArrayLike, y_prob: ArrayLike, *, target_accuracy: float, min_coverage: float = 0.1
) -> Threshold:
    """Smallest confidence at which the accepted validation cases reach ``target_accuracy``.

    Only thresholds that accept at least ``min_coverage`` of the cases count, for a handful of films proves nothing. If
    none reaches the target the one of best accuracy is given, with ``reached=False``. If all cases together reach it
    the value is 0: nothing needs to be left undecided.
    """
    if not (0 < target_accuracy <= 1 and 0 <= min_coverage <= 1):
        raise UsageError(f"target_accuracy {target_accuracy}, min_coverage {min_coverage}: expected fractions")
    curve = coverage_curve(y_true, y_prob)
    score = np.where(curve.coverage >= min_coverage, curve.accuracy, -inf)
    reached = bool((score >= target_accuracy).any())
    last = int(np.flatnonzero(score >= (target_accuracy if reached else score.max()))[-1])
    value = 0.0 if curve.coverage[last] == 1 else float(curve.threshold[last])
    return Threshold(value, float(curve.coverage[last]), float(curve.accuracy[last]), target_accuracy, reached)


def selective(y_true: ArrayLike, y_prob: ArrayLike, threshold: float) -> Selective:
    """Coverage and accuracy, with Wilson intervals, of accepting when confidence >= ``threshold``."""
    confidence, correct = _decisions(y_true, y_prob)
    accepted = confidence >= threshold
    n = int(accepted.sum())
    return Selective(wilson(n, len(accepted)), wilson(int(correct[accepted].sum()), n))


def most_confident(confidence: ArrayLike, correct: ArrayLike, share: float) -> Selective:
    """Accuracy of the cases that one is most sure of: one point of the risk-coverage curve.

    Args:
        confidence: (N,) of each answer; correct: (N,) bool, whether it is right.
        share: of the cases that is answered for at least, a fraction; cases of equal confidence are taken together.

    Source: El-Yaniv and Wiener 2010.
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if not (0 < share <= 1 and len(sure)):
        raise UsageError(f"share {share} of {len(sure)} cases: expected a fraction above 0, of one case at least")
    least = int(np.ceil(share * len(sure) - 1e-9))
    accepted = sure >= np.sort(sure)[-least]
    n = int(accepted.sum())
    return Selective(wilson(n, len(sure)), wilson(int(right[accepted].sum()), n))


def conformal_cutoffs(y_true: ArrayLike, y_prob: ArrayLike, *, coverage: float) -> Floats:
    """The probability that each class needs to stand in a film's set, from validation cases (C,).

    Class-conditional split conformal prediction: of new cases of a class, exchangeable with its validation cases, at
    least `coverage` get a set that holds it. A class with too few cases for that gets 0 and stands in every set.

    Source: Sadinle, Lei and Wasserman 2019; Vovk 2012 for the classes apart.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"coverage {coverage}: expected a fraction between 0 and 1")
    truth, prob = as_probabilities(y_true, y_prob)
    return np.array([_cutoff(np.sort(prob[truth == k, k]), coverage) for k in range(prob.shape[1])])


def _cutoff(own: Floats, coverage: float) -> float:
    """The largest probability that all but floor((n + 1) (1 - coverage)) - 1 of a class's n cases reach."""
    rank = int(np.floor((len(own) + 1) * (1 - coverage) + 1e-9))
    return float(own[rank - 1]) if rank else 0.0


def conformal_sets(y_prob: ArrayLike, cutoffs: ArrayLike) -> NDArray[np.bool_]:
    """Which classes stand in the set of each film (N, C): none, one or several."""
    return np.asarray(y_prob, np.float64) >= np.asarray(cutoffs, np.float64)


@dataclass(frozen=True)
class ConformalResult:
    """What sets are worth on new cases.

    Attributes:
        coverage: share of the sets that hold the true class; by_class: of each class.
        size: mean number of classes in a set; single: share of the sets of exactly one class.
    """

    coverage: Estimate
    by_class: tuple[Estimate, ...]
    size: float
    single: Estimate


def conformal_result(y_true: ArrayLike, y_prob: ArrayLike, cutoffs: ArrayLike) -> ConformalResult:
    """Coverage, with Wilson intervals, and size of the sets that those cut-offs give."""
    truth, prob = as_probabilities(y_true, y_prob)
    sets = conformal_sets(prob, cutoffs)
    held, sizes = sets[np.arange(len(truth)), truth], sets.sum(axis=1)
    by_class = tuple(wilson(int(held[truth == k].sum()), int((truth == k).sum())) for k in range(prob.shape[1]))
    single = wilson(int((sizes == 1).sum()), len(sizes))
    return ConformalResult(wilson(int(held.sum()), len(held)), by_class, float(sizes.mean()), single)


def _decisions(y_true: ArrayLike, y_prob: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    truth, prob = as_probabilities(y_true, y_prob)
    return prob.max(1), prob.argmax(1) == truth
