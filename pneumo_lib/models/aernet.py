"""The attention-enhanced residual network of source report B: ResNet-50 with CBAM after each of its four stages."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from pneumo_lib.models.gray import imagenet


class ChannelAttention(nn.Module):
    """Weighs each channel by what it holds on average and at most (CBAM, Woo et al. 2018, section 3.1).

    Args:
        channels: C of the input.
        reduction: the shared network inside goes from C to C / reduction (at least 1) and back.

    Shapes:
        input, output: (B, C, H, W) float.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.mlp = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False)
        )

    def attention(self, x: Tensor) -> Tensor:
        """The weights themselves: (B, C, 1, 1), range (0, 1)."""
        both = self.mlp(torch.stack([x.mean((2, 3)), x.amax((2, 3))]))
        return torch.sigmoid(both.sum(0))[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class SpatialAttention(nn.Module):
    """Weighs each place by what the channels hold there on average and at most (CBAM, section 3.1).

    Args:
        kernel_size: side of the convolution, odd.

    Shapes:
        input, output: (B, C, H, W) float.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """The weights themselves: (B, 1, H, W), range (0, 1)."""
        return torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


def cbam(channels: int, *, channel: bool, spatial: bool) -> nn.Sequential:
    """Channel attention, then spatial attention; without either, its input comes back."""
    return nn.Sequential(*([ChannelAttention(channels)] if channel else []), *([SpatialAttention()] if spatial else []))


class AERNet(ResNet):
    """ResNet-50 + CBAM after each stage + a head of two fully connected layers.

    25,255,371 parameters with three classes and 25,766,832 with 1000. The source reports 26.2 M with 1000; that is
    ResNet-50 with CBAM under its own head of one layer (26,253,744), without the 512-unit layer the source describes.

    The names of the body are torchvision's, so that the weights of its `resnet50` fit. From one seed, body and head
    are the same whatever attention there is: the arms of the ablation differ in nothing else.

    Args:
        image_size: any; global average pooling ends in the same shape.
        n_classes: number of output classes.
        channel, spatial: which attention there is; with neither it is ResNet-50 under the same head.

    Shapes:
        input: (B, 1, H, W) or with three channels, float, range [0, 1]; normalised as ImageNet's pictures are.
        output: (B, n_classes) float logits.

    Source: report B (seed 001); Woo et al. 2018.
    """

    stages = ("cbam1", "cbam2", "cbam3", "cbam4")

    def __init__(
        self, image_size: int = 224, n_classes: int = 3, *, channel: bool = True, spatial: bool = True
    ) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=1)
        self.fc = nn.Sequential(nn.Linear(2048, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_classes))
        self.cbam1 = cbam(256, channel=channel, spatial=spatial)
        self.cbam2 = cbam(512, channel=channel, spatial=spatial)
        self.cbam3 = cbam(1024, channel=channel, spatial=spatial)
        self.cbam4 = cbam(2048, channel=channel, spatial=spatial)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(imagenet(images)))))
        x = self.cbam2(self.layer2(self.cbam1(self.layer1(x))))
        x = self.cbam4(self.layer4(self.cbam3(self.layer3(x))))
        return self.fc(self.avgpool(x).flatten(1))


NETWORKS = {"aernet": AERNet}
