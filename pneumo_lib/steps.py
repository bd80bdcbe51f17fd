"""What a training step is made of: films, the noise put on them, and the loss of a batch.

A `Step` is all that differs between a denoiser and a classifier: a batch of clean films in, one loss and one score
per film out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pneumo_lib import noise


@dataclass(frozen=True)
class Films:
    """Films to train or validate on.

    Attributes:
        images: (N, H, W) uint8, an array in memory or memory-mapped, or rows of one (`data.picked`).
        labels: (N,) int64.
        keys: one stable name per film, from which its validation noise is drawn.
    """

    images: np.ndarray
    labels: np.ndarray
    keys: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, n: int, *, seed: int) -> "Films":
        """At most `n` films drawn without repetition, class shares kept by chance; 0 takes all."""
        if not 0 < n < len(self):
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))
        return Films(self.images[rows], self.labels[rows], [self.keys[row] for row in rows])


@dataclass(frozen=True)
class Corruption:
    """The noise of a training run: a kind and a strength.

    Attributes:
        low, share: where share > 0, that share of the films gets a strength drawn from [low, 1.2 * strength] instead,
            so that the network also learns weaker and stronger noise (gaussian only).
    """

    kind: str = "gaussian"
    strength: float = 0.5
    low: float = 0.0
    share: float = 0.0

    def __call__(self, clean: Tensor, generator: Generator) -> Tensor:
        """Fresh noise for a batch (B, 1, H, W) in [0, 1]."""
        if not self.share:
            return noise.corrupt(clean, self.kind, self.strength, generator=generator)
        options = {"generator": generator, "device": clean.device}
        drawn = self.low + (1.2 * self.strength - self.low) * torch.rand(len(clean), 1, 1, 1, **options)
        other = torch.rand(len(clean), 1, 1, 1, **options) < self.share
        return noise.corrupt(clean, self.kind, torch.where(other, drawn, self.strength), generator=generator)


class Outcome(NamedTuple):
    """Of one batch: the loss to minimise and the score to report, both (B,) float."""

    loss: Tensor
    score: Tensor


@dataclass(frozen=True)
class DenoisingStep:
    """Distance between the denoised and the clean film; the score is the PSNR in dB.

    Attributes:
        loss: "mse", the mean squared error, as the source does; or "l1", the mean absolute error, with which
            residual networks settle faster (Zhao et al. 2017).
    """

    loss: str = "mse"

    def __call__(self, model: nn.Module, clean: Tensor, noisy: Tensor, labels: Tensor) -> Outcome:
        restored = model(noisy).float()
        loss = self._per_film({"mse": F.mse_loss, "l1": F.l1_loss}[self.loss], restored, clean)
        squared = loss if self.loss == "mse" else self._per_film(F.mse_loss, restored.detach(), clean)
        return Outcome(loss, -10 * squared.detach().log10())

    @staticmethod
    def _per_film(distance: Callable[..., Tensor], restored: Tensor, clean: Tensor) -> Tensor:
        return distance(restored, clean, reduction="none").mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class ClassificationStep:
    """Cross-entropy of the class; the score is 1 where the class is right, so its mean is the accuracy.

    Attributes:
        denoiser: a frozen network that cleans the noisy film first; None classifies the noisy film itself.
        smoothing: share of the target spread over all classes (Szegedy et al. 2016), in training only.

    Labels are class indices (B,), or shares (B, C) of blended films, of which the largest counts for the score.
    """

    denoiser: nn.Module | None = None
    smoothing: float = 0.0

    def __call__(self, model: nn.Module, clean: Tensor, noisy: Tensor, labels: Tensor) -> Outcome:
        with torch.no_grad():
            seen = noisy if self.denoiser is None else self.denoiser(noisy).float()
        logits = model(seen).float()
        smoothing = self.smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        truth = labels if labels.ndim == 1 else labels.argmax(dim=1)
        return Outcome(loss, (logits.argmax(dim=1) == truth).float())


Step = Callable[[nn.Module, Tensor, Tensor, Tensor], Outcome]
