"""One film laid over another: scale and shift along both axes (Gauss-Newton, as in Lucas and Kanade 1981)."""

import numpy as np

MARGIN = 16  # one part in 16 of each side is not compared: trimming changes the filtered films there
REST = np.float32([[1, 0, 1, 0]])  # a pose: scale x, shift x, scale y, shift y about the centre, in pixels


def register(fixed: np.ndarray, moving: np.ndarray, pose: np.ndarray, *, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit the pose of each moving film; return the poses (M, 4) and the correlations of the overlap (M,).

    Args:
        fixed, moving: (M, n, n) float32.
        pose: (M, 4) or (1, 4) to begin with.
        steps: of Gauss-Newton.
    """
    for _ in range(steps):
        pose = _gauss_newton(fixed, moving, pose)
    return pose, correlation(fixed, *warp(moving, pose))


def warp(films: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, n, n) films resampled bilinearly, and a mask of what may be compared."""
    n, middle = films.shape[-1], np.float32((films.shape[-1] - 1) / 2)
    pixel, reach = np.arange(n, dtype=np.float32), middle - n // MARGIN
    at = pose[:, ::2, None] * (pixel - middle) + pose[:, 1::2, None] + middle
    weights = np.maximum(0, 1 - np.abs(at[..., None] - pixel))
    inside = ((np.abs(at - middle) <= reach) & (np.abs(pixel - middle) <= reach)).astype(np.float32)
    return weights[:, 1] @ films @ weights[:, 0].transpose(0, 2, 1), inside[:, 1, :, None] * inside[:, 0, None, :]


def _gauss_newton(fixed: np.ndarray, moving: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """One step of least squares in pose, gain and offset, kept within 15 % of scale and a tenth of the film."""
    n = fixed.shape[-1]
    centred = (np.arange(n, dtype=np.float32) * 2 - (n - 1)) / n
    warped, inside = warp(moving, pose)
    dy, dx = np.gradient(warped, axis=(1, 2))
    columns = np.stack([dx * centred, dx, dy * centred[:, None], dy, warped, np.ones_like(warped)], 1)
    jacobian = (columns * inside[:, None]).reshape(len(fixed), 6, -1)
    normal = jacobian @ jacobian.transpose(0, 2, 1) + 1e-3 * n * np.eye(6, dtype=np.float32)
    fit = np.linalg.solve(normal, jacobian @ (fixed * inside).reshape(len(fixed), -1, 1))[..., 0]
    move = np.clip(fit[:, :4] / np.maximum(fit[:, 4:5], 0.3), -1.5, 1.5) * np.float32([2 / n, 1, 2 / n, 1])
    return REST + np.clip(pose + move - REST, *np.outer([-1, 1], np.float32([0.15, n / 10, 0.15, n / 10])))


def correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(M,) correlations of (M, n, n) films where the mask says so."""
    a, b = ((x - np.mean(x, (1, 2), where=inside > 0, keepdims=True)) * inside for x in (a, b))
    return (a * b).sum((1, 2)) / np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)) + 1e-9)
