"""The networks that source report B compares with, from torchvision: their state dicts are interchangeable with it.

All take films (B, 1, H, W) or with three channels, float in [0, 1], of any side from the smallest each can take, and
give logits (B, n_classes). The film becomes what the published ImageNet weights expect in a hook in front of the
network, so that no name in the state dict changes.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision import models as torchvision_models

from pneumo_lib.models.gray import centred, imagenet


def _prepared(prepare: Callable[[Tensor], Tensor], module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (prepare(inputs[0]),)


def _network(
    make: Callable[..., nn.Module],
    *stages: str,
    prepare: Callable[[Tensor], Tensor] = imagenet,
    **options: object,
) -> Callable[..., nn.Module]:
    """A function that builds one of torchvision's networks the way all networks here are built."""

    def build(image_size: int = 224, n_classes: int = 3) -> nn.Module:
        model = make(num_classes=n_classes, **options)
        model.stages = stages
        model.register_forward_pre_hook(partial(_prepared, prepare))
        return model

    return build


NETWORKS = {
    "alexnet": _network(torchvision_models.alexnet, *(f"features.{i}" for i in (1, 4, 7, 9, 11))),
    "vgg16": _network(torchvision_models.vgg16, *(f"features.{i}" for i in (3, 8, 15, 22, 29))),
    "googlenet": _network(
        torchvision_models.googlenet,
        *("conv3", "inception3b", "inception4e", "inception5b"),
        prepare=centred,  # what torchvision's transform_input makes of films normalised for the other networks
        aux_logits=False,
        init_weights=True,
    ),
    "resnet50": _network(torchvision_models.resnet50, "layer1", "layer2", "layer3", "layer4"),
    "densenet121": _network(
        torchvision_models.densenet121, *(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"
    ),
}
