"""What the training loop stands on: its state on the disk, films on their way to the device, shares of a batch.

A state is written under a temporary name and renamed once it is whole; the one before goes last. So a process that
is killed at any moment leaves a whole state, from which the next one goes on.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric

from pneumo_lib import processes, runs
from pneumo_lib.errors import TrainingError
from pneumo_lib.recipe import Recipe

CHEAP = 0.2  # seconds: a state that takes no longer to write is written after every epoch
PART = 0.05  # of the time of a training that larger ones may take


class TrainingState:
    """The memory of one training, in a folder `state_NNNN` named after its newest epoch.

    Attributes:
        history: one row per epoch.
        best: the weights of the best epoch so far, copies on the CPU.
        kept: the newest epoch that is on the disk; 0 for none.

    Args:
        folder: of the training.
        recipe: says when it has finished.
        fingerprint: of the task; a state of another one is refused.
    """

    def __init__(self, folder: Path, recipe: Recipe, fingerprint: str) -> None:
        self.folder, self.recipe, self.fingerprint = folder, recipe, fingerprint
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.kept, self.cost, self.since = 0, 0.0, time.perf_counter()

    @property
    def best_epoch(self) -> int:
        """The last epoch, or the first with the lowest validation loss or highest score; 0 before training."""
        if self.recipe.keep == "last":
            return len(self.history)
        sign = {"loss": 1, "score": -1}[self.recipe.keep]
        values = [sign * row[f"val_{self.recipe.keep}"] for row in self.history]
        return int(np.argmin(values)) + 1 if values else 0

    @property
    def finished(self) -> bool:
        """Whether all epochs ran, or the validation loss has stood still for `patience` epochs."""
        lowest, waited = np.inf, 0
        for row in self.history:
            gained = row["val_loss"] < lowest - self.recipe.min_delta
            lowest, waited = (row["val_loss"], 0) if gained else (lowest, waited + 1)
        return len(self.history) >= self.recipe.epochs or 0 < self.recipe.patience <= waited

    def resume(self, accelerator: Accelerator) -> None:
        """Take up the newest stored state, if there is one: the history, and what `accelerator` has prepared.

        Raises:
            TrainingError: it belongs to another task.
        """
        if processes.first():
            shutil.rmtree(self.folder / "state.tmp", ignore_errors=True)  # of a process killed while it wrote
        states = sorted(self.folder.glob("state_*"))
        processes.agree("stored states", states[-1].name if states else "none")
        processes.agree("films, recipes, seeds or starting weights", self.fingerprint)
        if not states:
            return
        stored = json.loads((states[-1] / "progress.json").read_text())
        if stored["fingerprint"] != self.fingerprint:
            raise TrainingError(
                f"{self.folder} holds a training with other data, recipe, seed or starting weights. "
                "Choose another run folder, or delete this one."
            )
        self.history, self.kept = stored["history"], len(stored["history"])
        self.best = runs.read_weights(states[-1] / "best.safetensors")
        if not self.finished:
            accelerator.load_state(states[-1])

    def add(self, row: dict[str, float], model: nn.Module, accelerator: Accelerator) -> None:
        """Record an epoch that has ended, with copies of its weights if it is the best, and store the state.

        A state that takes long to write is left out after epochs so short that writing would hold them up: a training
        that is killed loses at most twenty times what writing takes, and an epoch.
        """
        self.history.append(row)
        if self.best_epoch == len(self.history):
            self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        if self.finished or processes.by_first(lambda: self.due):
            self._store(accelerator)

    @property
    def due(self) -> bool:
        """Whether to write a state of an unfinished training: what the last one cost has been earned."""
        return self.cost <= max(CHEAP, PART * (time.perf_counter() - self.since))

    def _store(self, accelerator: Accelerator) -> None:
        start, temporary = time.perf_counter(), self.folder / "state.tmp"
        if not self.finished:  # a finished training needs no optimiser any more
            accelerator.save_state(temporary)
            accelerator.wait_for_everyone()
        processes.by_first(lambda: self._complete(temporary))
        self.kept, self.since = len(self.history), time.perf_counter()
        self.cost = self.since - start

    def _complete(self, temporary: Path) -> None:
        runs.save_weights(temporary / "best.safetensors", self.best)
        facts = {"fingerprint": self.fingerprint, "history": self.history}
        runs.write_text(temporary / "progress.json", json.dumps(facts))
        runs.move_folder(temporary, self.folder / f"state_{len(self.history):04d}")
        for old in sorted(self.folder.glob("state_*"))[:-1]:
            shutil.rmtree(old)


def fingerprint(facts: list[Any], *networks: nn.Module | None) -> str:
    """SHA-256 of facts that JSON can write and of the weights of networks."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for network in filter(None, networks):
        for value in network.state_dict().values():
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_of(films: np.ndarray) -> str:
    """SHA-256 of the values of an array, read some rows at a time."""
    digest = hashlib.sha256()
    for start in range(0, len(films), 256):
        digest.update(np.ascontiguousarray(films[start : start + 256]))
    return digest.hexdigest()


def batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an order of films into batches; the last one may be short, but a single film joins the batch before it.

    Batch normalisation cannot learn from a single film.
    """
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def drawn_order(labels: np.ndarray, imbalance: str, rng: np.random.Generator) -> np.ndarray:
    """The rows of one epoch: every film once in random order; "balanced": as many draws, classes equally likely."""
    if imbalance != "balanced":
        return rng.permutation(len(labels))
    share = 1 / np.bincount(labels)[labels]
    return rng.choice(len(labels), len(labels), p=share / share.sum())


def class_weights(labels: np.ndarray, imbalance: str) -> Tensor:
    """(C,) float32 factors of the loss, 1 on average over the films; "weighted": the same total for each class."""
    counts = np.bincount(labels)
    weights = len(labels) / np.maximum(counts, 1) / (counts > 0).sum() if imbalance == "weighted" else counts * 0 + 1.0
    return torch.tensor(weights, dtype=torch.float32)


class RunningMean(AveragedModel):
    """The running mean of a network's weights and buffers; counters among them are copied.

    The decay grows to its value over the first steps, (1 + n) / (10 + n), or a mean over many steps would hold on to
    the weights before training; as in TensorFlow's moving averages. Torch's own update sends the number of steps to the
    device, and so waits for it.

    Args:
        model: whose weights are the first mean.
        decay: at its highest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the newest weights into the mean."""
        n = int(self.n_averaged)  # lies on the CPU, wherever the weights are
        share = max(9 / (10 + n), 1 - self.decay) if n else 1.0
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        numbers, counters = ([pair for pair in pairs if pair[0].is_floating_point() == kind] for kind in (True, False))
        torch._foreach_lerp_([mean for mean, _ in numbers], [value for _, value in numbers], share)
        for mean, value in counters:
            mean.copy_(value)
        self.n_averaged += 1


class Tally:
    """Losses and scores of the films of one pass, kept on the device until the pass has ended.

    One block for all of them: small ones that stay would split the memory that large ones come back to.

    Args:
        films: in the pass, at most.
    """

    def __init__(self, films: int, device: torch.device) -> None:
        self.block, self.films = torch.zeros(2, films, device=device), 0

    def add(self, loss: Tensor, score: Tensor, counted: int) -> None:
        """Take loss and score of a batch, both (B,) float, of which the first `counted` films count."""
        place = slice(self.films, self.films + counted)
        self.block[0, place], self.block[1, place] = loss[:counted].detach(), score[:counted].detach()
        self.films += counted

    def means(self) -> tuple[float, float]:
        """Mean loss and mean score over the films of all processes; only here the device is waited for."""
        means = []
        for values in self.block[:, : self.films]:
            mean = MeanMetric(nan_strategy="disable").to(self.block.device)
            mean.update(values)
            means.append(mean.compute().item())
        return means[0], means[1]


def share(size: int, accelerator: Accelerator) -> tuple[slice, int]:
    """The rows of a batch that this process computes, and how many of them count.

    All of them do, or none where the batch has fewer rows than there are processes: an idle one computes the first row
    all the same, or the others would wait for its gradient.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = slice(rank, None, world) if rank < size else slice(0, 1)
    return mine, len(range(size)[mine]) if rank < size else 0


def resident(values: np.ndarray, device: torch.device) -> Tensor | np.ndarray:
    """Films or labels on the GPU if they fill at most half of its free memory, else where they are."""
    if device.type != "cuda" or values.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return values
    return torch.as_tensor(np.ascontiguousarray(values), device=device)


def on_device(steps: list[np.ndarray], device: torch.device) -> Sequence[Tensor]:
    """What each step needs of an epoch, sent to a GPU at once: to send it step by step would wait for it."""
    return torch.as_tensor(np.concatenate(steps), device=device).split([len(rows) for rows in steps])


def take(source: Tensor | np.ndarray, rows: np.ndarray, sent: Tensor) -> Tensor:
    """Rows of a tensor on a device, or of an array that lies elsewhere: on that device in any case.

    Args:
        rows: (B,) int64.
        sent: the same numbers on the device.
    """
    if isinstance(source, Tensor):
        return source[sent]
    return torch.as_tensor(source[rows], device=sent.device)


def corners(n: int, shape: tuple[int, ...], side: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) int64: row and column where the square of each of n films of (..., H, W) pixels begins, at random."""
    most = [max(0, length - side) if 0 < side < min(shape[-2:]) else 0 for length in shape[-2:]]
    return np.stack([rng.integers(last + 1, size=n) for last in most], axis=1)


def squares(films: Tensor, side: int, places: Tensor) -> Tensor:
    """(B, H, W) -> (B, side, side), each film from its corner (`corners`); whole where side is 0 or not below.

    Args:
        places: (B, 2) int64, on the device of the films.
    """
    if not 0 < side < min(films.shape[1:]):
        return films
    rows, columns = places.unbind(1)
    return films.unfold(1, side, 1).unfold(2, side, 1)[torch.arange(len(films), device=films.device), rows, columns]


def to_float(images: Tensor) -> Tensor:
    """(B, H, W) uint8 -> (B, 1, H, W) float32 in [0, 1], channels last."""
    return images[:, None].float().div_(255).contiguous(memory_format=torch.channels_last)
