"""What in the steps of a training would wait for a GPU, found without one: python pretend_gpu.py.

Tensors here only know their shape and that they lie on "cuda" (PyTorch's FakeTensor). Whatever is sent to the GPU or
fetched from it between the first and the last step of an epoch is noted with its place in the code: each makes Python
wait until the GPU has done everything before, and none may happen while a CUDA graph is recorded. Prints one JSON
object, the places for each training. Of the gradients only the shapes are made: going backward needs a driver.
"""

import contextlib
import json
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics.functional.image import peak_signal_noise_ratio

from pneumo_lib import models, noise, runtime, training
from pneumo_lib.recipe import Augmentation, Recipe
from pneumo_lib.steps import ClassificationStep, Corruption, DenoisingStep, Films, Outcome, Step

GPU, SIDE = torch.device("cuda", 0), 224
FETCHES = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"}
HOUSE = Path(training.__file__).parent


class Drawn(TorchFunctionMode):
    """Random numbers of a generator lie on the GPU, as those of a GPU's generator do."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Leave out the generator, which is one of the CPU."""
        given = dict(kwargs or {})
        if given.pop("generator", None) is not None:
            given["device"] = GPU
        return func(*args, **given)


class Waits(TorchDispatchMode):
    """Notes what crosses between CPU and GPU while `armed`."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.armed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do it, and look where everything lies."""
        name, before = func._schema.name, self._devices((args, kwargs))
        crosses = name in FETCHES and "cuda" in before
        crosses |= name.startswith("aten::index") and len(before) > 1
        if crosses:
            self._note(name)
        made = func(*args, **(kwargs or {}))
        if name in ("aten::_to_copy", "aten::copy_") and len(before | self._devices(made)) > 1:
            self._note(name)
        return made

    @staticmethod
    def _devices(values: Any) -> set[str]:
        return {one.device.type for one in tree_leaves(values) if isinstance(one, Tensor)}

    def _note(self, name: str) -> None:
        if self.armed:
            frames = [one for one in traceback.extract_stack() if Path(one.filename).parent == HOUSE]
            self.places.append(f"{name} at {Path(frames[-1].filename).name}, line {frames[-1].lineno}")


class Alone:
    """One process on one GPU, without a driver."""

    device, num_processes, process_index = GPU, 1, 0
    model: nn.Module

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        self.model = model
        return model, optimizer

    def autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()  # the casts need a driver, and stay where their numbers are

    def backward(self, loss: Tensor) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    def register_for_checkpointing(self, averaged: nn.Module) -> None:
        """Nothing is stored."""


def moved(network: nn.Module) -> nn.Module:
    """The network with weights on the GPU, of which there are only the shapes."""
    for layer in network.modules():
        for name, value in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(torch.empty_like(value, device=GPU)))
        for name, value in list(layer.named_buffers(recurse=False)):
            setattr(layer, name, torch.empty_like(value, device=GPU))
    return network


def waits(name: str, step: Step, recipe: Recipe, corruption: Corruption) -> list[str]:
    """The places that one epoch of three steps, the last one short, would wait at."""
    seen = Waits()

    def watched(items: Iterable[np.ndarray], **_: Any) -> Iterator[np.ndarray]:
        for item in items:
            seen.armed = True
            yield item
            seen.armed = False

    runtime.progress = watched
    rows = np.arange(10)
    films = Films(np.zeros((10, SIDE, SIDE), np.uint8), rows % 3, [str(row) for row in rows])
    built = [models.build(name, **({"image_size": SIDE} if name in models.CLASSIFIERS else {}))]
    built.append(models.build("autoencoder"))
    with FakeTensorMode(allow_non_fake_inputs=True), Drawn(), seen, tempfile.TemporaryDirectory() as folder:
        network, denoiser = map(moved, built)
        if isinstance(step, ClassificationStep):
            step = ClassificationStep(denoiser)
        loop = training.Loop(network, training.Task(step, films, films, corruption, recipe, seed=0), Path(folder))
        loop.train(1)
    return seen.places


def old_score(model: nn.Module, clean: Tensor, noisy: Tensor, labels: Tensor) -> Outcome:
    """A step that waits: torchmetrics sends the number of pixels to the device."""
    restored = model(noisy).float()
    score = peak_signal_noise_ratio(restored.detach(), clean, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return Outcome((restored - clean).square().mean(dim=(1, 2, 3)), score)


def asks(model: nn.Module, clean: Tensor, noisy: Tensor, labels: Tensor) -> Outcome:
    """A step that waits: it looks at a number."""
    outcome = DenoisingStep()(model, clean, noisy, labels)
    if not outcome.loss.isfinite().all():
        raise ValueError("not a number")
    return outcome


def main() -> None:
    """Every network as the sources train it, the recipe with everything on, and two steps that do wait."""
    runtime.accelerator = lambda precision: Alone()
    noise.named_generator = lambda name, device: torch.Generator()
    training.Task.fingerprint = lambda task, model: "not hashed"
    training.Tally.means = lambda tally: (0.0, 0.0)  # there the epoch has ended, and waiting is right
    torch.cuda.mem_get_info = lambda device: (2**40, 2**40)
    nn.Module.to = lambda network, *_, **__: network  # made where they belong
    plain, gaussian = Recipe(epochs=1, batch_size=4), Corruption("gaussian", 0.5)
    changed = Augmentation(rotation=5, shift=0.1, flip=True, contrast=0.2, gamma=0.2, share=0.5)
    full = Recipe(epochs=1, batch_size=4, schedule="cosine", ema=0.9, mixup=0.2, augmentation=changed)
    cases = {name: (name, ClassificationStep(), plain, gaussian) for name in models.CLASSIFIERS}
    cases |= {name: (name, DenoisingStep(), plain, gaussian) for name in models.DENOISERS}
    cases["everything"] = ("resnet18_s2d", ClassificationStep(), full, Corruption("gaussian", 0.5, share=0.5))
    cases["squares"] = ("unet_denoiser", DenoisingStep("l1"), Recipe(epochs=1, batch_size=4, crop=32), gaussian)
    cases["torchmetrics"], cases["asks"] = (("autoencoder", step, plain, gaussian) for step in (old_score, asks))
    print(json.dumps({case: _waits(*given) for case, given in cases.items()}))


def _waits(*given: Any) -> list[str]:
    try:
        return waits(*given)
    except torch._subclasses.fake_tensor.DataDependentOutputException as error:  # nobody knows the number asked for
        return [f"{error.func._schema.name} asked for a number"]


if __name__ == "__main__":
    main()
