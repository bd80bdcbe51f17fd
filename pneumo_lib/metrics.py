"""Numbers with intervals: arrays in, `Estimate` out.

Labels are class indices (N,) of an integer type, probabilities are (N, C) in [0, 1], fractions stay fractions. The
class list is fixed by C: a class without cases gives NaN, shown as "n/a (0 cases)", and never a warning.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, isnan, nan, sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import binomtest, rankdata, t
from skimage.metrics import structural_similarity

from pneumo_lib.errors import DataError, UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLASS_METRICS = ("precision", "recall", "specificity", "f1", "auc")
_CHUNK = 64  # images converted at a time, so that memory stays flat


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (95 % unless asked otherwise) and the number of cases it stands on."""

    value: float
    low: float
    high: float
    n: int

    def text(self, digits: int = 3, *, scale: float = 1.0, unit: str = "") -> str:
        """For example ``27.13 dB [27.05, 27.21]``; no interval is shown where none exists."""
        if isnan(self.value):
            return f"n/a ({self.n} cases)"
        value, low, high = (f"{scale * number:.{digits}f}" for number in (self.value, self.low, self.high))
        interval = f"(n = {self.n})" if isnan(self.low) else f"[{low}, {high}]"
        return " ".join(filter(None, (value, unit, interval)))

    def percent(self, digits: int = 1) -> str:
        """A fraction in percent, for example ``94.6 % [93.2, 95.7]``."""
        return self.text(digits, scale=100.0, unit="%")

    def to_dict(self) -> dict[str, float | int | None]:
        """Ready for strict JSON: a number that does not exist, or is infinite, is None."""
        return {name: number if isfinite(number) else None for name, number in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: dict[str, float | int | None]) -> "Estimate":
        """The inverse of `to_dict` for finite numbers."""
        return cls(**{name: nan if number is None else number for name, number in record.items()})

    __str__ = text


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Proportion with the score interval of Wilson (1927); NaN when ``n`` is 0."""
    if not 0 <= successes <= n:
        raise UsageError(f"{successes} successes of {n} cases: expected a count between 0 and the number of cases")
    if n == 0:
        return Estimate(nan, nan, nan, 0)
    interval = binomtest(successes, n).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n))


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    seed: int,
    strata: ArrayLike | None = None,
    n_boot: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap (Efron, 1979) of ``statistic(*arrays)``, resampling rows of all arrays together.

    Args:
        statistic: from the resampled arrays to one number; the order of the rows must not matter to it.
        arrays: equally long, rows are cases.
        seed: of the resampling.
        strata: (N,) groups whose sizes every resample keeps, usually the true class.
        n_boot: number of resamples.
        level: of the interval. A perfect score gets an interval of width zero: no resample can hold an error.
    """
    columns = [np.asarray(array) for array in arrays]
    draws = _resamples(statistic, columns, seed=seed, strata=strata, n_boot=n_boot)
    return Estimate(float(statistic(*columns)), *_percentiles(draws, level), len(columns[0]))


def _resamples(
    statistic: Callable[..., ArrayLike], columns: list[np.ndarray], *, seed: int, strata: ArrayLike | None, n_boot: int
) -> Floats:
    n = len(columns[0])
    if n_boot < 1 or n == 0:
        raise UsageError(f"{n_boot} resamples of {n} cases: a bootstrap needs at least one of each")
    groups = np.zeros(n) if strata is None else np.asarray(strata)
    same_length(groups, *columns)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng, draws = np.random.default_rng(seed), []
    for _ in range(n_boot):
        rows = np.concatenate([group[rng.integers(0, len(group), len(group))] for group in members])
        draws.append(statistic(*(column[rows] for column in columns)))
    return np.asarray(draws, dtype=np.float64)


def _percentiles(draws: Floats, level: float = 0.95) -> tuple[float, float]:
    """Outer order statistics: unlike interpolation they survive an infinite PSNR; NaN draws are left out."""
    ordered = np.sort(draws[~np.isnan(draws)])
    if not len(ordered):
        return nan, nan
    tail = (1 - level) / 2 * (len(ordered) - 1)
    return float(ordered[int(tail)]), float(ordered[len(ordered) - 1 - int(tail)])


def mean_interval(values: ArrayLike, *, seed: int, n_boot: int = 1000) -> Estimate:
    """Mean of per-image values (N,), such as PSNR or SSIM, with a bootstrap interval over the images."""
    return bootstrap(np.mean, values, seed=seed, n_boot=n_boot)


