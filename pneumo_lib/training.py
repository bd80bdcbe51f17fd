"""One training loop for denoisers and classifiers.

What differs between the two is a `Step` (see `steps`). Accelerate owns the device, the precision and the processes.
Order, augmentation and noise are functions of (seed, epoch, step), and each process draws those of the whole batch and
keeps its own rows: several processes, or a run that was killed and started again, meet exactly the films that one
uninterrupted process would. Dropout draws from torch's global generator, whose state is stored with the rest; batch
normalisation sees the rows of its own process only.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pneumo_lib import augmentation, noise, replay, runs, runtime
from pneumo_lib.errors import TrainingError
from pneumo_lib.recipe import Recipe
from pneumo_lib.steps import Corruption, Films, Step
from pneumo_lib.training_machinery import (
    RunningMean,
    Tally,
    TrainingState,
    batches,
    class_weights,
    corners,
    drawn_order,
    fingerprint,
    hash_of,
    on_device,
    resident,
    share,
    squares,
    take,
    to_float,
)

SHOWN = 2**31  # bytes of validation films, clean and noisy, that a GPU keeps at most


@dataclass(frozen=True)
class Fitted:
    """A trained network: its best weights loaded, evaluation mode, on the CPU.

    Attributes:
        name: of the task.
        history: one row per epoch: epoch, train_loss, train_score, val_loss, val_score, lr, seconds.
        best_epoch: the epoch whose weights these are, chosen on validation as the recipe says.
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
        kind = [getattr(self.step, "loss", None), getattr(self.step, "smoothing", 0.0)]
        facts = [kind, asdict(self.corruption), asdict(self.recipe), self.seed, self.precision]
        facts += [
            (films.keys, films.labels.tolist(), films.images.shape, hash_of(films.images))
            for films in (self.train, self.val)
        ]
        return fingerprint(facts, model, getattr(self.step, "denoiser", None))


def fit(model: nn.Module, task: Task, folder: Path, *, graphs: bool = False) -> Fitted:
    """Train a network, or take up where an earlier call stopped.

    After every epoch the state is stored in `folder`, or after some where a large one would hold up short epochs; a
    run killed at any moment and started again ends with the same weights. A folder whose training has ended gives its
    result at once.

    Args:
        model: fresh weights; trained in place.
        folder: gets history.csv, the newest state, and checkpoints/epoch_NN.safetensors where the recipe asks for them.
        graphs: on a GPU alone, steps are recorded once and replayed (`replay`); elsewhere it changes nothing.

    Raises:
        TrainingError: the loss is not a number (the last good state is kept), a batch does not fit in memory, or
            `folder` holds a training of another task.
    """
    loop = Loop(model, task, Path(folder), graphs=graphs)
    loop.state.resume(loop.accelerator)
    try:
        while not loop.state.finished:
            loop.run_epoch()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise _too_large(task) from error
        raise
    return loop.result()


