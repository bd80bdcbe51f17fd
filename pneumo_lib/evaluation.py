"""Networks over films: denoised films, per-film quality, class probabilities.

Everything here draws its noise per film (`noise.corrupt_each`), so every method meets the same noise, and nothing
here is augmented or random otherwise.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn

from pneumo_lib import metrics, noise, novelty, processes, runs, runtime
from pneumo_lib.errors import DataError
from pneumo_lib.steps import Films

Denoiser = Callable[[np.ndarray], np.ndarray]
CHECK = "novelty.safetensors"
CHECKED = 900  # training films that a check is fitted on at most


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
    device = runtime.device()
    run, clean = _inference(model, device), _inference(denoiser, device) if denoiser else lambda x: x
    logits = _in_batches(lambda seen: run(clean(seen.to(device))).cpu(), films, view, batch_size)
    return torch.cat(logits).numpy()


def fit_check(
    model: nn.Module, train: Films, val: Films, views: Sequence[View], *, denoiser: nn.Module | None = None
) -> novelty.Check:
    """What tells films of the classifier's kind from other pictures; see `novelty`.

    Args:
        views: how films may come: a film passes as it is under each of them.
    """
    n_classes, tap = int(max(train.labels.max(), val.labels.max())) + 1, novelty.Tap(copy.deepcopy(model))
    parts = [_of_each_class(films, CHECKED // n_classes) for films in (train, val)]
    looks, labels = [], []
    for films in parts:  # each film under one view, in turn, so that more views do not take longer
        shares = [_rows(films, np.arange(k, len(films), len(views))) for k in range(len(views))]
        looks.append(novelty.Look.join([_look(tap, *pair, denoiser) for pair in zip(shares, views, strict=True)]))
        labels.append(np.concatenate([share.labels for share in shares]))
    return novelty.fit(looks[0], labels[0], looks[1], labels[1], n_classes)


def refused(check: novelty.Check, model: nn.Module, films: Films, view: View) -> np.ndarray:
    """(N,) bool: the films that a classifier's check takes for other pictures."""
    scores, _ = check(_look(novelty.Tap(copy.deepcopy(model)), films, view, None))
    return scores.round(2) > 1  # as `diagnosis` rounds and `decision` judges them


def store_check(folder: Path, check: novelty.Check) -> dict[str, str]:
    """Keep a check beside its classifier; gives what the classifier's card says of it."""
    runs.save_weights(folder / CHECK, check.tensors())
    return {"sha256": runs.sha256(folder / CHECK)}


def load_check(folder: Path, card: dict[str, Any]) -> novelty.Check | None:
    """The check of a classifier, None where its card has none.

    Raises:
        DataError: it is missing, damaged or another one than the card's.
    """
    if not card.get("novelty"):
        return None
    path = folder / CHECK
    if not path.exists() or runs.sha256(path) != card["novelty"]["sha256"]:
        raise DataError(f"{path} is missing or not the file that its model.json describes. Make the model again.")
    return novelty.Check.from_tensors(runs.read_weights(path))


def _of_each_class(films: Films, most: int) -> Films:
    return _rows(films, np.concatenate([np.flatnonzero(films.labels == k)[:most] for k in np.unique(films.labels)]))


def _rows(films: Films, rows: np.ndarray) -> Films:
    return Films(films.images[rows], films.labels[rows], [films.keys[row] for row in rows])


@torch.no_grad()
def _look(tap: novelty.Tap, films: Films, view: View, denoiser: nn.Module | None) -> novelty.Look:
    device = runtime.device()
    tap.to(device).eval()
    clean = _inference(denoiser, device) if denoiser else lambda x: x
    return novelty.Look.join(_in_batches(lambda seen: tap.look(clean(seen.to(device))), films, view, 64))


