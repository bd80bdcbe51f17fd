"""The three-convolution classifier of source report D, 2,424,194 parameters at 150 x 150 with two classes."""

from torch import Tensor, nn

from pneumo_lib.models.gray import three_channels


class CNN3(nn.Module):
    """Three convolutions without padding, then a fully connected layer with sigmoid that holds 98 % of the weights.

    The film is given to all three input channels, since the source reads its grayscale films as colour pictures. Each
    ReLU stands behind its max pool: the same numbers, for a quarter of the work.

    Args:
        image_size: side of the square input in pixels; fixes the first fully connected layer.
        n_classes: number of output classes.

    Shapes:
        input: (B, 1, image_size, image_size) or with three channels, float, range [0, 1].
        output: (B, n_classes) float logits.

    Source: report D (seed 003).
    """

    stages = ("features.2", "features.5", "features.8")

    def __init__(self, image_size: int = 150, n_classes: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side = image_size
        for before, after in ((3, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3), nn.MaxPool2d(2), nn.ReLU()]
            side = (side - 2) // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * side**2, 128), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(128, n_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(three_channels(images)))


NETWORKS = {"cnn3": CNN3}