def seeds_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean over a few training seeds with Student's t interval; one seed has no interval."""
    scores = np.asarray(values, dtype=np.float64)
    n, mean = len(scores), float(scores.mean()) if len(scores) else nan
    half = float(t.ppf((1 + level) / 2, n - 1) * scores.std(ddof=1)) / sqrt(n) if n > 1 else nan
    return Estimate(mean, mean - half, mean + half, n)


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> Estimate:
    """Share of equal labels with its Wilson interval."""
    truth, predicted = as_labels(y_true), as_labels(y_pred)
    same_length(truth, predicted)
    return wilson(int((truth == predicted).sum()), len(truth))


def confusion(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int) -> Ints:
    """Counts (C, C): rows are the truth, columns the prediction."""
    truth, predicted = as_labels(y_true, n_classes), as_labels(y_pred, n_classes)
    same_length(truth, predicted)
    return np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def classification_table(
    y_true: ArrayLike, y_prob: ArrayLike, classes: Sequence[str], *, seed: int, n_boot: int = 1000
) -> pd.DataFrame:
    """Per class and macro: precision, recall (sensitivity), specificity, F1, one-vs-rest AUC and support.

    The cells are `Estimate`; `support` holds counts. Precision, recall and specificity of a class carry Wilson
    intervals; F1, AUC and the macro row a bootstrap stratified by true class. The macro row averages the classes that
    have cases; the precision of one that is never predicted is "n/a" in its own row and counts as 0 in the average.
    """
    truth, prob = as_probabilities(y_true, y_prob)
    if len(classes) != prob.shape[1]:
        raise UsageError(f"{len(classes)} class names {tuple(classes)} for {prob.shape[1]} columns of probabilities")
    values = _scores(truth, prob)
    draws = _resamples(_scores, [truth, prob], seed=seed, strata=truth, n_boot=n_boot)
    counts = confusion(truth, prob.argmax(1), len(classes))
    rows = [_class_row(counts, k, values[k], draws[:, k]) for k in range(len(classes))]
    macro = [Estimate(float(v), *_percentiles(draws[:, -1, i]), len(truth)) for i, v in enumerate(values[-1])]
    rows.append(dict(zip(CLASS_METRICS, macro, strict=True)) | {"support": len(truth)})
    return pd.DataFrame(rows, index=pd.Index([*classes, "macro average"], name="class"))


def _class_row(counts: Ints, k: int, values: Floats, draws: Floats) -> dict[str, Estimate | int]:
    hit, support, predicted, n = counts[k, k], counts[k].sum(), counts[:, k].sum(), counts.sum()
    proportions = [(hit, predicted), (hit, support), (n - support - predicted + hit, n - support)]
    row = [wilson(int(part), int(whole)) for part, whole in proportions]
    row += [Estimate(float(values[i]), *_percentiles(draws[:, i]), int(support)) for i in (3, 4)]
    return dict(zip(CLASS_METRICS, row, strict=True)) | {"support": int(support)}


def _scores(truth: Ints, prob: Floats) -> Floats:
    """CLASS_METRICS of each class and, in the last row, of their macro average: (C + 1, 5)."""
    counts = confusion(truth, prob.argmax(1), prob.shape[1])
    hit, support, predicted, n = counts.diagonal(), counts.sum(1), counts.sum(0), len(truth)
    specificity = _ratio(n - support - predicted + hit, n - support)
    f1 = np.where(support > 0, _ratio(2 * hit, support + predicted), nan)
    table = np.stack([_ratio(hit, predicted), _ratio(hit, support), specificity, f1, auc(truth, prob)], axis=1)
    present = table[support > 0]
    present[np.isnan(present[:, 0]), 0] = 0.0
    return np.vstack([table, present.mean(0)])


def auc(y_true: ArrayLike, y_prob: ArrayLike) -> Floats:
    """One-vs-rest area under the ROC curve of each class (C,), as the Mann-Whitney statistic; ties count one half."""
    truth, prob = as_probabilities(y_true, y_prob)
    positive = truth[:, None] == np.arange(prob.shape[1])
    n_pos = positive.sum(0)
    rank_sum = (rankdata(prob, axis=0) * positive).sum(0)
    return _ratio(rank_sum - n_pos * (n_pos + 1) / 2, n_pos * (len(truth) - n_pos))


@dataclass(frozen=True)
class RocCurve:
    """One point per distinct score, from (0, 0) at threshold infinity to (1, 1)."""

    fpr: Floats
    tpr: Floats
    threshold: Floats


def roc_curve(y_true_binary: ArrayLike, score: ArrayLike) -> RocCurve:
    """False and true positive rate of "score >= threshold"; a rate without cases is NaN."""
    truth, scores = as_labels(y_true_binary, 2), np.asarray(score, dtype=np.float64)
    same_length(truth, scores)
    threshold, rank = np.unique(-scores, return_inverse=True)
    positive, total = np.bincount(rank, weights=truth), np.bincount(rank)
    tpr, fpr = (np.append(0, np.cumsum(part)) for part in (positive, total - positive))
    return RocCurve(_ratio(fpr, fpr[-1]), _ratio(tpr, tpr[-1]), np.append(inf, -threshold))


