"""The five-block classifier of source report C, 6,638,818 parameters at 224 x 224."""

from itertools import pairwise

from torch import Tensor, nn

from pneumo_lib.models.gray import three_channels

WIDTHS = (16, 32, 64, 128, 256)


def separable(before: int, after: int) -> list[nn.Module]:
    """A separable convolution as Keras has it: each channel on its own, then their mixture, which alone has a bias."""
    depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
    return [depthwise, nn.Conv2d(before, after, 1), nn.ReLU()]


def block(before: int, after: int, dropout: float) -> nn.Sequential:
    """Two separable convolutions, batch normalisation, max pool: (B, before, H, W) -> (B, after, H // 2, W // 2)."""
    layers = [*separable(before, after), *separable(after, after), nn.BatchNorm2d(after), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


class CNN5(nn.Module):
    """Five blocks, most of separable convolutions, then four fully connected layers.

    Args:
        image_size: side of the square input in pixels; fixes the first fully connected layer.
        n_classes: number of output classes.

    Shapes:
        input: (B, 1, image_size, image_size) or with three channels, float, range [0, 1].
        output: (B, n_classes) float logits.

    Source: report C (seed 002).
    """

    stages = tuple(f"features.{i}" for i in range(len(WIDTHS)))

    def __init__(self, image_size: int = 224, n_classes: int = 2) -> None:
        super().__init__()
        first = nn.Sequential(
            *(nn.Conv2d(3, WIDTHS[0], 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(WIDTHS[0], WIDTHS[0], 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
        )
        dropouts = (0.0, 0.0, 0.2, 0.2)
        others = [block(*widths, dropout) for widths, dropout in zip(pairwise(WIDTHS), dropouts, strict=True)]
        self.features = nn.Sequential(first, *others)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(WIDTHS[-1] * (image_size // 32) ** 2, 512), nn.ReLU(), nn.Dropout(0.7)),
            *(nn.Linear(512, 128), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.3)),
            nn.Linear(64, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(three_channels(images)))


NETWORKS = {"cnn5": CNN5}
