"""Which films stand in a set twice, and which patients stand in two splits.

Exact copies have the same bytes (SHA-256). Near copies are the same film re-encoded, resized, trimmed, brightened or
noised; mirrored and rotated ones or crops of more than about 5 % per side are not looked for. Any two chest films
correlate at 0.9, so raw thumbnails and 64-bit perceptual hashes say nothing; here a film is a thumbnail, band-passed
and divided by its local contrast. Nearest neighbours at 32 x 32 nominate candidates; these are registered (scale and
shift along both axes, Gauss-Newton as in Lucas and Kanade 1981), and the correlation of the overlap at 64 x 64 is
divided by the reliability of both films (Spearman 1904), so that a noised copy scores like a clean one.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from torch import Tensor

from pneumo_lib import runtime
from pneumo_lib.data import registration
from pneumo_lib.data.cache import ImageSet
from pneumo_lib.errors import DataError
from pneumo_lib.images import resize, to_uint8

FINE, COARSE = 64, 32
NEIGHBOURS = 4  # candidates per film and split: copies within one split must not hide those in another
ZOOMS = (1.0, 0.95, 1.05)  # a trimmed copy is its original, magnified
LIKELY, GATE = 0.5, 0.8  # correlation before, and coarsely after registration, below which no time is spent on a pair
CHUNK, BATCH = 512, 128  # films searched, pairs registered at a time: bounds the memory, and fits the processor cache
_smooth = partial(gaussian_filter, axes=(1, 2), mode="nearest")


@dataclass(frozen=True)
class Audit:
    """What was found, and how far it can be trusted.

    Attributes:
        pairs: one row per pair: path, split and class name of both, `kind` ("exact" or "near"), `similarity` (0 to 1).
        summary: one row per pair of splits: pairs by kind, films involved on each side, label conflicts, shared groups.
        controls: per control what is `expected`, its size n, the range of similarities, and the `rate` taken for pairs.
        threshold: similarity from which a pair counts as a near copy.
        scores: arrays to draw: `planted`, `other_class`, `same_patient`, each film's `best_match`; 0 is "nowhere near".
    """

    pairs: pd.DataFrame
    summary: pd.DataFrame
    controls: pd.DataFrame
    threshold: float
    scores: Mapping[str, np.ndarray]

    def involved(self, split: str, others: str | Iterable[str]) -> frozenset[str]:
        """Paths of the films in ``split`` of which one of the ``others`` holds an exact or near copy."""
        names, p = {others} if isinstance(others, str) else set(others), self.pairs
        forward = p.path_a[(p.split_a == split) & p.split_b.isin(names)]
        return frozenset(forward) | frozenset(p.path_b[(p.split_b == split) & p.split_a.isin(names)])

    def write(self, folder: str | Path) -> None:
        """Write audit_pairs.csv, audit_summary.csv and audit_controls.csv."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in ("pairs", "summary", "controls"):
            getattr(self, name).to_csv(Path(folder) / f"audit_{name}.csv", index=False, float_format="%.4f")


def read_pairs(path: str | Path) -> pd.DataFrame:
    """`Audit.pairs` from the file that `Audit.write` makes, `audit_pairs.csv`; a DataError where it is none."""
    try:
        pairs = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table of pairs: {error}.") from error
    if missing := sorted({"path_a", "split_a", "path_b", "split_b"} - {*pairs}):
        raise DataError(f"{path} is no table of pairs: it has no column {', '.join(missing)}.")
    return pairs


