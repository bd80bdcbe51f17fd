"""The chest that a phantom film shows: one patient's anatomy, part by part, as depths along the beam.

Coordinates: x to the right of the film (the patient's left), y downwards, the film spans about [-1, 1] in both. ``x``
is a row (1, S) and ``y`` a column (S, 1) of float32, so that what depends on one of them only costs next to nothing.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class Anatomy:
    """One phantom patient: lengths in half film widths, depths in units of attenuation.

    Nothing here depends on the class, so no classifier can learn the patient instead of the finding.

    Attributes:
        seed: where the patient comes from; the small irregularities of bones and vessels are drawn from it too.
        width: midline to lateral lung border.
        apex: y of the lung tops.
        base: y of the costophrenic angles.
        dome: height of the diaphragm above these angles.
        peak: where the domes are highest between midline (0) and side (1).
        liver: how much higher the right dome stands.
        tissue: depth of the trunk.
        crest: where the lung tops stand between midline (0) and side (1).
        arch: how boxy the lungs are; 2 is an ellipse.
        wall: depth of the chest wall in front of everything.
        rind: distance over which the lungs thin out towards the ribs.
        breast: depth of the breasts.
        bone: mineral content, 1 is usual.
        heart: size, 1 is usual.
        aorta: how far the aortic arch stands out.
        slope: how far the ribs fall from spine to side.
        bend: sideways curve of the spine.
        vessels: how marked the lung vessels are, 1 is usual.
        bubble: depth of the gas in the stomach.
    """

    seed: int
    width: float
    apex: float
    base: float
    dome: float
    peak: float
    liver: float
    tissue: float
    crest: float
    arch: float
    wall: float
    rind: float
    breast: float
    bone: float
    heart: float
    aorta: float
    slope: float
    bend: float
    vessels: float
    bubble: float

    @classmethod
    def sample(cls, seed: int) -> "Anatomy":
        """Draw the patient that belongs to a seed: the same seed is the same patient."""
        rng = np.random.default_rng(seed)
        female = rng.random() < 0.5
        return cls(
            seed=seed,
            width=rng.uniform(0.68, 0.86),
            apex=rng.uniform(-0.86, -0.68),
            base=rng.uniform(0.52, 0.76),
            dome=rng.uniform(0.14, 0.30),
            peak=rng.uniform(0.36, 0.54),
            liver=rng.uniform(-0.01, 0.07),
            tissue=rng.uniform(2.1, 2.9),
            crest=rng.uniform(0.36, 0.45),
            arch=rng.uniform(2.0, 3.0),
            wall=rng.uniform(0.06, 0.16),
            rind=rng.uniform(0.10, 0.40),
            breast=rng.uniform(0.10, 0.45) if female else rng.uniform(0.0, 0.12),
            bone=rng.uniform(0.75, 1.3),
            heart=rng.uniform(0.82, 1.22),
            aorta=rng.uniform(0.05, 0.10),
            slope=rng.uniform(0.16, 0.34),
            bend=rng.uniform(-0.05, 0.05),
            vessels=rng.uniform(0.5, 1.2),
            bubble=rng.uniform(0.0, 0.6),
        )

    def lateral(self, y: np.ndarray | float) -> np.ndarray:
        """Distance of the lateral lung border from the midline at height y: an arch that closes at the apex."""
        return self._top + (self.width - self._top) * self._arch(y)

    def medial(self, y: np.ndarray | float) -> np.ndarray:
        """Distance of the medial lung border from the midline at height y."""
        return self._top - (self._top - 0.04) * self._arch(y)

    def floor(self, x: np.ndarray) -> np.ndarray:
        """Height of the diaphragm at x; the right dome stands higher because of the liver."""
        dome = self.dome * (1 - ((np.abs(x) - self.peak * self.width) / (0.58 * self.width)) ** 2)
        return self.base - np.maximum(dome, -0.05) - np.where(x < 0, np.float32(self.liver), 0)

    @property
    def _top(self) -> float:
        return self.crest * self.width

    def _arch(self, y: np.ndarray | float) -> np.ndarray:
        rise = np.clip((self.base - y) / (self.base - self.apex), 0, 1)
        return (1 - rise**self.arch) ** (1 / self.arch)


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 deeper than ``width`` inside, smooth between (a rounded edge seen edge-on)."""
    t = np.clip(distance / width, 0, 1)
    return (3 - 2 * t) * np.square(t, out=t)


