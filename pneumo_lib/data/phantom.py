"""Chest phantoms: synthetic radiographs drawn from geometry, so that everything runs without a download.

A film is made as X-rays make one: the depths of soft tissue, air and bone along the beam are added up, the beam falls
off exponentially with them (Beer-Lambert), scatter veils it, quantum noise disturbs it, and a sigmoid characteristic
curve (Hurter and Driffield) turns exposure into gray. A finding is fluid in place of air, which is why it also hides
the vessels and the heart border behind it (the silhouette sign), as on a real film.

Phantoms teach and test; they say nothing about patients.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pneumo_lib import workers
from pneumo_lib.data.anatomy import Anatomy, attenuation, branches, field, ramp
from pneumo_lib.data.cards import CLASSES
from pneumo_lib.errors import DataError, UsageError

Counts = Mapping[str, Mapping[str, int]]

NOISY_SPLIT = "noisy_test"
NOISY_SIGMA = 0.5
DEFAULT_COUNTS: Counts = {
    "train": {"COVID19": 90, "NORMAL": 210, "PNEUMONIA": 420},
    "test": {"COVID19": 30, "NORMAL": 60, "PNEUMONIA": 90},
    NOISY_SPLIT: {"COVID19": 12, "NORMAL": 12, "PNEUMONIA": 12},
}
RECORD = "phantom.json"
MANIFEST = "manifest.csv"
DRAWING = 1  # goes up when the same seed draws other films, so that folders of older code are drawn again
TWICE = 6  # every sixth patient comes for a second film
GLYPHS = {"L": "1000 1000 1000 1000 1111", "R": "1110 1001 1110 1010 1001"}


def _consolidation(a: Anatomy, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lobar pneumonia: fluid in part of one lobe, cut off at the fissure, with air left in the bronchi."""
    side, upper = (-1 if rng.random() < 0.5 else 1), rng.random() < 0.4
    fissure = a.apex + 0.66 + rng.normal(0, 0.03)
    high, low = (a.apex + 0.1, fissure) if upper else (fissure, a.base - 0.5 * a.dome)
    cy = rng.uniform(high + 0.1, low - 0.08)
    cx = side * rng.uniform(float(a.medial(cy)) + 0.12, float(a.lateral(cy)) - 0.12)
    rx, ry = rng.uniform(0.22, 0.38), rng.uniform(0.20, 0.34)
    blob = (1.1 - ((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2 + 0.3 * field(rng, x.size, 14)
    beyond = fissure + 0.15 * (np.abs(x) - 0.4) - y
    lobe = ramp(beyond if upper else -beyond, 0.04) * ramp(side * x, 0.05)
    heading = np.arctan2(cy - a.apex - 0.66, cx - side * 0.2) + rng.normal(0, 0.5, 7)
    roots = np.full(7, side * 0.2), a.apex + 0.66 + rng.normal(0, 0.05, 7), heading
    airways = branches(rng, x, y, np.stack(roots, axis=1), 0.7)
    return rng.uniform(0.75, 0.97) * ramp(blob, 0.9) * lobe * (1 - 0.55 * np.minimum(airways, 1))


def _ground_glass(a: Anatomy, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """COVID-19: hazy patches under the pleura of both lungs, mostly low; vessels still show through."""
    clear = np.ones((y.size, x.size), np.float32)
    for i in range(rng.integers(6, 11)):
        cy = a.base - rng.beta(1.4, 2.0) * 0.8 * (a.base - a.apex) - 0.05
        cx = (-1, 1)[i % 2] * (float(a.lateral(cy)) - rng.uniform(0.06, 0.26))
        rx, ry = rng.uniform(0.07, 0.15), rng.uniform(0.09, 0.19)
        clear *= 1 - rng.uniform(0.5, 0.8) * np.exp(-(((x - cx) / rx) ** 2)) * np.exp(-(((y - cy) / ry) ** 2))
    mottle = 1 + 0.30 * field(rng, x.size, 56) + 0.20 * field(rng, x.size, 20)
    return np.clip((1 - clear) * mottle, 0, 0.85)


FINDINGS = {"COVID19": _ground_glass, "NORMAL": None, "PNEUMONIA": _consolidation}


def _tilt(canvas: np.ndarray, angle: float, pad: int) -> np.ndarray:
    """Rotate by ``angle`` (radians) about the centre and cut the padding off."""
    c, s, mid = np.cos(angle), np.sin(angle), len(canvas) / 2
    matrix = (c, -s, mid - c * mid + s * mid, s, c, mid - s * mid - c * mid)
    turned = Image.fromarray(canvas).transform(canvas.shape, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(turned)[pad : len(canvas) - pad, pad : len(canvas) - pad]


def _expose(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Beam to gray in [0, 1]: heel effect, scatter, quantum noise, characteristic curve."""
    size = len(depth)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    heel = rng.normal(0, 0.15) * across + rng.normal(0, 0.12) * across[:, None]
    beam = np.exp(heel - np.maximum(depth, 0)) + rng.uniform(0.01, 0.05)
    # Fewer quanta are noisier; a pixel of a smaller film gathers those of several pixels of a larger one.
    noise = rng.uniform(0.007, 0.017) * size / 256 / np.sqrt(beam)
    exposure = np.log(beam) + noise * rng.standard_normal(beam.shape, dtype=np.float32)
    return 1 / (1 + np.exp(rng.uniform(1.5, 2.3) * (exposure + rng.uniform(1.25, 1.75))))


def _finish(film: np.ndarray, rng: np.random.Generator) -> None:
    """Collimator shadow and lead letter, drawn in place; both are independent of the class."""
    size = len(film)
    for edge in (film, film[::-1], film.T, film.T[::-1]):
        edge[: int(size * max(0, rng.normal(0, 0.025)))] = 0
    letter = rng.choice(list(GLYPHS))
    if rng.random() < 0.6:
        rows = np.array([[int(c) for c in row] for row in GLYPHS[letter].split()], bool)
        glyph = np.kron(rows, np.ones((max(size // 128, 1),) * 2, bool))
        top, left = (rng.uniform((0.04, 0.06), (0.12, 0.14)) * size).astype(int)
        left = left if letter == "R" else size - left - glyph.shape[1]
        film[top : top + glyph.shape[0], left : left + glyph.shape[1]][glyph] = 0.97


def draw(label: str, *, size: int = 256, rng: np.random.Generator, patient: int | None = None) -> np.ndarray:
    """Draw one frontal chest film.

    Patient, finding and film come from three streams of their own, so that equal generators draw the same patient on
    the same film whatever the class: only the finding differs.

    Args:
        label: one of ``CLASSES``.
        size: height and width in pixels, at least 32.
        rng: where everything comes from; two calls draw two films.
        patient: seed of the anatomy, at least 0; given twice, it makes two films of one patient.

    Returns:
        (size, size) uint8, bone white, air black.

    Raises:
        UsageError: an unknown class, or a size that cannot hold a chest.
    """
    _check(label, size)
    np.empty((64, size, size), np.float32)  # never touched: having freed it, glibc keeps small pages for the next film
    someone, *seeds = rng.integers(2**32, size=3)
    disease, film = (np.random.default_rng(seed) for seed in seeds)
    a = Anatomy.sample(int(someone) if patient is None else patient)
    breath, stoop = film.uniform(-0.06, 0.04), film.uniform(0.75, 1.25)  # leaning forwards makes the ribs look steeper
    a = replace(a, base=a.base + breath, slope=a.slope * stoop)
    pad = int(0.04 * size) + 1  # tilting turns the corners in from outside the film
    edge = (1 + 2 * pad / size) * film.uniform(0.78, 1.0)  # distance from the tube
    at = np.linspace(-edge, edge, size + 2 * pad, dtype=np.float32)
    x, y = at[None, :] + film.uniform(-0.09, 0.09), at[:, None] + film.uniform(-0.10, 0.10)
    mark = FINDINGS[label]
    depth = attenuation(a, mark(a, disease, x, y) if mark else 0.0, film.uniform(-1, 1), x, y)
    gray = _expose(_tilt(depth, film.uniform(-0.07, 0.07), pad), film)
    _finish(gray, film)
    return (gray * 255 + 0.5).astype(np.uint8)


def _check(label: str, size: int) -> None:
    if label not in FINDINGS:
        raise UsageError(f"There is no phantom of class {label!r}: expected one of {', '.join(CLASSES)}.")
    if size < 32:
        raise UsageError(f"A phantom of {size} x {size} pixels shows no chest: give a size of at least 32.")


@dataclass(frozen=True)
class _Order:
    """One film that a folder is to hold."""

    split: str
    label: str
    patient: int
    film: int

    @property
    def path(self) -> str:
        return f"{self.split}/{self.label}/phantom{self.patient:05d}_{self.film}.png"

    def row(self) -> dict[str, str]:
        source = {"source": "phantom", "source_name": Path(self.path).name}
        group = {"group": f"phantom{self.patient:05d}", "licence": "MIT"}
        return {"path": self.path, "split": self.split, "label": self.label} | source | group

    def draw(self, *, size: int, seed: int) -> Image.Image:
        rng = np.random.default_rng([seed, self.patient, self.film])
        person = int(np.random.default_rng([seed, self.patient]).integers(2**32))
        gray = draw(self.label, size=size, rng=rng, patient=person)
        if self.split == NOISY_SPLIT:
            noisy = gray / 255 + NOISY_SIGMA * rng.standard_normal(gray.shape)
            gray = (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)
        return Image.fromarray(gray)


def scaled_counts(share: float) -> Counts:
    """`DEFAULT_COUNTS` times a share, at least 4 films of each class in each split: those of 3 patients or more."""
    return {split: {c: max(4, round(n * share)) for c, n in row.items()} for split, row in DEFAULT_COUNTS.items()}


def write_folder(
    root: str | Path,
    *,
    counts: Counts = DEFAULT_COUNTS,
    size: int = 256,
    seed: int = 0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Path:
    """Write a data set of phantoms: ``ROOT/SPLIT/CLASS/phantomNNNNN_F.png``, 8-bit gray, and a manifest.csv.

    Every sixth patient has two films, always in the same split and class; the number in the name is the patient. The
    split ``noisy_test`` gets N(0, 0.5²) noise on [0, 1], clipped. The folder appears whole or not at all. One that
    holds exactly these films already is left alone; one that holds other phantoms and nothing else is drawn again.

    Args:
        root: folder to make.
        counts: films by split and class; each at least 1.
        size: height and width in pixels, at least 32.
        seed: at least 0; another seed draws other patients.
        progress: bar, called as ``progress(iterable, total=..., desc=...)``.

    Returns:
        The folder.

    Raises:
        UsageError: an unknown class, or a split, count, size or seed out of range.
        DataError: the folder holds something that is not a phantom.
    """
    root, orders = Path(root), list(_orders(counts, size, seed))
    record = {"counts": {split: dict(row) for split, row in counts.items()}, "size": size, "seed": seed}
    record["drawing"] = DRAWING
    if _finished(root, record, orders):
        return root
    half = root.with_name(f".{root.name}.{os.getpid()}.part")
    try:
        _write(half, orders, record, progress)
        _replace(root, half)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return root


def _orders(counts: Counts, size: int, seed: int) -> Iterator[_Order]:
    if not counts or seed < 0:
        raise UsageError(f"Phantoms need a split to draw and a seed of at least 0; found counts={counts}, seed={seed}.")
    patient = 0
    for split, row in counts.items():
        if not split or split != Path(split).name or split.startswith("."):
            raise UsageError(f"{split!r} cannot be the name of a split: it becomes a folder, such as train or test.")
        if not row:
            raise UsageError(
                f"The split {split!r} is to hold no films: give at least one class, or leave the split out."
            )
        for label, count in row.items():
            _check(label, size)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise UsageError(f"{count!r} films of {label} in {split}: expected a whole number of at least 1.")
            drawn = 0
            while drawn < count:
                films = min(2 if patient % TWICE == 0 else 1, count - drawn)
                yield from (_Order(split, label, patient, film) for film in range(1, films + 1))
                drawn, patient = drawn + films, patient + 1


def _write(half: Path, orders: list[_Order], record: dict[str, Any], progress: Callable | None) -> None:
    for place in {Path(half, order.path).parent for order in orders}:
        place.mkdir(parents=True, exist_ok=True)
    bar = functools.partial(progress, total=len(orders), desc="drawing phantoms") if progress else iter
    workers.run(functools.partial(_save, half, record), orders, brief=True, progress=bar)
    pd.DataFrame([order.row() for order in orders]).to_csv(half / MANIFEST, index=False)
    (half / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _save(half: Path, record: dict[str, Any], order: _Order) -> None:
    film = order.draw(size=record["size"], seed=record["seed"])
    film.save(half / order.path, compress_level=1)  # grain does not compress, so trying harder only takes longer


def _files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def _finished(root: Path, record: dict[str, Any], orders: list[_Order]) -> bool:
    """Whether the folder is what is asked for; one that may not be replaced either is an error."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(f"{root} is a file: phantoms need a folder of their own. Choose another name.")
    found = _files(root)
    same = RECORD in found and json.loads((root / RECORD).read_text(encoding="utf-8")) == record
    if same and {order.path for order in orders} | {MANIFEST} <= found:
        return True
    listed = set(pd.read_csv(root / MANIFEST)["path"]) if {MANIFEST, RECORD} <= found else set()
    foreign = sorted(found - listed - {MANIFEST, RECORD})
    if foreign:
        raise DataError(
            f"{root} holds {len(foreign)} files that are no phantoms, {foreign[0]} among them: they would be lost. "
            "Choose another folder for the phantoms or empty this one."
        )
    return False


def _replace(root: Path, half: Path) -> None:
    """Put the finished folder in its place; what stood there has been found to hold nothing but phantoms."""
    if root.exists():
        old = half.with_suffix(".old")
        os.replace(root, old)
        shutil.rmtree(old)
    os.replace(half, root)
