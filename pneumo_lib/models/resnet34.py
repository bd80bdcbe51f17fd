"""The residual networks of source report E, written out: ResNet-34, and its smaller sister ResNet-18."""

from functools import partial

from torch import Tensor, nn

from pneumo_lib.models.gray import imagenet


class BasicBlock(nn.Module):
    """relu(x + f(x)) with two 3 x 3 convolutions in f: (B, before, H, W) -> (B, after, H / stride, W / stride).

    Where the shape changes, x passes through a 1 x 1 convolution.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


def stage(before: int, after: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` basic blocks, of which the first changes the shape."""
    return nn.Sequential(BasicBlock(before, after, stride), *(BasicBlock(after, after) for _ in range(depth - 1)))


class ResNet(nn.Module):
    """A residual network of basic blocks; its state dict has the names and shapes of torchvision's.

    Args:
        depths: basic blocks in each of the four stages; (3, 4, 6, 3) is ResNet-34, (2, 2, 2, 2) is ResNet-18.
        image_size: any; global average pooling ends in the same shape.
        n_classes: number of output classes.

    Shapes:
        input: (B, 1, H, W) or with three channels, float, range [0, 1]; normalised as ImageNet's pictures are.
        output: (B, n_classes) float logits.

    Source: He et al. 2016, section 4.1; report E (seed 004). 21,797,672 and 11,689,512 parameters with 1000 classes.
    """

    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, depths: tuple[int, int, int, int], image_size: int = 224, n_classes: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(64, 128, depths[1], stride=2)
        self.layer3 = stage(128, 256, depths[2], stride=2)
        self.layer4 = stage(256, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(imagenet(images)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


NETWORKS = {"resnet18": partial(ResNet, (2, 2, 2, 2)), "resnet34": partial(ResNet, (3, 4, 6, 3))}