def _profile(at: np.ndarray, *points: tuple[float, float]) -> np.ndarray:
    """Straight lines between (position, value) points."""
    return np.interp(at, *zip(*points, strict=True)).astype(np.float32)


def _ball(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Relative depth of an ellipsoid along the beam: 1 at its centre, 0 outside."""
    q = (1 - np.square((x - centre[0]) / radii[0])) - np.square((y - centre[1]) / radii[1])
    return np.sqrt(np.maximum(q, 0, out=q), out=q)


@lru_cache(maxsize=32)
def _splines(size: int, cells: int) -> np.ndarray:
    """(size, cells) bell weights that turn a coarse grid into a smooth film-sized one."""
    at = np.linspace(0, cells - 1, size)[:, None] - np.arange(cells)
    bells = np.exp(-(at**2) / 0.7)
    return (bells / np.sqrt((bells**2).sum(axis=1, keepdims=True))).astype(np.float32)


def field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (size, size) float32 of unit variance; ``cells`` bumps fit across the film."""
    bells = _splines(size, cells)
    return bells @ rng.standard_normal((cells, cells), dtype=np.float32) @ bells.T


def _body(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Depth of neck, shoulders, trunk and breasts."""
    rng = np.random.default_rng([a.seed, 7])
    top, trunk = a.apex + rng.normal(0, 0.05), a.width + rng.uniform(0.10, 0.24)
    above = [(-1.4, 0.30), (top - 0.24, 0.34), (top - 0.1, 0.62), (top + 0.08, 1.16), (top + 0.3, 1.2)]
    below = [(-0.1, trunk), (0.3, trunk - 0.04), (1.4, trunk + 0.06)]
    outline = np.array(above + below) + rng.normal(0, (0.02, 0.04), (8, 2))
    depth = np.sqrt(np.sqrt(np.maximum(1 - np.square(np.square(x / _profile(y, *outline))), 0)))
    breasts = sum(_ball(x, y, (side * 0.52 * a.width, 0.30 + 0.3 * a.breast), (0.36, 0.3)) for side in (-1, 1))
    return a.tissue * depth * _profile(y, (-1.2, 0.8), (-0.5, 0.92), (0.2, 1.0), (1.0, 1.08)) + a.breast * breasts


def _heart(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of the lung's place that heart, great vessels and mediastinum take, in [0, 1]: two borders along y."""
    low = a.base - 0.75 * a.dome
    rng = np.random.default_rng([a.seed, 6])
    arch, trunk, spread = rng.uniform((0.34, 0.52, 0.22), (0.46, 0.64, 0.34)).tolist()
    bumps = ((a.apex + arch, 0.09, a.aorta), (a.apex + trunk, 0.10, 0.05), (low - 0.05, spread, 0.36 * a.heart))
    left = 0.13 + sum(reach * np.exp(-(((y - at) / wide) ** 2)) for at, wide, reach in bumps)
    right = 0.12 + 0.13 * a.heart * np.exp(-(((y - low + 0.14) / 0.25) ** 2))
    return ramp(left - x, 0.07) * ramp(right + x, 0.06)


def _air(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Depth of aerated lung, relative to its greatest depth; thin behind the heart and below the domes."""
    sides = np.sqrt(ramp(a.lateral(y) - np.abs(x), a.rind)) * ramp(np.abs(x) - a.medial(y), 0.06)
    above = 0.86 * ramp(a.floor(x) - y, 0.035) + 0.14 * ramp(a.base + 0.06 - y, 0.25)
    return sides * above * _profile(y, (a.apex, 0.75), (a.apex + 0.5, 1.0), (a.base, 0.92))


def _arc(film: np.ndarray, y: np.ndarray, line: np.ndarray, half: np.ndarray, weight: np.ndarray) -> None:
    """Add one bone to the film: a tube with a dense shell about y = line(x), drawn only on the rows it crosses."""
    shown = weight > 0
    if not shown.any():
        return
    top, bottom = np.searchsorted(y[:, 0], [(line - half)[shown].min(), (line + half)[shown].max()])
    q = 1 - np.square((y[top:bottom] - line) / half)
    tube = np.sqrt(np.maximum(q, 0))
    np.subtract(q, 0.35, out=q)
    film[top:bottom] += weight * (tube - 0.75 * np.sqrt(np.maximum(q, 0, out=q), out=q))


def _ribs(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Ten pairs of ribs: a rib is an ellipse, its upper half the posterior arc, its lower half the anterior one."""
    rng = np.random.default_rng([a.seed, 1])
    film = np.zeros((y.size, x.size), np.float32)
    pitch = (a.base - a.apex) / rng.uniform(8.2, 10.4)
    first, thick, front = rng.uniform((-0.5, 0.024, 0.95), (0.2, 0.034, 1.6)).tolist()
    for i in range(10):
        start = a.apex + (i + first) * pitch + rng.normal(0, 0.016)
        drop = a.slope * (0.55 + 0.07 * i)
        reach = float(a.lateral(min(start + drop, a.base))) + 0.035
        s = np.minimum(np.abs(x) / reach, 1)
        round_ = np.sqrt(np.maximum(1 - s * s, 1e-4))
        uneven = rng.normal(0, 0.018) * np.sign(x)
        steep = np.minimum(np.sqrt(1 + (drop * s / (reach * round_)) ** 2), 4)
        half = thick * steep * rng.uniform(0.9, 1.1)
        inside = ramp(reach + 0.01 - np.abs(x), 0.03)
        _arc(film, y, start + drop * (1 - round_) + uneven, half, inside * ramp(np.abs(x) - 0.06, 0.06))
        if i < 7:
            cartilage = ramp(np.abs(x) - 0.36 * a.width - 0.02 * i, 0.12)
            _arc(film, y, start + drop * (1 + front * round_) + uneven, half * 1.1, 0.55 * inside * cartilage)
    return film


def _girdle(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Clavicles, edges of the shoulder blades and heads of the upper arms."""
    film = np.zeros((y.size, x.size), np.float32)
    rng = np.random.default_rng([a.seed, 2])
    s = np.abs(x)
    line = a.apex + 0.20 + rng.normal(0, 0.03) - (0.24 + rng.normal(0, 0.05)) * s**1.3 + 0.02 * np.sin(7 * s)
    line = line + rng.normal(0, 0.02) * np.sign(x)
    _arc(film, y, line, 0.035 + 0.01 * np.cos(8 * s), 1.25 * ramp(s - 0.05, 0.05) * (s < 0.98))
    border = a.width * 0.95 + 0.18 * (y - a.apex) ** 2 - 0.02
    blade = 0.25 * ramp(s - border, 0.03) * ramp(y - a.apex - 0.05, 0.15) * ramp(a.apex + 0.85 - y, 0.3)
    arms = sum(_ball(x, y, (side * 1.06, a.apex + 0.20), (0.15, 0.17)) for side in (-1, 1))
    return film + blade + 0.8 * arms


def _spine(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Vertebral bodies with their discs and pedicles; the windpipe is taken away in front of them."""
    rng = np.random.default_rng([a.seed, 5])
    middle = a.bend * np.sin(2.2 * (y + rng.uniform(-0.2, 0.8)))
    phase = rng.uniform(0, 6) + 2 * np.pi * rng.uniform(8.2, 10.4) / (a.base - a.apex) * y
    off = x - middle
    bodies = ramp(0.12 - np.abs(off), 0.03) * (0.8 + 0.2 * np.tanh(3 * np.cos(phase)))
    pedicles = np.exp(-(((np.abs(off) - 0.075) / 0.02) ** 2)) * np.exp(3 * (np.cos(phase) - 1))
    fork = a.apex + rng.uniform(0.54, 0.70)
    bronchi = np.exp(-(((np.abs(off) - np.maximum(y - fork, 0) * 0.9) / 0.030) ** 2)) * ramp(fork + 0.18 - y, 0.15)
    return 0.75 * bodies + 0.3 * pedicles - 0.55 * bronchi


def branches(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, roots: np.ndarray, reach: float) -> np.ndarray:
    """Tapering curves of random length up to ``reach``: vessels or airways.

    Args:
        rng: draws their lengths and bends.
        x: (1, S) float32.
        y: (S, 1) float32.
        roots: (n, 3): x, y and heading in radians of each beginning.
        reach: greatest length.

    Returns:
        (S, S) float32, about 1 where a curve begins.
    """
    size, step = x.size, x[0, 1] - x[0, 0]
    t = np.linspace(0, 1, int(0.35 * size) + 8)[:, None]
    heading = roots[:, 2] + rng.normal(0, 0.5, len(roots)) * t
    length = reach * rng.uniform(0.4, 1.0, len(roots))
    px = roots[:, 0] + length * np.cumsum(np.cos(heading), axis=0) / len(t)
    py = roots[:, 1] + length * np.cumsum(np.sin(heading), axis=0) / len(t)
    column, row = (np.clip(at / step, 0, size - 1).astype(int) for at in (px - x[0, 0], py - y[0, 0]))
    ink = np.broadcast_to((1 - t) ** 0.8, px.shape).ravel()
    dots = np.bincount((row * size + column).ravel(), ink, size * size).reshape(size, size)
    return gaussian_filter(dots.astype(np.float32), size / 230, truncate=2) * (size / 256)


def _vessels(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lung vessels that fan out from both hila."""
    rng = np.random.default_rng([a.seed, 3])
    side = np.where(np.arange(44) % 2, 1, -1)
    fan = rng.uniform(-1.35, 1.5, 44)
    roots = (
        side * rng.uniform(0.14, 0.30, 44),
        a.apex + rng.uniform(0.6, 0.76) + rng.normal(0, 0.09, 44),
        np.where(side > 0, fan, np.pi - fan),
    )
    return branches(rng, x, y, np.stack(roots, axis=1), 0.62 * a.width)


def attenuation(a: Anatomy, finding: np.ndarray | float, turn: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Add up everything along the beam.

    Args:
        a: the patient.
        finding: (S, S) share of the lung's air that fluid replaces, in [0, 1]; 0 where the lungs are clear.
        turn: rotation about the long axis in [-1, 1]: it moves the heart and makes one lung lighter.
        x: (1, S) float32.
        y: (S, 1) float32.

    Returns:
        (S, S) float32 attenuation: the logarithm of the beam's loss; 0 beside the patient.
    """
    rng = np.random.default_rng([a.seed, 4])
    mottle = 0.14 * field(rng, x.size, 5) + 0.05 * field(rng, x.size, 48)
    air = _air(a, x, y) * (1 - 0.88 * _heart(a, x - 0.05 * turn, y)) * (1 - finding)
    lung = (1 + 0.15 * turn * np.tanh(4 * x)) * air * (1.62 - mottle - 0.16 * a.vessels * _vessels(a, x, y))
    gas = a.bubble * _ball(x, y, (0.42 * a.width, a.base - 0.55 * a.dome + 0.1), (0.17, 0.09))
    bones = 0.55 * _ribs(a, x, y) + 0.40 * _girdle(a, x, y) + 0.45 * _spine(a, x - 0.03 * turn, y)
    body = _body(a, x, y)
    inside = np.minimum(body, 1)
    return body + inside * (a.wall + a.bone * bones) - lung - gas
