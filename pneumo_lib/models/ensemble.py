"""Networks that answer together; `trials` trains each from a seed of its own."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pneumo_lib.models import resnet34, torchvision_models

RESNET18, GOOGLENET = resnet34.NETWORKS["resnet18"], torchvision_models.NETWORKS["googlenet"]


class Ensemble(nn.Module):
    """The mean of the probabilities of several networks.

    Args:
        makes: each builds a member from image_size and n_classes.
        image_size: as the members take it.
        n_classes: number of output classes.

    Shapes:
        input: (B, 1, H, W) float, range [0, 1].
        output: (B, n_classes) float logits: the logarithm of the mean probability.

    `stages`, for feature maps and Grad-CAM, are those of the first member.

    Source: Lakshminarayanan, Pritzel and Blundell 2017, without adversarial training.
    """

    def __init__(self, makes: Sequence[Callable[..., nn.Module]], image_size: int = 224, n_classes: int = 2) -> None:
        super().__init__()
        self.members = nn.ModuleList(make(image_size=image_size, n_classes=n_classes) for make in makes)
        self.stages = tuple(f"members.0.{name}" for name in self.members[0].stages)

    def forward(self, images: Tensor) -> Tensor:
        answers = torch.stack([member(images).float().log_softmax(dim=1) for member in self.members])
        return answers.logsumexp(dim=0) - math.log(len(self.members))


NETWORKS = {
    "resnet18_x3": partial(Ensemble, (RESNET18,) * 3),
    "resnet18_googlenet_x2": partial(Ensemble, (RESNET18, GOOGLENET) * 2),
}
