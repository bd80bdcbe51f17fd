"""Networks over films: denoised films, per-film quality, class probabilities.

Everything here draws its noise per film (`noise.corrupt_each`), so every method meets the same noise, and nothing
here is augmented or random otherwise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn

from pneumo_lib import metrics, noise, runs
from pneumo_lib.steps import Films

Denoiser = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class View:
    """How films are shown to a network: a corruption, and the seed that fixes it.

    Attributes:
        kind, strength: as in `noise.corrupt`; strength 0 shows the film as it is.
    """

    kind: str = "gaussian"
    strength: float = 0.0
    seed: int = 0


@torch.no_grad()
def classify(
    model: nn.Module, films: Films, view: View, *, denoiser: nn.Module | None = None, batch_size: int = 64
) -> np.ndarray:
    """Logits of every film.

    Args:
        model: classifier, (B, 1, H, W) -> (B, C).
        denoiser: cleans each film first where given.

    Returns:
        (N, C) float32, in the order of `films`.
    """
    device = _device()
    run, clean = _inference(model, device), _inference(denoiser, device) if denoiser else lambda x: x
    logits = [run(clean(seen)).cpu() for _, seen in _batches(films, view, batch_size, device)]
    return torch.cat(logits).numpy()


@torch.no_grad()
def restore(denoiser: nn.Module, noisy: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """Denoise films: (N, H, W) float32 in [0, 1] -> the same shape and range."""
    device = _device()
    run = _inference(denoiser, device)
    parts = torch.from_numpy(noisy)[:, None].split(batch_size)
    return torch.cat([run(part.to(device))[:, 0].cpu() for part in parts]).clamp(0, 1).numpy()


def corrupted(films: Films, view: View) -> np.ndarray:
    """The films as a network would see them: (N, H, W) float32 in [0, 1]."""
    return torch.cat([seen for _, seen in _batches(films, view, 64, torch.device("cpu"))])[:, 0].numpy()


def denoising_quality(methods: dict[str, Denoiser], films: Films, view: View, *, batch_size: int = 64) -> pd.DataFrame:
    """PSNR and SSIM of every film under every method, all on the same noise.

    Args:
        methods: by name, (n, H, W) noisy -> (n, H, W) restored, both float32 in [0, 1].

    Returns:
        Long table: path, label, method, psnr (dB), ssim.
    """
    rows = []
    for batch, seen in _batches(films, view, batch_size, torch.device("cpu")):
        clean, noisy = films.images[batch].astype(np.float32) / 255, seen[:, 0].numpy()
        for name, method in methods.items():
            restored = method(noisy)
            scores = {"psnr": metrics.psnr(restored, clean), "ssim": metrics.ssim(restored, clean)}
            paths = [films.keys[row] for row in batch]
            rows.append(pd.DataFrame({"path": paths, "label": films.labels[batch], "method": name, **scores}))
    return pd.concat(rows, ignore_index=True)


def summarise_quality(quality: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean PSNR and SSIM of each method with 95 % bootstrap intervals: one row per method, best last."""
    rows = []
    for method, part in quality.groupby("method", sort=False):
        psnr, ssim = (metrics.mean_interval(part[name].to_numpy(), seed=seed) for name in ("psnr", "ssim"))
        row = {"method": method, "psnr": psnr.value, "psnr_low": psnr.low, "psnr_high": psnr.high}
        rows.append(row | {"ssim": ssim.value, "ssim_low": ssim.low, "ssim_high": ssim.high, "n": psnr.n})
    return pd.DataFrame(rows).sort_values("psnr", ignore_index=True)


