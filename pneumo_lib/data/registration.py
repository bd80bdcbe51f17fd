"""One film laid over another: scale and shift along both axes (Gauss-Newton, as in Lucas and Kanade 1981)."""

import torch
from torch import Tensor

MARGIN = 16  # one part in 16 of each side is not compared: trimming changes the filtered films there
REST = torch.tensor([[1.0, 0.0, 1.0, 0.0]])  # a pose: scale x, shift x, scale y, shift y about the centre, in pixels


def register(fixed: Tensor, moving: Tensor, pose: Tensor, *, steps: int) -> tuple[Tensor, Tensor]:
    """Fit the pose of each moving film; return the poses (M, 4) and the correlations of the overlap (M,).

    Args:
        fixed, moving: (M, n, n) float32.
        pose: (M, 4) or (1, 4) to begin with.
        steps: of Gauss-Newton.
    """
    for _ in range(steps):
        pose = _gauss_newton(fixed, moving, pose)
    return pose, correlation(fixed, *warp(moving, pose))


def warp(films: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """(M, n, n) films resampled bilinearly, and a mask of what may be compared."""
    n, middle = films.shape[-1], (films.shape[-1] - 1) / 2
    pixel, reach = torch.arange(n) - middle, middle - n // MARGIN
    at = pose[:, ::2, None] * pixel + pose[:, 1::2, None]
    weights = (1 - (at[..., None] - pixel).abs_()).clamp_(min=0)
    inside = ((at.abs() <= reach) & (pixel.abs() <= reach)).float()
    return weights[:, 1] @ films @ weights[:, 0].mT, inside[:, 1, :, None] * inside[:, 0, None, :]


def _gauss_newton(fixed: Tensor, moving: Tensor, pose: Tensor) -> Tensor:
    """One step of least squares in pose, gain and offset, kept within 15 % of scale and a tenth of the film."""
    n = fixed.shape[-1]
    centred = (2 * torch.arange(n) - (n - 1)) / n
    warped, inside = warp(moving, pose)
    columns = torch.empty(len(fixed), 7, n, n)  # written in place: to stack and mask copies takes longer than the rest
    for slope, axis in ((columns[:, 1], 2), (columns[:, 3], 1)):
        torch.mul(_gradient(warped, axis), inside, out=slope)
    torch.mul(columns[:, 1], centred, out=columns[:, 0])
    torch.mul(columns[:, 3], centred[:, None], out=columns[:, 2])
    torch.mul(warped, inside, out=columns[:, 4])
    columns[:, 5], columns[:, 6] = inside, fixed
    products = torch.bmm(columns.flatten(2), columns.flatten(2).mT)
    fit = torch.linalg.solve(products[:, :6, :6] + 1e-3 * n * torch.eye(6), products[:, :6, 6])
    move = (fit[:, :4] / fit[:, 4:5].clamp(min=0.3)).clamp(-1.5, 1.5) * torch.tensor([2 / n, 1, 2 / n, 1])
    most = torch.tensor([0.15, n / 10, 0.15, n / 10])
    return REST + (pose + move - REST).clamp(-most, most)


def _gradient(films: Tensor, axis: int) -> Tensor:
    """Central differences along an axis, one-sided at both ends; `torch.gradient` does the same, more slowly."""
    n, slope = films.shape[axis], torch.empty_like(films)
    torch.sub(films.narrow(axis, 2, n - 2), films.narrow(axis, 0, n - 2), out=slope.narrow(axis, 1, n - 2)).div_(2)
    for at, before in ((0, 0), (n - 1, n - 2)):
        torch.sub(films.select(axis, before + 1), films.select(axis, before), out=slope.select(axis, at))
    return slope


def correlation(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """(M,) correlations of (M, n, n) films where the mask, 0 or 1, says so."""
    n = inside.sum((1, 2), keepdim=True)
    a, b = ((x - (x * inside).sum((1, 2), keepdim=True) / n) * inside for x in (a, b))
    return (a * b).sum((1, 2)) / ((a * a).sum((1, 2)) * (b * b).sum((1, 2)) + 1e-9).sqrt()
