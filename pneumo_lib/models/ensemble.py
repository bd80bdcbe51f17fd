"""Networks of one kind that answer together; `trials` trains each from a seed of its own."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pneumo_lib.models.resnet34 import ResNet


class Ensemble(nn.Module):
    """The mean of the probabilities of several networks.

    Args:
        make: builds a member from image_size and n_classes.
        count: of the members.
        image_size: as the members take it.
        n_classes: number of output classes.

    Shapes:
        input: (B, 1, H, W) float, range [0, 1].
        output: (B, n_classes) float logits: the logarithm of the mean probability.

    Feature maps and Grad-CAM show the first member.

    Source: Lakshminarayanan, Pritzel and Blundell 2017, without adversarial training.
    """

    def __init__(self, make: Callable[..., nn.Module], count: int, image_size: int = 224, n_classes: int = 2) -> None:
        super().__init__()
        self.members = nn.ModuleList(make(image_size=image_size, n_classes=n_classes) for _ in range(count))
        self.stages = tuple(f"members.0.{name}" for name in self.members[0].stages)

    def forward(self, images: Tensor) -> Tensor:
        answers = torch.stack([member(images).float().log_softmax(dim=1) for member in self.members])
        return answers.logsumexp(dim=0) - math.log(len(self.members))


NETWORKS = {"resnet18_x3": partial(Ensemble, partial(ResNet, (2, 2, 2, 2)), 3)}
