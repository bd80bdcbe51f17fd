"""Our own denoiser: a small U-Net whose skip connections carry detail past the bottleneck."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))): (B, C, H, W) -> (B, C, H, W), without normalisation.

    Batch statistics would differ between processes and between noise levels, so there are none.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class UNetDenoiser(nn.Module):
    """A U-Net on pixel-unshuffled input.

    The stem folds each 2 x 2 patch into 4 channels: nothing is lost, and no layer runs at full resolution. Three
    scales below it see a wide neighbourhood; each scale's detail is added back on the way up. 978,692 parameters.

    Args:
        widths: channels per scale, finest first.
        stem: side of the patch folded into channels.

    Shapes:
        input: (B, 1, H, W) float, noisy, range [0, 1]; H and W multiples of stem * 2 ** (len(widths) - 1).
        output: (B, 1, H, W) float, not clipped in training; clipped to [0, 1] in evaluation.

    Source: U-Net (Ronneberger et al. 2015), the unshuffled stem of FFDNet (Zhang et al. 2018) and the residual
    blocks of DRUNet (Zhang et al. 2021), scaled down for two CPU cores.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128), stem: int = 2) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.stem = nn.Sequential(nn.PixelUnshuffle(stem), nn.Conv2d(stem**2, widths[0], 3, padding=1))
        self.encoders = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.decoders = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        self.head = nn.Sequential(nn.Conv2d(widths[0], stem**2, 3, padding=1), nn.PixelShuffle(stem))

    def forward(self, noisy: Tensor) -> Tensor:
        x, skips = self.stem(noisy), []
        for encode, down in zip(self.encoders, self.downs, strict=False):  # one encoder more: the bottom's
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.encoders[-1](x)
        for up, decode, skip in zip(reversed(self.ups), reversed(self.decoders), reversed(skips), strict=True):
            x = decode(up(x) + skip)
        clean = self.head(x)
        return clean if self.training else torch.clamp(clean, 0.0, 1.0)


NETWORKS = {"unet_denoiser": UNetDenoiser}
DENOISES = True
