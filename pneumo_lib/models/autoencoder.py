"""The denoising autoencoder of the first source report (system A), 46,817 parameters."""

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Two convolutions down, two up; no skip connections, so fine detail is lost at the bottleneck.

    Each ReLU stands behind its max pool. Both orders give the same numbers, since the larger of two values keeps
    its place under ReLU, but this one handles a quarter of the values.

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
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(32, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, noisy: Tensor) -> Tensor:
        return self.decoder(self.encoder(noisy))


NETWORKS = {"autoencoder": Autoencoder}
DENOISES = True