def classical_denoisers(sigma: float) -> dict[str, Denoiser]:
    """Doing nothing, a Gaussian filter and non-local means, the latter two with the clipping bias taken out.

    Args:
        sigma: of the gaussian noise in the films.

    Source: non-local means of Buades et al. 2005 as kept in scikit-image; `noise.unclip` for the bias.
    """
    # The constants are the best found on eight training films of chest_xray_covid, at sigma 0.1 to 1 and 64 to 256
    # pixels: within 0.2 dB of the optimum everywhere. Noise this strong asks for filters as wide as they are here.

    def gaussian(noisy: np.ndarray) -> np.ndarray:
        return noise.smooth(noisy, sigma, width=(1.1 + 7 * sigma) * _scale(noisy))

    def non_local_means(noisy: np.ndarray) -> np.ndarray:
        distance = round((2 + 12 * sigma) * _scale(noisy))
        options = {"patch_size": 7, "patch_distance": distance, "h": max(sigma, 0.05), "sigma": 0.75 * sigma}
        averaged = np.stack([denoise_nl_means(film, fast_mode=True, **options) for film in noisy])
        return noise.unclip(averaged, sigma) if sigma > 0 else averaged

    return {"do nothing": do_nothing, "Gaussian filter": gaussian, "non-local means": non_local_means}


def _scale(films: np.ndarray) -> float:
    """How the best width of a filter changes with the side of the films: 1 at 256 pixels."""
    return (films.shape[-1] / 256) ** (1 / 3)


def do_nothing(noisy: np.ndarray) -> np.ndarray:
    """The noisy films themselves: what every denoiser must beat."""
    return noisy


@dataclass(frozen=True)
class CheckpointQuality:
    """Checkpoints of one training held against each other.

    Attributes:
        table: one row per checkpoint: epoch, psnr (mean over films, dB), ssim.
        examples: "NN epochs" -> (the first film denoised by it, (H, W) float32; its PSNR in dB).
    """

    table: pd.DataFrame
    examples: dict[str, tuple[np.ndarray, float]]


def checkpoint_quality(folder: Path, films: Films, view: View) -> CheckpointQuality:
    """PSNR and SSIM of every checkpoint of a training, all on the same noisy films.

    Args:
        folder: of a denoiser whose recipe keeps checkpoints.
    """
    model, rows, examples = runs.load_model(folder).model, [], {}
    noisy, clean = corrupted(films, view), films.images.astype(np.float32) / 255
    paths = {int(p.stem.removeprefix("epoch_")): p for p in (folder / "checkpoints").glob("epoch_*.safetensors")}
    for epoch, path in sorted(paths.items()):
        restored = restore(runs.load_weights(model, path), noisy)
        psnr, ssim = metrics.psnr(restored, clean), metrics.ssim(restored, clean)
        rows.append({"epoch": epoch, "psnr": psnr.mean(), "ssim": ssim.mean()})
        examples[f"{epoch} epochs"] = (restored[0], float(psnr[0]))
    return CheckpointQuality(pd.DataFrame(rows), examples)


def network_denoiser(model: nn.Module) -> Denoiser:
    """A network as a method of `denoising_quality`."""
    return lambda noisy: restore(model, noisy)


def _batches(films: Films, view: View, size: int, device: torch.device) -> Iterator[tuple[np.ndarray, Tensor]]:
    for start in range(0, len(films), size):
        batch = np.arange(start, min(start + size, len(films)))
        clean = torch.from_numpy(films.images[batch])[:, None].float() / 255
        keys = [films.keys[row] for row in batch]
        yield batch, noise.corrupt_each(clean, keys, view.kind, view.strength, seed=view.seed).to(device)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _inference(model: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network as a function in evaluation mode, in float32: a film gets one answer, here and in `diagnosis`."""
    model = model.to(device, memory_format=torch.channels_last).eval()
    return lambda images: model(images.contiguous(memory_format=torch.channels_last))


def accuracies(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with its 95 % Wilson interval, one row per system and protocol, from rows of `pipeline.predict`."""
    rows = []
    for (system, protocol), part in predictions.groupby(["system", "protocol"], sort=False):
        right = (part["label"] == part["predicted"]).sum()
        rows.append({"system": system, "protocol": protocol, **metrics.wilson(int(right), len(part)).to_dict()})
    return pd.DataFrame(rows)