def audit(image_set: ImageSet, *, hashes: bool = True, planted: int = 60, seed: int = 0) -> Audit:
    """Look for copies and shared patients within and between the splits of ``image_set``.

    Args:
        image_set: the films; their files are read for the hashes only.
        hashes: compare file bytes; without, exact copies count as near ones.
        planted: films that are altered in every way of ``ALTERATIONS`` to see whether they are found.
        seed: draws those films and their noise.

    Raises:
        DataError: fewer than two films, or a file that has gone.
    """
    images, table = image_set.images, image_set.table.reset_index(drop=True)
    if len(table) < 2:
        raise DataError(f"The audit of {image_set.root} got {len(table)} films; to compare, it needs at least two.")
    runtime.keep_memory()
    rng, rows, films = np.random.default_rng(seed), np.arange(len(table)), _describe(images)
    scored = _score(films, films, _candidates(films, films, table.split.to_numpy(), differ=rows))
    copies = _planted(image_set, films, rng.permutation(rows)[:planted], rng)
    scores = {"planted": copies.similarity.to_numpy()} | _scores(films, scored, table)
    threshold = _threshold(scores["planted"], scores["best_match"])
    exact = _exact(image_set.root, table) if hashes else set()
    near = {(row.a, row.b): row.similarity for row in scored[scored.similarity >= threshold].itertuples()}
    pairs = _pair_table(near | dict.fromkeys(exact, 1.0), exact, table, image_set.classes)
    return Audit(pairs, _summary(pairs, table), _control_table(copies, scores, threshold), threshold, scores)


@dataclass(frozen=True)
class _Films:
    """N films: coarse (N, 32, 32); in two bands fine (N, 2, 64, 64) and reliability (N, 2) in (0, 1]; float32."""

    coarse: np.ndarray
    fine: np.ndarray
    reliability: np.ndarray


