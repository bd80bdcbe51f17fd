"""Is this picture one of those that a classifier was trained for? A check in feature space, with cut-offs per class.

A softmax over film classes is as sure of a cat as of a film. Here three distances say how far a picture is from the
training films of a class: of its thumbnail from the space that their thumbnails span, of its place within that space,
and of the classifier's penultimate features. Each is divided by what validation films of the class reach; the largest
counts, and the nearest class decides. Above 1 the picture is refused.

Sources: Lee et al., NeurIPS 2018 (class-conditional Gaussians over features); Turk and Pentland, J. Cogn. Neurosci.
3:71, 1991 (distance from and within the space of principal components).
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 32  # of the thumbnail, pixels: the outline of a chest without its findings
COMPONENTS = 24  # of the thumbnails
FEATURES = 8  # directions of features: in more of them a network of few classes knows its training films by heart
SHRINKAGE = 0.1  # of each covariance towards its own diagonal, as a class may have few films
PART_QUANTILE, QUANTILE = 0.99, 0.98  # of validation films that each distance, and then their largest, still accepts
MARGIN = 1.25  # how many times the quantile of few validation films a cut-off may be, as the next may lie farther out
DARK = 1e-3  # spread of grey levels below which a thumbnail has no structure to compare

Array = np.ndarray


@dataclass(frozen=True)
class Look:
    """What the check sees of films.

    Attributes:
        features: (N, D) float32, the inputs of the classifier's last layers.
        thumbnails: (N, SIDE * SIDE) float32, of the films as the classifier sees them.
        detail: (N,) float32, standard deviation of what the thumbnail leaves out.
    """

    features: Array
    thumbnails: Array
    detail: Array

    @classmethod
    def join(cls, looks: Sequence["Look"]) -> "Look":
        """Several looks as one, in that order."""
        return cls(*(np.concatenate([getattr(look, field.name) for look in looks]) for field in fields(cls)))


class _Kept(threading.local):
    """What the hooks of a `Tap` caught in this thread; nothing of it is copied or stored with the network."""

    features: dict[int, Tensor]

    def __deepcopy__(self, memo: dict) -> "_Kept":
        return _Kept()


class Tap(nn.Module):
    """A classifier that also hands out what the check needs; threads may share it.

    Args:
        model: stays as it is but for a hook at each fully connected layer; the last one to run, of each member of an
            ensemble, has the penultimate features for its input.

    Shapes:
        input: films (B, 1, S, S) float, range [0, 1].
        output: logits (B, C), then the three fields of `Look`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._kept = _Kept()
        for k, member in enumerate(getattr(model, "members", [model])):
            for layer in member.modules():
                if isinstance(layer, nn.Linear):
                    layer.register_forward_pre_hook(partial(self._keep, k))

    def _keep(self, member: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._kept.features[member] = inputs[0].flatten(1)

    def forward(self, films: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self._kept.features = {}
        logits = self.model(films)
        features = torch.cat([*self._kept.features.values()], dim=1).float()
        small = F.adaptive_avg_pool2d(films.float(), SIDE)
        rest = films - F.interpolate(small, films.shape[-2:], mode="bilinear")
        return logits, features, small.flatten(1), rest.std(dim=(1, 2, 3))

    @torch.no_grad()
    def look(self, films: Tensor) -> Look:
        """What the check sees of films (B, 1, S, S)."""
        return Look(*(tensor.cpu().numpy() for tensor in self(films)[1:]))


@dataclass(frozen=True)
class Check:
    """The fitted check of one classifier; arrays only, so that it is stored as safetensors.

    Attributes:
        mean, basis: (P,), (K, P) of the training thumbnails' principal components.
        feature_mean, feature_basis: (D,), (J, D) the same of the features, which brings them to a common scale.
        places, place_spreads: (C, K + 2), (C, K + 2, K + 2) Gaussian of each class within that space.
        centres, spreads: (C, J), (C, J, J) Gaussian of each class over the features. Spreads are inverse covariances.
        scales: (C, 3) what the validation films of a class reach in each distance.
    """

    mean: Array
    basis: Array
    feature_mean: Array
    feature_basis: Array
    places: Array
    place_spreads: Array
    centres: Array
    spreads: Array
    scales: Array

    def __call__(self, look: Look) -> tuple[Array, Array]:
        """Score (N,) and nearest class (N,) of each film; a score above 1 means that it is none."""
        scores = (self._distances(look) / self.scales).max(axis=2)
        return scores.min(axis=1), scores.argmin(axis=1)

    def _distances(self, look: Look) -> Array:
        """(N, C, 3)."""
        place, outside = _place(look, self.mean, self.basis)
        features = (look.features - self.feature_mean) @ self.feature_basis.T
        within = _mahalanobis(place, self.places, self.place_spreads)
        deep = _mahalanobis(features, self.centres, self.spreads)
        return np.stack([np.broadcast_to(outside[:, None], within.shape), within, deep], axis=2)

    def tensors(self) -> dict[str, Tensor]:
        """As `runs.save_weights` stores them."""
        return {field.name: torch.from_numpy(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Check":
        """Undoes `tensors`."""
        return cls(**{name: value.numpy() for name, value in tensors.items()})


def fit(train: Look, train_labels: Array, val: Look, val_labels: Array, n_classes: int) -> Check:
    """The check of a classifier, from its training films; how far is too far, from validation films.

    Args:
        train_labels, val_labels: (N,) class indices. A class without validation films takes the widest cut-off of the
            others, and a class of fewer than two training films is never the nearest.
    """
    unit = _unit(train.thumbnails)
    mean = unit.mean(axis=0)
    basis = _components(unit - mean, COMPONENTS)
    feature_mean = train.features.mean(axis=0).astype(np.float64)
    feature_basis = _whitened(train.features - feature_mean, FEATURES)
    place, _ = _place(train, mean, basis)
    features = (train.features - feature_mean) @ feature_basis.T
    places = [_gaussian(place[train_labels == k]) for k in range(n_classes)]
    centres = [_gaussian(features[train_labels == k]) for k in range(n_classes)]
    gaussians = [np.stack(part) for pair in (places, centres) for part in zip(*pair, strict=True)]
    free = Check(mean, basis, feature_mean, feature_basis, *gaussians, np.ones((n_classes, 3)))
    distances, known = free._distances(val), np.bincount(train_labels, minlength=n_classes) > 1
    reached = [_quantile(distances[(val_labels == k) & known[k], k], PART_QUANTILE) for k in range(n_classes)]
    scales = _filled(reached)
    joint = (distances / scales).max(axis=2)
    reached = [_expected(joint[(val_labels == k) & known[k], k], QUANTILE) for k in range(n_classes)]
    scales *= _filled(reached)[:, None]
    return Check(mean, basis, feature_mean, feature_basis, *gaussians, scales)


def _unit(thumbnails: Array) -> Array:
    """Thumbnails without brightness and contrast: mean 0, length 1."""
    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True, dtype=np.float64)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), DARK * SIDE)


def _place(look: Look, mean: Array, basis: Array) -> tuple[Array, Array]:
    """Where films lie in the space of the thumbnails (N, K + 2), contrast and detail included, and how far outside."""
    unit = _unit(look.thumbnails) - mean
    within = unit @ basis.T
    outside = np.linalg.norm(unit - within @ basis, axis=1)
    contrast = look.thumbnails.std(axis=1, dtype=np.float64)
    both = np.log(np.stack([contrast, look.detail.astype(np.float64)], axis=1) + DARK)
    return np.concatenate([within, both], axis=1), outside


def _components(centred: Array, most: int) -> Array:
    """The first principal directions (K, P) of rows; at most a quarter as many as there are rows."""
    return np.linalg.svd(centred, full_matrices=False)[2][: max(1, min(most, len(centred) // 4))]


def _whitened(centred: Array, most: int) -> Array:
    """Principal directions (K, D), each divided by the spread along it."""
    directions = _components(centred.astype(np.float64), most)
    spread = (centred @ directions.T).std(axis=0)
    return directions / np.maximum(spread, spread.max() * 1e-3 + 1e-12)[:, None]


def _gaussian(rows: Array) -> tuple[Array, Array]:
    """Mean and inverse covariance; far from everything where there are no two rows."""
    if len(rows) < 2:
        return np.full(rows.shape[1], 1e6), np.eye(rows.shape[1])
    covariance = np.cov(rows.T).reshape(rows.shape[1], rows.shape[1])
    own = np.diag(np.diag(covariance))
    floor = 1e-6 * np.trace(own) / len(own) + 1e-12
    return rows.mean(axis=0), np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * own + floor * np.eye(len(own)))


def _mahalanobis(rows: Array, means: Array, inverses: Array) -> Array:
    """(N, C)."""
    apart = rows[:, None] - means
    return np.sqrt(np.einsum("ncd,cde,nce->nc", apart, inverses, apart))


def _quantile(values: Array, q: float) -> Array:
    return np.quantile(values, q, axis=0) if len(values) else np.full(values.shape[1:], np.nan)


def _expected(values: Array, q: float) -> Array:
    """The quantile that a next film keeps to, not only these (N,) distances.

    The largest of 35 films is passed by one new film in 36 and by more where the class is a mixed one. So it is the
    prediction quantile of a log-normal sample that counts, where it is larger, up to `MARGIN` times their own.
    """
    own = _quantile(values, q)
    if len(values) < 3:
        return own
    logs = np.log(np.maximum(values, 1e-9))
    next_one = stats.t.ppf(q, len(logs) - 1) * logs.std(ddof=1) * np.sqrt(1 + 1 / len(logs))
    return np.clip(np.exp(logs.mean() + next_one), own, MARGIN * own)


def _filled(per_class: list[Array]) -> Array:
    """One row per class; a class that has none of its own takes the largest of the others."""
    rows = np.stack(per_class)
    return np.where(np.isnan(rows), np.nanmax(rows, axis=0), rows)
