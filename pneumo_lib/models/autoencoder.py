"""The denoising autoencoder of the first source report (system A), 46,817 parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv2d(nn.Conv2d):
    """Nearest-neighbour upsampling by two, then a 3 x 3 convolution: the same numbers without the large picture.

    Each value of the small picture would stand in a 2 x 2 block, and what the nine weights make of a block is a
    transposed convolution with sums of them. It multiplies 2.25 times less, and the upsampled picture is never written.

    Shapes:
        input: (B, in_channels, H, W) float.
        output: (B, out_channels, 2 * H, 2 * W) float.

    Source: Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        weight = self._spread(self._spread(self.weight, 2), 3).transpose(0, 1)
        return F.conv_transpose2d(images, weight, self.bias, stride=2, padding=1)

    @staticmethod
    def _spread(weight: Tensor, dim: int) -> Tensor:
        """From three weights along a side to four: a value stands in two pixels, and each weight meets both."""
        first, second, third = weight.unbind(dim)
        return torch.stack([third, second + third, first + second, first], dim)


class Autoencoder(nn.Module):
    """Two convolutions down, two up; no skip connections, so fine detail is lost at the bottleneck.

    Two things are written otherwise than in the source and give the same numbers sooner. Each ReLU stands behind its
    max pool: the larger of two values keeps its place under ReLU, and a quarter of the values is left to handle. Each
    upsampling is one with the convolution behind it.

    Shapes:
        input: (B, 1, H, W) float, noisy, range [0, 1]; H and W multiples of 4.
        output: (B, 1, H, W) float, range (0, 1).

    Source: report A, section 3.2.1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 32, 3, stride=1, padding=1),
            nn.ReLU(),
            UpsampledConv2d(32, 32),
            nn.ReLU(),
            UpsampledConv2d(32, 1),
            nn.Sigmoid(),
        )

    def forward(self, noisy: Tensor) -> Tensor:
        return self.decoder(self.encoder(noisy))


NETWORKS = {"autoencoder": Autoencoder}
DENOISES = True