def _describe(images: np.ndarray) -> _Films:
    parts = []
    for start in range(0, len(images), CHUNK):
        film = np.stack([resize(image / np.float32(255), 4 * FINE) for image in images[start : start + CHUNK]])
        film = film.reshape(len(film), FINE, 4, FINE, 4).mean((2, 4))  # keeps noise white; a triangle would not
        fine, reliability = zip(_band(film, 1.0, 3.0), _band(film, 0.7, 2.0), strict=True)
        coarse, _ = _band(film.reshape(len(film), COARSE, 2, COARSE, 2).mean((2, 4)), 0.7, 3.0)
        parts.append((coarse, np.stack(fine, 1), np.stack(reliability, 1)))
    return _Films(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _band(x: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Band-pass of (N, n, n) films over its local contrast, and the share of its power that is not noise, (N,)."""
    # Noise is read off the diagonal detail, where films show almost nothing; the gain of a dot is that of white noise.
    band = _smooth(x, low) - _smooth(x, high)
    power = _smooth(band**2, 4)
    dot = np.pad(np.ones((1, 1, 1)), ((0, 0), (16, 16), (16, 16)))
    gain = ((_smooth(dot, low) - _smooth(dot, high)) ** 2).sum()
    diagonal = np.pad(np.diff(np.diff(x, axis=1), axis=2) / 2, ((0, 0), (0, 1), (0, 1)))
    reliability = np.clip(1 - gain * _smooth(diagonal**2, 4) / (power + 1e-6), 0.1, 1)
    return band / np.sqrt(power + 1e-4), reliability.mean((1, 2), dtype=np.float32)


def _vectors(coarse: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit vectors of the inner coarse films, without ``mean``, which is what all chests have in common."""
    flat = (coarse - mean)[:, 2:-2, 2:-2].reshape(len(coarse), -1)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _candidates(query: _Films, films: _Films, part: np.ndarray, *, differ: np.ndarray | None = None) -> np.ndarray:
    """(M, 2) rows of a query and of a nearest film in each ``part``; ``differ`` names what they must not share."""
    mean, found = films.coarse.mean(0), [np.empty((0, 2), int)]
    targets = _vectors(films.coarse, mean).T
    poses = [registration.REST * torch.tensor([zoom, 1, zoom, 1]) for zoom in ZOOMS]
    for rows in (slice(start, start + CHUNK) for start in range(0, len(query.coarse), CHUNK)):
        posed = [registration.warp(torch.from_numpy(query.coarse[rows]), pose)[0] for pose in poses]
        near = np.max([_vectors(coarse.numpy(), mean) @ targets for coarse in posed], axis=0)
        if differ is not None:
            near[differ[rows, None] == differ] = -1
        for members in (np.flatnonzero(part == name) for name in np.unique(part)):
            top = np.argpartition(-near[:, members], min(NEIGHBOURS, len(members)) - 1, axis=1)[:, :NEIGHBOURS]
            row, column = np.nonzero(np.take_along_axis(near[:, members], top, 1) >= LIKELY)
            found.append(np.stack([row + rows.start, members[top[row, column]]], 1))
    return np.concatenate(found)


def _score(query: _Films, films: _Films, pairs: np.ndarray) -> pd.DataFrame:
    """Similarity of the pairs, columns a, b and similarity; within one set (a, b) and (b, a) are one pair."""
    pairs = np.unique(np.sort(pairs, axis=1), axis=0) if query is films else pairs

    scores = np.zeros(len(pairs), np.float32)
    for batch in (slice(start, start + BATCH) for start in range(0, len(pairs), BATCH)):
        a, b = pairs[batch].T
        fixed, moving = torch.from_numpy(query.coarse[a]), torch.from_numpy(films.coarse[b])
        pose, agreement = registration.register(fixed, moving, registration.REST, steps=5)
        keep = np.flatnonzero(agreement.numpy() >= GATE)
        if len(keep):
            scores[batch][keep] = _similarity(query, films, pairs[batch][keep], pose[keep])
    return pd.DataFrame({"a": pairs[:, 0], "b": pairs[:, 1], "similarity": scores})


def _similarity(query: _Films, films: _Films, pairs: np.ndarray, pose: Tensor) -> np.ndarray:
    """Correlation freed of noise. The finer band tells more; its weight falls steeply where noise hides it."""
    (a, b), larger = pairs.T, pose * torch.tensor([1, FINE // COARSE, 1, FINE // COARSE])
    fixed, moving = torch.from_numpy(query.fine[a]), torch.from_numpy(films.fine[b])
    pose, agreement = registration.register(fixed[:, 0], moving[:, 0], larger, steps=4)
    detail = registration.correlation(fixed[:, 1], *registration.warp(moving[:, 1], pose))
    common = query.reliability[a] * films.reliability[b]
    plain, detail = np.minimum(1, np.stack([agreement, detail]) / np.sqrt(common.T))
    return plain + (detail - plain) * common[:, 1] ** 10


def _sent(film: np.ndarray, rng: np.random.Generator, *, sigma: float = 0.0, quality: int = 75) -> np.ndarray:
    """Clipped noise and JPEG, in this order, as published noisy sets were made (at 512 pixels)."""
    file, noise = io.BytesIO(), rng.normal(0, sigma, film.shape).astype(np.float32)
    Image.fromarray(to_uint8(film + noise)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


# What happens to films between two publications: (S, S) in [0, 1] and a generator to a film of any size.
ALTERATIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "JPEG quality 40": lambda film, rng: _sent(film, rng, quality=40),
    "half size": lambda film, rng: resize(film, len(film) // 2),
    "1.5 times the size": lambda film, rng: resize(film, len(film) * 3 // 2),
    "2 % off each side": lambda film, rng: film[(k := round(0.02 * len(film))) : -k or None, k : -k or None],
    "2 % off one side": lambda film, rng: film[:, round(0.02 * len(film)) :],
    "brightness and contrast": lambda film, rng: np.clip(1.2 * film - 0.1, 0, 1),
    "gamma 0.7": lambda film, rng: film**0.7,
    "noise 0.1": lambda film, rng: _sent(resize(film, 512), rng, sigma=0.1),
    "noise 0.5": lambda film, rng: _sent(resize(film, 512), rng, sigma=0.5),
}


def _planted(image_set: ImageSet, films: _Films, rows: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Similarity of each altered copy with its original, 0 where the search did not even nominate that."""
    size, split, found = image_set.images.shape[-1], image_set.table.split.to_numpy(), []
    for name, alter in ALTERATIONS.items():
        altered = (resize(alter(image_set.images[row] / np.float32(255), rng), size) for row in rows)
        copies = _describe(np.stack([to_uint8(film) for film in altered]))
        pairs, similarity = _candidates(copies, films, split), np.zeros(len(rows), np.float32)
        pairs = pairs[rows[pairs[:, 0]] == pairs[:, 1]]
        similarity[pairs[:, 0]] = _score(copies, films, pairs).similarity
        found.append(pd.DataFrame({"control": f"planted: {name}", "similarity": similarity}))
    return pd.concat(found, ignore_index=True)


def _scores(films: _Films, scored: pd.DataFrame, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Similarities of films that are not known to be copies; another class is the nearest thing to surely different."""
    group, similarity = table.group.to_numpy(object), scored.similarity.to_numpy()
    best, pairs = np.zeros(len(table), np.float32), scored[["a", "b"]].to_numpy()
    np.maximum.at(best, pairs.ravel(), similarity.repeat(2))
    others = _candidates(films, films, np.zeros(len(table)), differ=table.label.to_numpy())[::4]
    same = similarity[(group[scored.a] == group[scored.b]) & (group[scored.a] != "")]
    return {"other_class": _score(films, films, others).similarity.to_numpy(), "same_patient": same, "best_match": best}


def _threshold(planted: np.ndarray, best: np.ndarray) -> float:
    """What 1 in 100 such sets without copies would pass; best matches are normal after Fisher's transform."""
    bound, best = float(np.quantile(planted, 0.02)), best[best > 0]  # bound: for sets of which a quarter are copies
    if len(best) < 20:
        return bound
    middle, upper = np.arctanh(np.minimum(np.quantile(best, [0.5, 0.75]), 0.9999))
    return min(bound, float(np.tanh(middle + (upper - middle) / norm.ppf(0.75) * norm.isf(0.01 / len(best)))))


def _control_table(planted: pd.DataFrame, scores: Mapping[str, np.ndarray], threshold: float) -> pd.DataFrame:
    samples = [(name, "pair", s.to_numpy()) for name, s in planted.groupby("control", sort=False).similarity]
    samples += [("nearest films of another class", "no pair", scores["other_class"])]
    samples += [("other films of the same patient", "either", scores["same_patient"])]
    rows = [(*name, len(s), s.min(), np.median(s), s.max(), (s >= threshold).mean()) for *name, s in samples if len(s)]
    return pd.DataFrame(rows, columns=["control", "expected", "n", "minimum", "median", "maximum", "rate"])


def _exact(root: Path, table: pd.DataFrame) -> set[tuple[int, int]]:
    """Pairs of rows whose files have equal bytes; only files of equal size are read."""
    digests: dict[bytes, list[int]] = {}
    try:
        for row in np.flatnonzero(table.duplicated("bytes", keep=False)):
            data = (root / table.path[row]).read_bytes()
            digests.setdefault(hashlib.sha256(data).digest(), []).append(int(row))
    except OSError as error:
        raise DataError(f"The audit cannot read a film of {root}: {error}. Scan the folder again.") from error
    return {pair for same in digests.values() for pair in combinations(same, 2)}


def _pair_table(found: Mapping, exact: set, table: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for pair, similarity in found.items():
        a, b = sorted((table.loc[row] for row in pair), key=lambda film: film.split, reverse=True)
        sides = [value for film in (a, b) for value in (film.path, film.split, classes[film.label])]
        rows.append((*sides, "exact" if pair in exact else "near", similarity))
    names = ["path_a", "split_a", "label_a", "path_b", "split_b", "label_b", "kind", "similarity"]
    return pd.DataFrame(rows, columns=names).sort_values(names[1::3], ascending=False, ignore_index=True)


def _summary(pairs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    groups, rows = {split: set(part.group) - {""} for split, part in table.groupby("split")}, []
    for a, b in combinations_with_replacement(sorted(groups, reverse=True), 2):
        p = pairs[(pairs.split_a == a) & (pairs.split_b == b)]
        left, right = (set(p.path_a), set(p.path_b)) if a != b else (set(p.path_a) | set(p.path_b),) * 2
        counts = [sum(p.kind == "exact"), sum(p.kind == "near"), len(left), len(right), sum(p.label_a != p.label_b)]
        rows.append((a, b, *counts, len(groups[a] & groups[b]) if a != b else 0))
    names = ["split_a", "split_b", "exact", "near", "films_a", "films_b", "label_conflicts", "groups_shared"]
    return pd.DataFrame(rows, columns=names)
