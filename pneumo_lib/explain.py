"""What a network looked at: Grad-CAM and feature maps of any model that takes images (B, 1, H, W).

The model is left as it was found: mode of every module, buffers, gradients and hooks. Two threads must not explain one
model at the same time, for they would read each other's activations.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumo_lib import models
from pneumo_lib.errors import DataError, UsageError


@dataclass(frozen=True)
class CamResult:
    """Grad-CAM of one batch.

    Attributes:
        maps: (B, h, w) float32, >= 0, in units of the class score and not normalised: images can be compared.
        positive: (B,) bool; False means "no positive evidence", the map is zero everywhere.
        layer: name of the explained layer inside the model.
    """

    maps: Tensor
    positive: Tensor
    layer: str


def grad_cam(
    model: nn.Module, images: Tensor, targets: Tensor | Sequence[int], *, layer: nn.Module | None = None
) -> CamResult:
    """Where the score of a class grows: Grad-CAM (Selvaraju et al., 2017) without normalisation.

    Works inside ``no_grad`` and ``inference_mode``, on frozen networks and with in-place activations; autocast is off.

    Args:
        model: from images (B, 1, H, W) to class scores (B, C).
        images: (B, 1, H, W); moved to the type and device of the model.
        targets: (B,) class indices to explain.
        layer: a convolutional stage; by default the last ``Conv2d`` in the order of registration, which is the order
            of execution in the models of this library. A layer that runs twice is explained at its last run.

    Raises:
        UsageError: no such layer, it does not lead to the scores, or targets that do not fit.
        DataError: the map holds NaN or infinity.
    """
    name, layer = _find(model, layer)
    with _ready(model, images) as batch, torch.enable_grad(), _captured({name: layer}, grad=True) as kept:
        scores = model(batch)
        activation = _stage(kept, name)
        score = _target_scores(scores, targets).sum()
        if not score.requires_grad:
            raise UsageError(f"layer {name!r} does not lead to the class scores: choose one before the classifier head")
        (slope,) = torch.autograd.grad(score, activation)
        maps = (slope.mean((2, 3), keepdim=True) * activation.detach()).sum(1).relu().float()
    if not maps.isfinite().all():
        raise DataError(f"Grad-CAM of layer {name!r} is not finite: look for NaN in the images or in the weights")
    return CamResult(maps, maps.amax((1, 2)) > 0, name)


def feature_maps(model: nn.Module, images: Tensor, layers: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
    """Outputs (B, C, h, w) float32 of the named layers, in order of execution; by default of every ``Conv2d``.

    Raises:
        UsageError: a layer that does not run, or whose output is not a stack of maps.
    """
    wanted = _stages(model) if layers is None else layers
    with _ready(model, images) as batch, torch.no_grad(), _captured(wanted, grad=False) as kept:
        model(batch)
    for name in wanted:
        _stage(kept, name)
    return {name: maps.float() for name, maps in kept.items()}


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) on the grid of the images: (B, H, W), bilinear."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


@contextmanager
def _captured(layers: Mapping[str, nn.Module], *, grad: bool) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of the layers while open; the hooks go whatever happens."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        # A leaf of its own, so that frozen networks have a gradient and nothing is computed before this layer;
        # the network goes on with a copy, because an in-place ReLU would overwrite what is kept.
        kept[name] = output.detach().requires_grad_(grad)
        return kept[name].clone()

    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output)))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _ready(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Evaluation mode in full precision, and the images as a copy the model can take; restores each module's mode."""
    if images.ndim != 4:
        raise UsageError(f"images of shape {tuple(images.shape)}: expected (B, 1, H, W)")
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters(), images)
    try:
        model.eval()
        with torch.inference_mode(False), torch.autocast(like.device.type, enabled=False):
            yield images.detach().to(like, copy=True)
    finally:
        for module, training in modes.items():
            module.training = training


def _stages(model: nn.Module) -> dict[str, nn.Module]:
    if found := models.stages(model):
        return found
    raise UsageError(f"{type(model).__name__} has no convolution: give the layer to look at")


def _find(model: nn.Module, layer: nn.Module | None) -> tuple[str, nn.Module]:
    if layer is None:
        return list(_stages(model).items())[-1]
    names = [name for name, module in model.named_modules() if module is layer]
    if not names:
        raise UsageError(f"the {type(layer).__name__} given as layer is no part of {type(model).__name__}")
    return names[0], layer


def _stage(kept: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in kept:
        raise UsageError(f"layer {name!r} gave no tensor: it did not run, or returns something else")
    if kept[name].ndim != 4:
        raise UsageError(f"layer {name!r} gives shape {tuple(kept[name].shape)}: expected maps (B, C, h, w)")
    return kept[name]


def _target_scores(scores: Tensor, targets: Tensor | Sequence[int]) -> Tensor:
    index = torch.as_tensor(targets, device=scores.device)
    if scores.ndim != 2 or index.shape != scores.shape[:1] or index.is_floating_point():
        raise UsageError(f"targets {tuple(index.shape)} for scores {tuple(scores.shape)}: expected (B,) for (B, C)")
    if not ((index >= 0) & (index < scores.shape[1])).all():
        raise UsageError(f"targets {index.tolist()}: expected class indices from 0 to {scores.shape[1] - 1}")
    return scores.gather(1, index.long()[:, None])
