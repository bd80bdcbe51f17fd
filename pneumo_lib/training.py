"""One training loop for denoisers and classifiers.

What differs between the two is a `step`: a batch of clean films in, one loss and one score per film out. Accelerate
owns the device, the precision and the processes. Everything random is a function of (seed, epoch, step), and each
process draws the noise of the whole batch and keeps its own rows: several processes, or a run that was killed and
started again, train on exactly what one uninterrupted process would.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.functional.image import peak_signal_noise_ratio

from pneumo_lib import noise, runs, runtime
from pneumo_lib.config import Recipe
from pneumo_lib.errors import TrainingError


@dataclass(frozen=True)
class Films:
    """Films to train or validate on.

    Attributes:
        images: (N, H, W) uint8, an array in memory or memory-mapped.
        labels: (N,) int64.
        keys: one stable name per film, from which its validation noise is drawn.
    """

    images: np.ndarray
    labels: np.ndarray
    keys: list[str]

    def __len__(self) -> int:
        return len(self.labels)


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
        distance = {"mse": F.mse_loss, "l1": F.l1_loss}[self.loss](restored, clean, reduction="none")
        score = peak_signal_noise_ratio(restored.detach(), clean, data_range=1.0, reduction="none", dim=(1, 2, 3))
        return Outcome(distance.mean(dim=(1, 2, 3)), score)


@dataclass(frozen=True)
class ClassificationStep:
    """Cross-entropy of the class; the score is 1 where the class is right, so its mean is the accuracy.

    Attributes:
        denoiser: a frozen network that cleans the noisy film first; None classifies the noisy film itself.
    """

    denoiser: nn.Module | None = None

    def __call__(self, model: nn.Module, clean: Tensor, noisy: Tensor, labels: Tensor) -> Outcome:
        with torch.no_grad():
            seen = noisy if self.denoiser is None else self.denoiser(noisy).float()
        logits = model(seen).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        return Outcome(loss, (logits.argmax(dim=1) == labels).float())


Step = Callable[[nn.Module, Tensor, Tensor, Tensor], Outcome]


@dataclass(frozen=True)
class Fitted:
    """A trained network: its best weights loaded, evaluation mode, on the CPU.

    Attributes:
        name: of the task.
        history: one row per epoch: epoch, train_loss, train_score, val_loss, val_score, lr, seconds.
        best_epoch: the epoch whose weights these are, by validation score.
    """

    name: str
    model: nn.Module
    history: pd.DataFrame
    best_epoch: int


@dataclass(frozen=True)
class Task:
    """What is trained: step, data, noise, recipe and seed. Its fingerprint decides whether a stored state fits it."""

    step: Step
    train: Films
    val: Films
    corruption: Corruption
    recipe: Recipe
    seed: int
    precision: str = "auto"
    name: str = "training"

    def fingerprint(self, model: nn.Module) -> str:
        """Hash of everything that decides the trained weights, the fresh weights included."""
        facts = [
            str(getattr(self.step, "loss", "")),
            asdict(self.corruption),
            asdict(self.recipe),
            self.seed,
            self.precision,
            self.train.keys,
            self.val.keys,
        ]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for network in (model, getattr(self.step, "denoiser", None)):
            for value in network.state_dict().values() if network else ():
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def fit(model: nn.Module, task: Task, folder: Path) -> Fitted:
    """Train a network, or take up where an earlier call stopped.

    After every epoch the state is stored in `folder`; a run killed at any moment and started again ends with the
    same weights. A folder whose training has ended gives its result at once.

    Args:
        model: fresh weights; trained in place.
        folder: history.csv, best.safetensors, and checkpoints/epoch_NN.safetensors where the recipe asks for them.

    Raises:
        TrainingError: the loss is not a number (the last good state is kept), or `folder` holds a training of
            another task.
    """
    loop = _Loop(model, task, Path(folder))
    loop.resume()
    while not loop.finished:
        loop.run_epoch()
    return loop.result()


class _Loop:
    """The state of one training; `run_epoch` is the part to read."""

    def __init__(self, model: nn.Module, task: Task, folder: Path) -> None:
        self.task, self.folder, self.fingerprint = task, folder, task.fingerprint(model)
        self.accelerator: Accelerator = runtime.accelerator(task.precision)
        self.device = self.accelerator.device
        self.raw = model.to(self.device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=task.recipe.lr, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(self.raw, optimizer)
        if denoiser := getattr(task.step, "denoiser", None):
            denoiser.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.images = _on_device(task.train.images, self.device)
        self.labels = torch.as_tensor(task.train.labels, device=self.device)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether all epochs ran, or the validation score has stood still for `patience` epochs."""
        done, patience = len(self.history), self.task.recipe.patience
        return done >= self.task.recipe.epochs or (0 < patience <= done - self.best_epoch)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation score; 0 before training."""
        scores = [row["val_score"] for row in self.history]
        return int(np.argmax(scores)) + 1 if scores else 0

    def run_epoch(self) -> None:
        """Train on every film once, validate, store the state."""
        epoch, recipe, start = len(self.history) + 1, self.task.recipe, time.perf_counter()
        order = np.random.default_rng([self.task.seed, epoch]).permutation(len(self.task.train))
        batches = [order[i : i + recipe.batch_size] for i in range(0, len(order), recipe.batch_size)]
        (loss, score), losses = self._meters(), []
        self.model.train()
        title = f"{self.task.name}: epoch {epoch} of {recipe.epochs}"
        for number, batch in enumerate(runtime.progress(batches, desc=title)):
            generator = Generator(self.device).manual_seed(_mix(self.task.seed, epoch, number))
            clean, labels = self._films(batch)
            noisy = self.task.corruption(clean, generator)
            mine, weight = self._share(len(batch))
            with self.accelerator.autocast():
                outcome = self.task.step(self.model, clean[mine], noisy[mine], labels[mine])
            losses.append(outcome.loss.detach().mean())
            self._set_lr((epoch - 1) * len(batches) + number)
            self.optimizer.zero_grad()
            self.accelerator.backward((outcome.loss * weight).sum() * self.accelerator.num_processes / len(batch))
            self.optimizer.step()
            loss.update(outcome.loss.detach(), weight)
            score.update(outcome.score.detach(), weight)
        row = {"epoch": epoch, "train_loss": loss.compute().item(), "train_score": score.compute().item()}
        self._check(losses, batches, row)
        row |= self.validate() | {"lr": self.lr, "seconds": time.perf_counter() - start}
        self.history.append(row)
        self._store()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss and score over the validation films, each film under its own fixed noise."""
        self.model.eval()
        films, corruption, (loss, score) = self.task.val, self.task.corruption, self._meters()
        rank, world, size = self.accelerator.process_index, self.accelerator.num_processes, 64
        for start in range(0, len(films), size):
            rows = list(range(start, min(start + size, len(films))))[rank::world]
            if not rows:
                continue
            clean = _to_float(torch.as_tensor(films.images[rows], device=self.device))
            keys = [films.keys[row] for row in rows]
            noisy = noise.corrupt_each(clean, keys, corruption.kind, corruption.strength, seed=self.task.seed)
            with self.accelerator.autocast():
                labels = torch.as_tensor(films.labels[rows], device=self.device)
                outcome = self.task.step(self.raw, clean, noisy, labels)
            loss.update(outcome.loss)
            score.update(outcome.score)
        return {"val_loss": loss.compute().item(), "val_score": score.compute().item()}

    def result(self) -> Fitted:
        """The network with its best weights, and its history."""
        self.raw.load_state_dict(self.best)
        history = pd.DataFrame(self.history)
        if self.accelerator.is_main_process:
            runs.write_text(self.folder / "history.csv", history.to_csv(index=False))
        self.accelerator.unwrap_model(self.raw, keep_fp32_wrapper=False)
        model = self.raw.to("cpu", memory_format=torch.contiguous_format).eval()
        return Fitted(self.task.name, model, history, self.best_epoch)

    def resume(self) -> None:
        """Load the newest whole state of this task, if there is one."""
        states = sorted(self.folder.glob("state_*"))
        if not states:
            return
        stored = json.loads((states[-1] / "progress.json").read_text())
        if stored["fingerprint"] != self.fingerprint:
            raise TrainingError(
                f"{self.folder} holds a training with other data, recipe, seed or starting weights. "
                "Choose another run folder, or delete this one."
            )
        self.history = stored["history"]
        self.best = runs.read_weights(states[-1] / "best.safetensors")
        if not self.finished:
            self.accelerator.load_state(states[-1])

    @property
    def lr(self) -> float:
        """Learning rate of the newest step."""
        return self.optimizer.param_groups[0]["lr"]

    def _set_lr(self, step: int) -> None:
        recipe = self.task.recipe
        total = recipe.epochs * math.ceil(len(self.task.train) / recipe.batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * _lr_factor(recipe.schedule, step, total)

    def _films(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        if isinstance(self.images, Tensor):
            rows = torch.as_tensor(batch, device=self.device)
            return _to_float(self.images[rows]), self.labels[rows]
        return _to_float(torch.as_tensor(self.images[batch], device=self.device)), self.labels[batch]

    def _share(self, size: int) -> tuple[slice, Tensor]:
        """This process's rows of a batch and their weights: 1, or 0 for the row that an idle process computes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = slice(rank, None, world) if rank < size else slice(0, 1)
        weight = torch.full((len(range(size)[mine]),), float(rank < size), device=self.device)
        return mine, weight

    def _meters(self) -> tuple[MeanMetric, MeanMetric]:
        return MeanMetric(nan_strategy="disable").to(self.device), MeanMetric(nan_strategy="disable").to(self.device)

    def _check(self, losses: list[Tensor], batches: list[np.ndarray], row: dict[str, float]) -> None:
        if math.isfinite(row["train_loss"]):
            return
        bad = torch.stack(losses).isfinite().logical_not().nonzero()
        step = int(bad[0]) if len(bad) else len(losses) - 1
        raise TrainingError(
            f"{self.task.name}: the loss is not a number at epoch {row['epoch']}, step {step + 1} of {len(losses)} "
            f"(learning rate {self.lr:g}; films {self._names(batches[step])}). "
            f"The state after epoch {row['epoch'] - 1} is kept in {self.folder}; lower the learning rate and run again."
        )

    def _names(self, batch: np.ndarray, most: int = 3) -> str:
        names = [self.task.train.keys[row] for row in batch[:most]]
        return ", ".join(names) + (f" and {len(batch) - most} more" if len(batch) > most else "")

    def _store(self) -> None:
        """Keep the best weights, the checkpoint that is due, and the state; the state of the epoch before goes last."""
        epoch, every, main = len(self.history), self.task.recipe.checkpoint_every, self.accelerator.is_main_process
        if self.best_epoch == epoch:
            self.best = {name: value.detach().cpu().clone() for name, value in self.raw.state_dict().items()}
        if main and every and epoch % every == 0:
            runs.save_weights(checkpoint(self.folder, epoch), self.raw.state_dict())
        temporary = self.folder / "state.tmp"
        if not self.finished:  # a finished training needs no optimiser any more
            self.accelerator.save_state(temporary)
            self.accelerator.wait_for_everyone()
        if main:
            runs.save_weights(temporary / "best.safetensors", self.best)
            facts = {"fingerprint": self.fingerprint, "history": self.history}
            runs.write_text(temporary / "progress.json", json.dumps(facts))
            runs.move_folder(temporary, self.folder / f"state_{epoch:04d}")
            for old in sorted(self.folder.glob("state_*"))[:-1]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()


def checkpoint(folder: Path, epoch: int) -> Path:
    """Path of the weights after that epoch, kept where the recipe says `checkpoint_every`."""
    return folder / "checkpoints" / f"epoch_{epoch:02d}.safetensors"


def _lr_factor(schedule: str, step: int, total: int) -> float:
    if schedule == "constant":
        return 1.0
    return min((step + 1) / (0.05 * total), 0.5 * (1 + math.cos(math.pi * step / total)))


def _mix(*numbers: int) -> int:
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _to_float(images: Tensor) -> Tensor:
    """(B, H, W) uint8 -> (B, 1, H, W) float32 in [0, 1], channels last."""
    return images[:, None].float().div_(255).contiguous(memory_format=torch.channels_last)


def _on_device(images: np.ndarray, device: torch.device) -> Tensor | np.ndarray:
    """The films as uint8 on the GPU if they fill at most half of its free memory, else where they are."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return images
    return torch.as_tensor(np.ascontiguousarray(images), device=device)
