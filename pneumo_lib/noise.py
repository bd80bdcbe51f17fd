"""Corruptions by name and strength, on batches of films.

Each kind has one number for its strength, 0 for none, and a table of strengths in rising order; brightness is two
kinds, gray added and gray taken, so that it has one number too. Training draws from a generator per batch; evaluation
draws each film's noise from its own name, so that methods meet identical noise. What lies outside a turned film is its
nearest pixel, as in `augmentation`: black corners would be a sign of the corruption that real films do not carry.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from scipy.stats import norm
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as TF

from pneumo_lib import augmentation
from pneumo_lib.config import STRENGTHS
from pneumo_lib.errors import UsageError
from pneumo_lib.recipe import Augmentation


@dataclass(frozen=True)
class Noise:
    """One kind of corruption.

    Attributes:
        apply: (images (B, 1, H, W) float in [0, 1], strength, generator) -> images of the same shape and range.
        levels: strengths from none to hardest; level 0 is the identity.
        unit: what the strength measures.
    """

    apply: Callable[[Tensor, float | Tensor, Generator], Tensor]
    levels: tuple[float, ...]
    unit: str


def add_noise(images: Tensor, sigma: float | Tensor = 0.5, *, generator: Generator) -> Tensor:
    """Gaussian noise, clipped: clip(x + sigma * N(0, 1), 0, 1).

    Args:
        images: (B, 1, H, W) float, range [0, 1].
        sigma: standard deviation on the scale of the images; one number, or (B, 1, 1, 1) for one per film.
        generator: on the device of the images.

    Source: report A, section 2.4.
    """
    normal = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return normal.mul_(sigma).add_(images).clamp_(0.0, 1.0)


def _poisson(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    photons = 1.0 / strength**2  # at full brightness; their relative spread there is the strength
    return (torch.poisson(images * photons, generator=generator) / photons).clamp_(0.0, 1.0)


def _speckle(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    normal = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images * (1.0 + strength * normal)).clamp_(0.0, 1.0)


def _salt_pepper(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    chance = torch.rand(images.shape, generator=generator, device=images.device)
    return torch.where(chance < strength, (chance < strength / 2).to(images.dtype), images)


def _blur(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    side = 2 * int(np.ceil(3 * strength)) + 1
    return TF.gaussian_blur(images, [side, side], [float(strength)] * 2).clamp_(0.0, 1.0)  # the kernel's sum is rounded


def _low_resolution(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    small = [max(1, round(side / (1 + strength))) for side in images.shape[-2:]]
    return TF.resize(TF.resize(images, small, antialias=True), list(images.shape[-2:])).clamp_(0.0, 1.0)


def _jpeg(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    pixels = (images * 255).round().to("cpu", torch.uint8).numpy()
    coded = [_recode(film[0], quality=int(100 - strength)) for film in pixels]
    return torch.from_numpy(np.stack(coded))[:, None].to(images) / 255


def _recode(film: np.ndarray, *, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(film).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _rotation(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    """Turned about the centre, each film to the side that the generator says; corners repeat the nearest pixels."""
    drawn = augmentation.draw(Augmentation(rotation=1.0), len(images), generator)
    turned = replace(drawn, rotation=drawn.rotation.sign() * math.radians(strength))
    return augmentation.move(images, turned).clamp_(0.0, 1.0)


def _crop(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    """The middle of the film, magnified to its size: of each side that share is lost, half of it at either end."""
    still = augmentation.draw(Augmentation(), len(images), generator)
    return augmentation.move(images, replace(still, zoom=still.zoom / (1.0 - strength))).clamp_(0.0, 1.0)


def _low_contrast(images: Tensor, strength: float | Tensor, generator: Generator) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(images, mean, strength).clamp_(0.0, 1.0)


NOISES: dict[str, Noise] = {
    "gaussian": Noise(
        lambda x, s, g: add_noise(x, s, generator=g), (0, 0.1, 0.25, 0.5, 0.75, 1.0), "standard deviation, scale [0, 1]"
    ),
    "poisson": Noise(_poisson, (0, 0.05, 0.1, 0.2, 0.35, 0.5), "relative spread at full brightness"),
    "speckle": Noise(_speckle, (0, 0.1, 0.25, 0.5, 0.75, 1.0), "standard deviation of the factor"),
    "salt_pepper": Noise(_salt_pepper, (0, 0.02, 0.05, 0.1, 0.25, 0.5), "share of pixels replaced"),
    "blur": Noise(_blur, (0, 0.5, 1.0, 2.0, 3.0, 5.0), "standard deviation, pixels"),
    "low_resolution": Noise(_low_resolution, (0, 0.5, 1.0, 3.0, 7.0, 15.0), "reduction factor minus one"),
    "jpeg": Noise(_jpeg, (0, 50, 70, 85, 92, 97), "100 minus the JPEG quality"),
    "rotation": Noise(_rotation, (0, 2, 5, 10, 20, 45), "degrees, to either side"),
    "crop": Noise(_crop, (0, 0.05, 0.1, 0.2, 0.35, 0.5), "share of each side cut away"),
    "brighter": Noise(
        lambda x, s, g: (x + s).clamp_(0.0, 1.0), (0, 0.05, 0.1, 0.2, 0.35, 0.5), "gray added, then clipped"
    ),
    "darker": Noise(
        lambda x, s, g: (x - s).clamp_(0.0, 1.0), (0, 0.05, 0.1, 0.2, 0.35, 0.5), "gray taken, then clipped"
    ),
    "low_contrast": Noise(_low_contrast, (0, 0.2, 0.4, 0.6, 0.8, 0.95), "share of the distance to the mean lost"),
}


def check(kind: str, strength: float) -> None:
    """Raise UsageError unless the kind exists and the strength lies within `config.STRENGTHS`."""
    if kind not in NOISES:
        raise UsageError(f"no noise is called {kind!r}; there are: {', '.join(NOISES)}.")
    top = STRENGTHS[kind]
    if not 0 <= strength <= top:
        unit = NOISES[kind].unit
        raise UsageError(f"{kind} noise of strength {strength} is out of range; give 0 to {top:g} ({unit}).")


def corrupt(images: Tensor, kind: str, strength: float | Tensor, *, generator: Generator) -> Tensor:
    """Corrupt a batch.

    Args:
        images: (B, 1, H, W) float, range [0, 1]; left as it is.
        kind: a name in NOISES.
        strength: in the unit of that kind; a (B, 1, 1, 1) tensor of one strength per film works for gaussian only.
        generator: on the device of the images.

    Returns:
        A tensor like `images`; at strength 0 `images` itself.

    Raises:
        UsageError: unknown kind, a strength outside its range, or one strength per film for another kind.
    """
    if isinstance(strength, Tensor):
        if kind != "gaussian":
            raise UsageError(f"one strength per film works for gaussian noise only, not for {kind!r}.")
        return add_noise(images, strength, generator=generator)
    check(kind, strength)
    return NOISES[kind].apply(images, strength, generator) if strength > 0 else images


def corrupt_each(images: Tensor, keys: Sequence[str], kind: str, strength: float, *, seed: int) -> Tensor:
    """Corrupt each film by its own generator, a function of (key, kind, strength, seed) and of nothing else.

    Args:
        images: (B, 1, H, W) float on any device; the noise is drawn on the CPU so that all devices see the same.
        keys: one stable name per film, for example its path inside the data set.
    """
    films = [
        corrupt(film[None].cpu(), kind, strength, generator=named_generator(f"{seed}/{kind}/{strength:g}/{key}"))
        for film, key in zip(images, keys, strict=True)
    ]
    return torch.cat(films).to(images.device)


def named_generator(name: str, *, device: torch.device | str = "cpu") -> Generator:
    """A random generator on that device, seeded by the hash of a name and by nothing else."""
    digest = hashlib.sha256(name.encode()).digest()
    return Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def clipped_mean(x: np.ndarray, sigma: float) -> np.ndarray:
    """Mean of clip(x + sigma * N(0, 1), 0, 1): what averaging noisy copies of a pixel of brightness x tends to.

    At sigma 0.5 black becomes 0.195 and white 0.805, so a filter that averages is biased by the clipping.
    """
    low, high = -x / sigma, (1 - x) / sigma
    inside = norm.cdf(high) - norm.cdf(low)
    return x * inside + sigma * (norm.pdf(low) - norm.pdf(high)) + 1 - norm.cdf(high)


def unclip(mean: np.ndarray, sigma: float) -> np.ndarray:
    """Inverse of `clipped_mean`, clipped to [0, 1]: takes the bias out of an averaged film."""
    grid = np.linspace(0.0, 1.0, 1025)
    return np.interp(mean, clipped_mean(grid, sigma), grid).astype(np.float32)


def smooth(images: np.ndarray, sigma: float, *, width: float) -> np.ndarray:
    """Gaussian filter with the clipping bias taken out: the simplest denoiser.

    Args:
        images: (N, H, W) float32, noisy.
        sigma: of the noise; 0 leaves out the correction.
        width: standard deviation of the filter in pixels.
    """
    blurred = _blur(torch.from_numpy(images)[:, None], width, Generator())[:, 0].numpy()
    return unclip(blurred, sigma) if sigma > 0 else blurred
