"""Random changes of training films on a batch: every film is moved, mirrored and shaded by numbers of its own."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from pneumo_lib.errors import UsageError
from pneumo_lib.recipe import Augmentation


@dataclass(frozen=True)
class Changes:
    """What happens to each film of a batch, float32 (B,) on the device of the films unless said otherwise.

    Attributes:
        rotation: radians, counter-clockwise.
        right: shift to the right, share of the width.
        down: shift downwards, share of the height.
        zoom: magnification about the centre.
        shear: radians; rows slide sideways by tan(shear) times their distance from the middle row.
        flip: bool; left and right are exchanged, before everything else.
        brightness: gray added.
        contrast: factor about the film's mean.
        gamma: exponent.
    """

    rotation: Tensor
    right: Tensor
    down: Tensor
    zoom: Tensor
    shear: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    gamma: Tensor


@torch.no_grad()
def augment(clean: Tensor, how: Augmentation, generator: Generator) -> Tensor:
    """Change every film of a batch at random; the result depends on the batch, `how` and the generator only.

    Args:
        clean: (B, 1, H, W) float, range [0, 1]; left as it is.
        how: the bounds of the changes.
        generator: on the device of the films. As many numbers are drawn whatever `how` turns on, none for the identity,
            and one more per film where its share is below 1.

    Returns:
        A tensor like `clean`, memory format included; `clean` itself where `how` changes nothing.

    Raises:
        UsageError: films that are not float.
    """
    if not clean.is_floating_point():
        raise UsageError(f"augmentation got {clean.dtype} films; give floats in [0, 1] (training_machinery.to_float).")
    if not (_moves(how) or _shades(how) or how.flip):
        return clean
    drawn, films = draw(how, len(clean), generator), clean
    if _moves(how):
        films = move(films, drawn)
    elif how.flip:  # pixel for pixel; resampling would round
        films = torch.where(_each(drawn.flip), films.flip(-1), films)
    if _shades(how):
        films = shade(films, drawn)
    films = torch.clamp(films, 0.0, 1.0, out=torch.empty_like(clean))  # bilinear weights add up to 1 but for rounding
    if how.share < 1:
        chosen = torch.rand(len(clean), generator=generator, device=generator.device) < how.share
        films = torch.where(_each(chosen), films, clean)
    return films


def mix(clean: Tensor, labels: Tensor, n_classes: int, *, kept: float) -> tuple[Tensor, Tensor]:
    """Blend every film, and its label, with its counterpart at the other end of the batch.

    Args:
        clean: (B, 1, H, W) float. labels: (B,) class indices.
        kept: the film's own share, a fraction.

    Returns:
        Films like `clean`, and shares of the classes (B, n_classes) float.

    Source: Zhang et al. 2018 (mixup); in a batch of random order the counterpart is a random film.
    """
    shares = F.one_hot(labels, n_classes).to(clean.dtype)
    return torch.lerp(clean.flip(0), clean, kept), torch.lerp(shares.flip(0), shares, kept)


def draw(how: Augmentation, n: int, generator: Generator) -> Changes:
    """Changes for n films, each number uniform within the bounds of `how`, on the generator's device."""
    share = torch.rand((9, n), generator=generator, device=generator.device)
    rotation, right, down, shear, brightness, contrast, gamma = 2 * share[:7] - 1
    low, high = how.zoom
    return Changes(
        rotation=rotation * math.radians(how.rotation),
        right=right * how.shift,
        down=down * how.shift,
        zoom=low + (high - low) * share[7],
        shear=shear * math.radians(how.shear),
        flip=share[8] < (0.5 if how.flip else 0.0),
        brightness=brightness * how.brightness,
        contrast=1 + contrast * how.contrast,
        gamma=torch.exp(gamma * how.gamma),
    )


def move(films: Tensor, changes: Changes) -> Tensor:
    """Flip, zoom, shear, rotate and shift films, in this order but by one resampling.

    Between pixels the values are bilinear, outside the film those of its nearest pixel.

    Args:
        films: (B, 1, H, W) float.
        changes: of B films.

    Returns:
        The films moved; values may leave the range of the films by rounding.
    """
    sources = _sources(changes, films)
    return F.grid_sample(films, sources, mode="bilinear", padding_mode="border", align_corners=False)


def shade(films: Tensor, changes: Changes) -> Tensor:
    """Change contrast and brightness, clamp to [0, 1], and raise to the power gamma.

    Args:
        films: (B, 1, H, W) float, range [0, 1].
        changes: of B films.
    """
    to = films.dtype
    mean = films.mean(dim=(1, 2, 3), keepdim=True)
    linear = (films - mean).mul_(_each(changes.contrast).to(to)).add_(mean + _each(changes.brightness).to(to))
    return linear.clamp_(0.0, 1.0).pow_(_each(changes.gamma).to(to))


def describe(how: Augmentation) -> str:
    """The changes in a few words for tables, "none" for the identity."""
    parts = [f"rotation ±{how.rotation:g}°"] if how.rotation else []
    parts += [f"shift ±{100 * how.shift:g} %"] if how.shift else []
    parts += [f"zoom {float(how.zoom[0])}-{float(how.zoom[1])}"] if tuple(how.zoom) != (1, 1) else []
    parts += [f"shear ±{how.shear:g}°"] if how.shear else []
    parts += ["flip"] if how.flip else []
    parts += [f"{name} ±{getattr(how, name):g}" for name in ("brightness", "contrast") if getattr(how, name)]
    parts += [f"gamma exp(±{how.gamma:g})"] if how.gamma else []
    parts += [f"on {100 * how.share:g} % of the films"] if parts and how.share < 1 else []
    return ", ".join(parts) or "none"


def _moves(how: Augmentation) -> bool:
    return bool(how.rotation or how.shift or how.shear) or tuple(how.zoom) != (1, 1)


def _shades(how: Augmentation) -> bool:
    return bool(how.brightness or how.contrast or how.gamma)


def _each(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]


def _sources(changes: Changes, films: Tensor) -> Tensor:
    """(B, H, W, 2): where in its film each pixel comes from, as x and y, the film reaching from -1 to 1 either way.

    By hand, since `affine_grid` takes three times as long, and multiplies matrices, which TF32 or autocast would round.
    """
    height, width = films.shape[-2:]
    x = _centred(width, changes.right)[:, None, :]
    y = _centred(height, changes.down)[:, :, None]
    cos, sin, slope = changes.rotation.cos(), changes.rotation.sin(), changes.shear.tan()
    wide, high = 2 / (width * changes.zoom), 2 / (height * changes.zoom)
    wide = torch.where(changes.flip, -wide, wide)
    # turned back, then sheared back, then made smaller; y points down
    from_x, from_y = (cos - slope * sin) * wide, -(sin + slope * cos) * wide
    sources = films.new_empty((len(films), height, width, 2))
    torch.add(from_x[:, None, None] * x, from_y[:, None, None] * y, out=sources[..., 0])
    torch.add((sin * high)[:, None, None] * x, (cos * high)[:, None, None] * y, out=sources[..., 1])
    return sources


def _centred(n: int, shift: Tensor) -> Tensor:
    """(B, n): pixels along one side, counted from the centre of each film shifted by that share of the side."""
    return torch.arange(n, device=shift.device) - (n - 1) / 2 - n * shift[:, None]