class Loop:
    """One training as it runs; `run_epoch` and what it calls are the part to read. Arguments as `fit` has them."""

    def __init__(self, model: nn.Module, task: Task, folder: Path, *, graphs: bool = False) -> None:
        self.task, self.folder = task, folder
        self.accelerator = runtime.accelerator(task.precision)
        self.state = TrainingState(folder, task.recipe, task.fingerprint(model))
        self.device = self.accelerator.device
        self.raw = model.to(self.device, memory_format=torch.channels_last)
        self.averaged = self._averaged()
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[task.recipe.optimizer]
        options = {"lr": task.recipe.lr, "weight_decay": task.recipe.weight_decay, "fused": True}
        self.optimizer = kind(model.parameters(), **options)
        self.model, _ = self.accelerator.prepare(self.raw, self.optimizer)  # its wrapper reads the disk in every step
        if denoiser := getattr(task.step, "denoiser", None):
            denoiser.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.images, self.labels = (resident(part, self.device) for part in (task.train.images, task.train.labels))
        self.shown: list[tuple[Tensor, Tensor, Tensor, int]] = []
        self.n_classes = int(max(task.train.labels.max(), task.val.labels.max())) + 1
        self.weights = class_weights(task.train.labels, task.recipe.imbalance).to(self.device)
        recorded = graphs and self.device.type == "cuda" and self.accelerator.num_processes == 1
        self.gradients = replay.Replayed(self._gradients, self.raw.parameters()) if recorded else self._gradients

    def run_epoch(self) -> None:
        """Train on every film once, validate, record it."""
        epoch, every, start = len(self.state.history) + 1, self.task.recipe.checkpoint_every, time.perf_counter()
        row = {"epoch": epoch} | self.train(epoch) | self.validate()
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start}
        if not math.isfinite(row["val_loss"]):
            raise self._not_a_number("in validation")
        if every and epoch % every == 0:
            runs.save_weights(checkpoint(self.folder, epoch), self.judged.state_dict())
        self.state.add(row, self.judged, self.accelerator)

    def train(self, epoch: int) -> dict[str, float]:
        """One pass over the training films in a fresh order, under fresh noise; their mean loss and score."""
        recipe, seed, films = self.task.recipe, self.task.seed, self.task.train
        order = drawn_order(films.labels, recipe.imbalance, np.random.default_rng([seed, epoch]))
        steps, tally = batches(order, recipe.batch_size), Tally(len(order), self.device)
        losses = torch.zeros(len(steps), device=self.device)
        self.model.train()
        title = f"{self.task.name}: epoch {epoch} of {recipe.epochs}"
        places = [
            corners(len(rows), films.images.shape, recipe.crop, np.random.default_rng([seed, epoch, number]))
            for number, rows in enumerate(steps)
        ]
        there, places = (on_device(parts, self.device) for parts in (steps, places))
        for number, rows in enumerate(runtime.progress(steps, desc=title)):
            chosen, labels = (take(source, rows, there[number]) for source in (self.images, self.labels))
            clean = to_float(squares(chosen, recipe.crop, places[number]))
            drawn = noise.named_generator(f"{seed},{epoch},{number}", device=self.device)
            clean, targets = augmentation.augment(clean, recipe.augmentation, drawn), labels
            if recipe.mixup:
                kept = np.random.default_rng([seed, epoch, number]).beta(recipe.mixup, recipe.mixup)
                clean, targets = augmentation.mix(clean, labels, self.n_classes, kept=kept)
            noisy = self.task.corruption(clean, drawn)
            mine, counted = share(len(rows), self.accelerator)
            pulls = self.weights[labels[mine]] * ((counted > 0) * self.accelerator.num_processes / len(rows))
            self._set_lr((epoch - 1) * len(steps) + number, recipe.epochs * len(steps))
            loss, score = self.gradients(clean[mine], noisy[mine], targets[mine], pulls)
            self.optimizer.step()
            if self.averaged:
                self.averaged.update_parameters(self.raw)
            losses[number] = loss.mean()
            tally.add(loss, score, counted)
        means = dict(zip(("train_loss", "train_score"), tally.means(), strict=True))
        if not math.isfinite(means["train_loss"]):
            raise self._not_a_number(self._first_bad(losses, steps))
        return means

    def _gradients(self, clean: Tensor, noisy: Tensor, targets: Tensor, pulls: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradients of a batch at the weights; its loss and score, film by film.

        Args:
            pulls: (B,) float32, what each film's loss counts for.
        """
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            outcome = self.task.step(self.model, clean, noisy, targets)
        self.accelerator.backward((outcome.loss * pulls).sum())
        return outcome.loss.detach(), outcome.score.detach()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss and score over the validation films, each film under its own fixed noise."""
        tally = Tally(len(self.task.val), self.device)
        self.judged.eval()
        for clean, noisy, labels, counted in self.shown or self._show():
            with self.accelerator.autocast():
                outcome = self.task.step(self.judged, clean, noisy, labels)
            tally.add(outcome.loss, outcome.score, counted)
        return dict(zip(("val_loss", "val_score"), tally.means(), strict=True))

    def _show(self) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Validation films clean and noisy, their labels, and how many of them count, batch by batch.

        A GPU keeps them: to draw the same noise again on the CPU would take longer than the networks.
        """
        films, noise_of = self.task.val, self.task.corruption
        for rows in batches(np.arange(len(films)), 64):
            mine, counted = share(len(rows), self.accelerator)
            keys = [films.keys[row] for row in rows[mine]]
            clean = to_float(torch.as_tensor(films.images[rows[mine]], device=self.device))
            labels = torch.as_tensor(films.labels[rows[mine]], device=self.device)
            noisy = noise.corrupt_each(clean, keys, noise_of.kind, noise_of.strength, seed=self.task.seed)
            if self.device.type == "cuda" and 2 * 4 * math.prod(films.images.shape) < SHOWN:
                self.shown.append((clean, noisy, labels, counted))
            yield clean, noisy, labels, counted

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the one trained, or the running mean of its weights."""
        return self.averaged.module if self.averaged else self.raw

    def _averaged(self) -> RunningMean | None:
        """The running mean, where the recipe asks for it; part of the stored state."""
        if not self.task.recipe.ema:
            return None
        averaged = RunningMean(self.raw, self.task.recipe.ema)
        self.accelerator.register_for_checkpointing(averaged)
        return averaged

    def result(self) -> Fitted:
        """The network with its best weights, and its history."""
        self.raw.load_state_dict(self.state.best)
        history = pd.DataFrame(self.state.history)
        runs.write_text(self.folder / "history.csv", history.to_csv(index=False))
        self.accelerator.unwrap_model(self.raw, keep_fp32_wrapper=False)
        model = self.raw.to("cpu", memory_format=torch.contiguous_format).eval()
        return Fitted(self.task.name, model, history, self.state.best_epoch)

    def _set_lr(self, step: int, total: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.task.recipe, step, total)

    def _first_bad(self, losses: Tensor, steps: list[np.ndarray], most: int = 3) -> str:
        bad = self.accelerator.reduce(losses).isfinite().logical_not().nonzero()  # in any process
        step = int(bad[0]) if len(bad) else len(losses) - 1
        names = [self.task.train.keys[row] for row in steps[step]]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return f"at step {step + 1} of {len(losses)}, films {', '.join(names[:most])}{more}"

    def _not_a_number(self, where: str) -> TrainingError:
        done, newest = len(self.state.history), self.state.kept
        kept = f"The state after epoch {newest} is kept in {self.folder}. " if newest else ""
        return TrainingError(
            f"{self.task.name}: the loss is not a number in epoch {done + 1}, {where} "
            f"(learning rate {self.optimizer.param_groups[0]['lr']:g}). {kept}"
            "Look at the films, or start again in a new folder with a lower learning rate."
        )


def _too_large(task: Task) -> TrainingError:
    """What to do where a batch does not fit in memory."""
    size, side = task.recipe.batch_size, task.train.images.shape[-1]
    advice = f"batch_size {size // 2}" if size > 1 else "a smaller image_size"
    return TrainingError(f"{task.name}: {size} films of {side} x {side} pixels do not fit in memory. Try {advice}.")


def checkpoint(folder: Path, epoch: int) -> Path:
    """Path of the weights after that epoch, kept where the recipe says `checkpoint_every`."""
    return folder / "checkpoints" / f"epoch_{epoch:02d}.safetensors"


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The learning rate of a step, counted from 0, of `total` steps in the whole training."""
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * min((step + 1) / (0.05 * total), 0.5 * (1 + math.cos(math.pi * step / total)))
