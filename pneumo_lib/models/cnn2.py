"""The two-convolution classifier of the first source report (system A), 16,786,371 parameters at 256 x 256."""

from torch import Tensor, nn


class CNN2(nn.Module):
    """Two convolutions, then three fully connected layers that hold 99.9 % of the weights.

    Args:
        image_size: side of the square input in pixels, a multiple of 4; fixes the first fully connected layer.
        n_classes: number of output classes.

    Shapes:
        input: (B, 1, image_size, image_size) float, range [0, 1].
        output: (B, n_classes) float logits.

    Source: report A, section 3.3.1.
    """

    def __init__(self, image_size: int = 256, n_classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * (image_size // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Linear(32, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


NETWORKS = {"cnn2": CNN2}
