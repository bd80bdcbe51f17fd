"""The four-convolution classifier "SimpleCNN" of source report E, 104,838,274 parameters at 224 x 224."""

from itertools import pairwise

from torch import Tensor, nn

from pneumo_lib.models.gray import three_channels


class CNN4(nn.Module):
    """Four convolutions, then three fully connected layers.

    Each ReLU stands behind its max pool: the same numbers, for a quarter of the work.

    Args:
        image_size: side of the square input in pixels; fixes the first fully connected layer.
        n_classes: number of output classes.

    Shapes:
        input: (B, 1, image_size, image_size) or with three channels, float, range [0, 1].
        output: (B, n_classes) float logits.

    Source: report E (seed 004), SimpleCNN.
    """

    stages = ("features.2", "features.5", "features.8", "features.11")

    def __init__(self, image_size: int = 224, n_classes: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((3, 64, 128, 256, 512)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(512 * (image_size // 16) ** 2, 1024), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(512, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(three_channels(images)))


NETWORKS = {"cnn4": CNN4}
