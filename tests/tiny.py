"""Small films, networks and tasks that the tests of training, evaluation and ablation share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from pneumo_lib import models, runtime
from pneumo_lib.recipe import Recipe
from pneumo_lib.steps import ClassificationStep, Corruption, Films, Outcome, Step
from pneumo_lib.training import Fitted, Task

PLACES = ((8, 8), (8, 24), (24, 16))  # where the bright spot of each class lies, in a film of 32 pixels


def films(n: int, *, size: int = 32, seed: int = 0) -> Films:
    """Smooth random films with one bright spot, whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    pictures = np.empty((n, size, size), dtype=np.uint8)
    for i, label in enumerate(labels):
        spot = np.zeros((size, size))
        spot[tuple(place * size // 32 for place in PLACES[label])] = 1
        film = gaussian_filter(rng.normal(size=(size, size)), size / 10) * size / 5
        film += 6 * gaussian_filter(spot, size / 12) / gaussian_filter(spot, size / 12).max()
        pictures[i] = 255 * (film - film.min()) / np.ptp(film)
    return Films(pictures, labels.astype(np.int64), [f"film_{seed}_{i:03d}.png" for i in range(n)])


def network(name: str = "cnn2", *, seed: int = 0, size: int = 32) -> torch.nn.Module:
    """Fresh weights that are a function of the seed."""
    runtime.seed_everything(seed)
    return models.build(name, image_size=size) if name == "cnn2" else models.build(name)


def task(step: Step | None = None, *, n: int = 12, **options: Any) -> Task:
    """A task over `n` films, of two epochs with a short last batch; `options` are fields of Recipe or of Task."""
    recipe = {"epochs": 2, "batch_size": 5}
    recipe |= {name: options.pop(name) for name in list(options) if name in Recipe.__dataclass_fields__}
    rest = {"corruption": Corruption(strength=0.2), "seed": 0, "precision": "no"}
    rest |= {"train": films(n), "val": films(7, seed=1)}
    return Task(step or ClassificationStep(), recipe=Recipe(**recipe), **(rest | options))


@dataclass
class Tampered:
    """A step whose outcomes are changed: `change(model, calls so far, outcome)` gives what the loop gets to see."""

    step: Step
    change: Callable[[torch.nn.Module, int, Outcome], Outcome]
    calls: int = 0

    def __call__(self, model: torch.nn.Module, *batch: torch.Tensor) -> Outcome:
        self.calls += 1
        return self.change(model, self.calls, self.step(model, *batch))

    def __getattr__(self, name: str) -> Any:
        if name in ("loss", "denoiser"):
            return getattr(self.step, name)
        raise AttributeError(name)


class Stop(Exception):
    """Stands for a user who presses Ctrl-C, or a machine that goes away."""


def stop_in_epoch(job: Task, epoch: int) -> Task:
    """The same task, stopped at the first training step of that epoch."""
    steps = -(-len(job.train) // job.recipe.batch_size)
    training_steps = 0

    def change(model: torch.nn.Module, calls: int, outcome: Outcome) -> Outcome:
        nonlocal training_steps
        training_steps += model.training
        if training_steps > (epoch - 1) * steps:
            raise Stop
        return outcome

    return replace(job, step=Tampered(job.step, change))


def curve(fitted: Fitted) -> list[dict[str, float]]:
    """The history without the seconds, which no two runs share."""
    return fitted.history.drop(columns="seconds").to_dict("records")


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same names and, bit for bit, the same values."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
