"""Grayscale films for networks that were made for colour pictures."""

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def three_channels(images: Tensor) -> Tensor:
    """(B, 1, H, W) as (B, 3, H, W), a view: the film lies in memory once. Three channels come back as they are."""
    return images.expand(-1, 3, -1, -1)


def imagenet(images: Tensor) -> Tensor:
    """Films in [0, 1] as weights trained on ImageNet expect them.

    Shapes:
        images: (B, 1, H, W) or (B, 3, H, W) float, range [0, 1].
        returns: (B, 3, H, W), each channel less ImageNet's mean, over its standard deviation.
    """
    channels = zip(three_channels(images).split(1, dim=1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.cat([(channel - mean) / std for channel, mean, std in channels], dim=1)  # plain numbers: no transfer


def centred(images: Tensor) -> Tensor:
    """Films in [0, 1] as three channels in [-1, 1], which GoogLeNet's published weights expect."""
    return three_channels((images - 0.5) / 0.5)
