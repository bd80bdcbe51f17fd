"""Our own classifier for noisy films: a residual network that never works at full resolution."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from pneumo_lib.models.resnet34 import stage


class ResNet18S2D(nn.Module):
    """ResNet-18 of smaller widths on a space-to-depth stem, with anti-aliased downsampling.

    The stem folds each patch of pixels into channels, so that its convolution sees all of a neighbourhood's noise at
    once and the first stage runs at a sixteenth of the positions. Between stages the maps are averaged over 2 x 2
    positions before any convolution strides over them. 1,576,659 parameters with three classes.

    Args:
        image_size: any; films whose sides are no multiples of `patch` get a gray margin.
        n_classes: number of output classes.
        widths: channels per stage, finest first.
        patch: side of the patch folded into channels.
        dropout: share of the pooled features left out in training.

    Shapes:
        input: (B, 1, H, W) float, range [0, 1].
        output: (B, n_classes) float logits.

    Source: He et al. 2016 (basic blocks); the unshuffled stem of FFDNet (Zhang et al. 2018); averaging before
    striding as in Zhang 2019 and the ResNet-D of He et al. 2019.
    """

    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        image_size: int = 256,
        n_classes: int = 3,
        widths: tuple[int, int, int, int] = (24, 48, 96, 192),
        patch: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        first, self.patch = widths[0], patch
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(patch),
            nn.Conv2d(patch**2, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
        )
        self.layer1 = stage(first, first, 2, stride=1)
        self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(nn.AvgPool2d(2), *stage(before, after, 2, stride=1)) for before, after in pairwise(widths)
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1], n_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = self.stem(F.pad(images - 0.5, (0, -width % self.patch, 0, -height % self.patch)))
        return self.head(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


NETWORKS = {"resnet18_s2d": ResNet18S2D}