@dataclass(frozen=True)
class McNemar:
    """Two models on the same cases: ``b`` only A has right, ``c`` only B; ``difference`` is accuracy A minus B."""

    b: int
    c: int
    p: float
    difference: Estimate


def mcnemar(y_true: ArrayLike, pred_a: ArrayLike, pred_b: ArrayLike) -> McNemar:
    """Exact two-sided test (McNemar, 1947) and the adjusted Wald interval of Bonett and Price (2012)."""
    truth, a, b = as_labels(y_true), as_labels(pred_a), as_labels(pred_b)
    same_length(truth, a, b)
    only_a, only_b = int(((a == truth) & (b != truth)).sum()), int(((a != truth) & (b == truth)).sum())
    n = len(truth)
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    p_a, p_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = float(ndtri(0.975)) * sqrt((p_a + p_b - (p_a - p_b) ** 2) / (n + 2))
    low, high = max(-1.0, p_a - p_b - half), min(1.0, p_a - p_b + half)
    return McNemar(only_a, only_b, float(p), Estimate((only_a - only_b) / n, low, high, n))


def psnr(x: np.ndarray, y: np.ndarray, data_range: float = 1.0) -> Floats:
    """Peak signal-to-noise ratio in dB of each pair of images: float (N, H, W) -> (N,); infinite where equal."""
    mse = np.concatenate([((a - b) ** 2).mean((1, 2)) for a, b in _pairs(x, y)])
    ratio = np.divide(data_range**2, mse, out=np.full_like(mse, inf), where=mse != 0)  # NaN stays NaN
    return 10 * np.log10(ratio)


def ssim(x: np.ndarray, y: np.ndarray, data_range: float = 1.0) -> Floats:
    """Structural similarity of each pair of images: float (N, H, W) -> (N,), at most 1.

    Wang et al. (2004): Gaussian window of 11 x 11, sigma 1.5, population covariance, the outer 5 pixels left out.
    scikit-image, not torchmetrics: that averages over a mirrored border too, which shifts the third decimal.
    """
    if min(x.shape[1:]) < 11:
        raise UsageError(f"SSIM of images of {x.shape[1:]} pixels: the window needs at least 11 x 11")
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = (pair for part in _pairs(x, y) for pair in zip(*part, strict=True))
    return np.array([structural_similarity(a, b, data_range=data_range, **window) for a, b in pairs])


def _pairs(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[Floats, Floats]]:
    if x.shape != y.shape or x.ndim != 3 or not len(x):
        raise UsageError(f"images of shapes {x.shape} and {y.shape}: expected two equal (N, H, W) with N >= 1")
    if not all(np.issubdtype(images.dtype, np.floating) for images in (x, y)):
        raise UsageError(f"images of {x.dtype} and {y.dtype}: expected floats; divide uint8 films by 255 first")
    for i in range(0, len(x), _CHUNK):
        yield x[i : i + _CHUNK].astype(np.float64), y[i : i + _CHUNK].astype(np.float64)


def as_labels(values: ArrayLike, n_classes: int | None = None) -> Ints:
    """Class indices (N,) as int64; a DataError names a wrong shape, type or range."""
    labels = np.asarray(values)
    if labels.ndim != 1 or (len(labels) and labels.dtype.kind not in "iub"):
        raise DataError(f"labels of shape {labels.shape} and type {labels.dtype}: expected class indices (N,)")
    if n_classes is not None and len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        raise DataError(f"labels from {labels.min()} to {labels.max()}: expected 0 to {n_classes - 1}")
    return labels.astype(np.int64)


def as_probabilities(y_true: ArrayLike, y_prob: ArrayLike) -> tuple[Ints, Floats]:
    """Labels (N,) and probabilities (N, C) that fit each other; a DataError says what does not."""
    prob = np.asarray(y_prob, dtype=np.float64)
    if prob.ndim != 2 or not len(prob):
        raise DataError(f"probabilities of shape {prob.shape}: expected (N, C) with at least one case")
    if not ((prob >= 0) & (prob <= 1)).all():
        raise DataError("probabilities outside [0, 1] or not a number: expected the softmax of the logits")
    truth = as_labels(y_true, prob.shape[1])
    same_length(truth, prob)
    return truth, prob


def same_length(*arrays: np.ndarray) -> None:
    """A DataError where arrays that describe the same cases differ in length."""
    if len({len(array) for array in arrays}) > 1:
        raise DataError(f"arrays of {[len(array) for array in arrays]} cases: expected one row per case in each")


def _ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    """Division where nothing by nothing is NaN, quietly."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), whole)
    return np.divide(part, whole, out=np.full(part.shape, nan), where=whole > 0)
