"""What the ablation holds against our classifier and nothing else needs: other layers, other beginnings."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from pneumo_lib import trials
from pneumo_lib.models.resnet18_s2d import ResNet18S2D
from pneumo_lib.models.unet_denoiser import ResidualBlock


class Mirrored(nn.Module):
    """A classifier that sees each film, (B, 1, H, W), mirrored left to right."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, films: Tensor) -> Tensor:
        return self.model(films.flip(-1))


class BothWays(nn.Module):
    """A denoiser, (B, 1, H, W) -> (B, 1, H, W), averaged with what it makes of each film mirrored."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, noisy: Tensor) -> Tensor:
        return (self.model(noisy) + self.model(noisy.flip(-1)).flip(-1)) / 2


class Restorer(nn.Module):
    """Our classifier's layers as the way down of a U-Net: noisy films in, clean ones out, both (B, 1, H, W).

    What denoising teaches them they keep, so that a classifier can begin there; its head learns nothing here. H and W
    are multiples of patch * 8.

    Source: U-Net (Ronneberger et al. 2015); denoising before classifying as in Vincent et al. 2010.
    """

    def __init__(self, trunk: ResNet18S2D) -> None:
        super().__init__()
        stages = [getattr(trunk, name) for name in trunk.stages]
        widths = [stage[-1].conv2.out_channels for stage in stages]
        steps = list(pairwise(widths))
        self.trunk = trunk
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.decoders = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        self.restore = nn.Sequential(nn.Conv2d(widths[0], trunk.patch**2, 3, padding=1), nn.PixelShuffle(trunk.patch))

    def forward(self, noisy: Tensor) -> Tensor:
        x, maps = self.trunk.stem(noisy - 0.5), []
        for name in self.trunk.stages:
            x = getattr(self.trunk, name)(x)
            maps.append(x)
        x = maps.pop()
        for up, decode, skip in zip(reversed(self.ups), reversed(self.decoders), reversed(maps), strict=True):
            x = decode(up(x) + skip)
        return self.restore(x)


def strided(model: ResNet18S2D) -> ResNet18S2D:
    """The network with convolutions that stride where it averaged before, so that fine detail folds into coarse."""
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0] = nn.Identity()
        stage[1].conv1.stride = stage[1].downsample[0].stride = (2, 2)
    return model


@dataclass(frozen=True)
class Changed(trials.Trial):
    """A trial whose fresh network is changed before it is trained; its card does not tell, so keep it in no run."""

    change: Callable[[nn.Module], nn.Module] = lambda model: model

    def fresh(self) -> nn.Module:
        return self.change(super().fresh())


def changed(trial: trials.Trial, change: Callable[[nn.Module], nn.Module]) -> Changed:
    """The same trial, of a network changed so."""
    return Changed(**vars(trial), change=change)