@torch.no_grad()
def restore(denoiser: nn.Module, noisy: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """Denoise films: (N, H, W) float32 in [0, 1] -> the same shape and range."""
    device = runtime.device()
    run = _inference(denoiser, device)
    parts = torch.from_numpy(noisy)[:, None].split(batch_size)
    return torch.cat([run(part.to(device))[:, 0].cpu() for part in parts]).clamp(0, 1).numpy()


def corrupted(films: Films, view: View) -> np.ndarray:
    """The films as a network would see them: (N, H, W) float32 in [0, 1]."""
    return torch.cat([_shown(films, rows, view) for rows in _cut(len(films), 64)])[:, 0].numpy()


def denoising_quality(methods: dict[str, Denoiser], films: Films, view: View, *, batch_size: int = 64) -> pd.DataFrame:
    """PSNR and SSIM of every film under every method, all on the same noise.

    Args:
        methods: by name, (n, H, W) noisy -> (n, H, W) restored, both float32 in [0, 1].

    Returns:
        Long table: path, label, method, psnr (dB), ssim.
    """
    rows = []
    for batch in _cut(len(films), batch_size):
        clean, noisy = films.images[batch].astype(np.float32) / 255, _shown(films, batch, view)[:, 0].numpy()
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


def readable_quality(table: pd.DataFrame) -> pd.DataFrame:
    """`summarise_quality` as texts by method, for people."""
    shown = pd.DataFrame({"method": table["method"]})
    for title, name, form in (
        ("PSNR (dB)", "psnr", "{:.2f} [{:.2f}, {:.2f}]"),
        ("SSIM", "ssim", "{:.3f} [{:.3f}, {:.3f}]"),
    ):
        shown[title] = [form.format(*row) for row in table[[name, f"{name}_low", f"{name}_high"]].to_numpy()]
    return shown.assign(films=table["n"]).set_index("method")


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
        averaged = np.stack([*runtime.in_threads(partial(denoise_nl_means, fast_mode=True, **options), noisy)])
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
        examples: "epoch NN" -> (the first film denoised by it, (H, W) float32; its PSNR in dB).
    """

    table: pd.DataFrame
    examples: dict[str, tuple[np.ndarray, float]]


def checkpoint_quality(folder: Path, films: Films, view: View) -> CheckpointQuality:
    """PSNR and SSIM of every checkpoint of a training, all on the same noisy films.

    Args:
        folder: of a denoiser whose recipe keeps checkpoints.
    """
    model, rows, examples = runs.load_model(folder).model, [], {}
    noisy, clean = corrupted(films, view), np.asarray(films.images, np.float32) / 255
    paths = {int(p.stem.removeprefix("epoch_")): p for p in (folder / "checkpoints").glob("epoch_*.safetensors")}
    for epoch, path in sorted(paths.items()):
        restored = restore(runs.load_weights(model, path), noisy)
        psnr, ssim = metrics.psnr(restored, clean), metrics.ssim(restored, clean)
        rows.append({"epoch": epoch, "psnr": psnr.mean(), "ssim": ssim.mean()})
        examples[f"epoch {epoch}"] = (restored[0], float(psnr[0]))
    return CheckpointQuality(pd.DataFrame(rows), examples)


def network_denoiser(model: nn.Module) -> Denoiser:
    """A network as a method of `denoising_quality`."""
    return lambda noisy: restore(model, noisy)


def _in_batches(look: Callable[[Tensor], Any], films: Films, view: View, size: int) -> list[Any]:
    """What `look` makes of each batch of films as a network sees them; several processes share the batches out."""
    return processes.share_out(lambda rows: look(_shown(films, rows, view)), _cut(len(films), size))


def _cut(n: int, size: int) -> list[np.ndarray]:
    """The rows of films, a batch at a time."""
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def _shown(films: Films, rows: np.ndarray, view: View) -> Tensor:
    """(B, 1, H, W) float32 in [0, 1]: films under their noise, whatever batch they come in."""
    clean = torch.from_numpy(films.images[rows])[:, None].float() / 255
    return noise.corrupt_each(clean, [films.keys[row] for row in rows], view.kind, view.strength, seed=view.seed)


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
