"""The ways to train this recipe, each in the plainest form its users would write: the contenders of `speed`.

A contender is made once, in a process of its own, and then takes turns: `turn()` trains on every film once and returns
how many there were. All read the same folder of JPEG files, put noise of sigma 0.5 on them, and train the same network
on batches of 32 with Adam.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import datasets, transforms

from pneumo_lib import engine, models, runtime, steps, training
from pneumo_lib.data import cache, folder
from pneumo_lib.recipe import Recipe

BATCH, SIGMA, LR, CLASSES = 32, 0.5, 1e-3, 3


class SourceAutoencoder(nn.Module):
    """The denoiser layer by layer as the source writes it; `models.autoencoder` computes the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(64, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(32, 1, 3, padding=1), nn.Sigmoid()),
        )

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(films))


class SourceCNN2(nn.Module):
    """The classifier as the source writes it; `models.cnn2` computes the same numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, 128), nn.ReLU()),
            *(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
        )

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(films))


def noisy(clean: torch.Tensor) -> torch.Tensor:
    """Films under fresh noise."""
    return torch.clamp(clean + SIGMA * torch.randn_like(clean), 0, 1)


class Plain:
    """(a) The source's loop: ImageFolder, one process, float32, the loss fetched at every step."""

    workers, autocast, layout = 0, False, torch.contiguous_format

    def __init__(self, task: str, data: Path, size: int) -> None:
        self.task, self.device = task, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.loader = self.load(data, size)
        self.denoiser = self.place(SourceAutoencoder())
        self.model = self.denoiser if task == "denoiser" else self.place(SourceCNN2(size))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR)

    def place(self, network: nn.Module) -> nn.Module:
        """On the device, in the layout of memory."""
        return network.to(self.device, memory_format=self.layout)

    def load(self, data: Path, size: int):
        """Batches of (films, labels)."""
        steps = [transforms.Grayscale(), transforms.Resize((size, size)), transforms.ToTensor()]
        films = datasets.ImageFolder(data, transforms.Compose(steps))
        pinned = torch.cuda.is_available() and self.workers > 0
        options = {"num_workers": self.workers, "persistent_workers": self.workers > 0, "pin_memory": pinned}
        return torch.utils.data.DataLoader(films, batch_size=BATCH, shuffle=True, **options)

    def loss(self, clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of one batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            if self.task == "denoiser":
                return F.mse_loss(self.model(noisy(clean)).float(), clean)
            with torch.no_grad():
                seen = self.denoiser(noisy(clean))
            return F.cross_entropy(self.model(seen).float(), labels)

    def turn(self) -> int:
        """One epoch."""
        count = 0
        for clean, labels in self.loader:
            clean = clean.to(self.device, memory_format=self.layout, non_blocking=True)
            loss = self.loss(clean, labels.to(self.device, non_blocking=True))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
            count += len(labels)
        return count


class Tuned(Plain):
    """(b) The same as PyTorch's tuning guide advises: worker processes, pinned memory, bfloat16, channels last.

    Without bfloat16 in hardware it stays with float32: to emulate it takes hundreds of times longer.
    """

    workers, autocast, layout = os.cpu_count() or 1, runtime.fast_bf16(), torch.channels_last


class Lightning(Tuned):
    """(c) Lightning's Trainer with its own precision plugin; the loader is that of (b)."""

    autocast, epochs = False, 3  # the Trainer casts

    def __init__(self, task: str, data: Path, size: int) -> None:
        import lightning

        super().__init__(task, data, size)
        way = self

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = way.model

            def training_step(self, batch, index):
                clean, labels = batch
                return way.loss(clean.to(memory_format=way.layout), labels)

            def configure_optimizers(self):
                return way.optimizer

        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        self.module = Module()
        precision = "bf16-mixed" if runtime.fast_bf16() else "32-true"
        self.trainer = lightning.Trainer(max_epochs=0, precision=precision, enable_model_summary=False, **quiet)

    def turn(self) -> int:
        """Several epochs more, as to start the Trainer takes time."""
        self.trainer.fit_loop.max_epochs += self.epochs
        self.trainer.fit(self.module, self.loader)
        return self.epochs * len(self.loader.dataset)


class Monai(Tuned):
    """(d) MONAI: films decoded once into a CacheDataset, the loop of (b) with its loader."""

    def load(self, data: Path, size: int):
        """Batches of (films, labels)."""
        from monai.data import CacheDataset, DataLoader

        found = datasets.ImageFolder(data)
        labels = dict(found.samples)
        steps = transforms.Compose([transforms.Grayscale(), transforms.Resize((size, size)), transforms.ToTensor()])
        cached = CacheDataset(list(labels), lambda path: (steps(found.loader(path)), labels[path]), progress=False)
        return DataLoader(cached, batch_size=BATCH, shuffle=True, num_workers=0)


class Ours:
    """This library: films decoded once into a memory-mapped array, and its training loop."""

    graphs = False

    def __init__(self, task: str, data: Path, size: int) -> None:
        kept = tempfile.mkdtemp(prefix="cache-", dir=data.parent)
        films = cache.load(folder.scan(data), image_size=size, cache_dir=kept)
        given = steps.Films(np.asarray(films.images), films.labels, films.table["path"].tolist())
        denoiser = models.build("autoencoder")
        if task == "denoiser":
            network, step = denoiser, steps.DenoisingStep("mse")
        else:
            network, step = models.build("cnn2", image_size=size, n_classes=CLASSES), steps.ClassificationStep(denoiser)
        recipe = Recipe(epochs=1000, batch_size=BATCH, lr=LR)
        noise = steps.Corruption("gaussian", SIGMA)
        made = training.Task(step, given, given, noise, recipe, seed=0)
        self.loop = training.Loop(network, made, Path(kept, "run"), graphs=self.graphs)
        self.epoch, self.count = 0, len(given)

    def turn(self) -> int:
        """One epoch."""
        self.epoch += 1
        self.loop.train(self.epoch)
        return self.count


class OursUnkept(Ours):
    """This library without `runtime.keep_memory`: what that alone is worth."""

    def __init__(self, *given) -> None:
        runtime.keep_memory = lambda: None
        super().__init__(*given)


class OursRecorded(Ours):
    """This library on a GPU, its steps recorded once and replayed."""

    graphs = True


CONTENDERS = {
    "ours": Ours,
    "plain loop": Plain,
    "tuned loop": Tuned,
    "Lightning": Lightning,
    "MONAI": Monai,
    **({"ours, recorded": OursRecorded} if torch.cuda.is_available() else {"ours, memory not kept": OursUnkept}),
}


class EagerInference:
    """Denoise and classify as the source does: float32, PyTorch's eager mode, no gradients."""

    def __init__(self, task: str, data: Path, size: int) -> None:
        torch.manual_seed(0)
        name = "unet_denoiser" if "unet" in task else "autoencoder"
        self.batch = 1 if "one film" in task else BATCH
        self.films = np.random.default_rng(0).random((BATCH, 1, size, size), dtype=np.float32)
        self.network = nn.Sequential(*self.networks(name, size)).eval()
        self.prepare(size)

    def networks(self, name: str, size: int) -> list[nn.Module]:
        """Denoiser and classifier."""
        denoiser = SourceAutoencoder() if name == "autoencoder" else models.build(name)
        return [denoiser, SourceCNN2(size)]

    def prepare(self, size: int) -> None:
        """What is done once."""

    @torch.no_grad()
    def answer(self, films: np.ndarray) -> np.ndarray:
        """Logits."""
        return self.network(torch.from_numpy(films)).numpy()

    def turn(self) -> int:
        """Every film once, then as often as a second allows."""
        count, end = 0, time.perf_counter() + 1
        while time.perf_counter() < end:
            for k in range(0, BATCH, self.batch):
                self.answer(self.films[k : k + self.batch])
            count += BATCH
        return count


class OurInference(EagerInference):
    """The networks of this library, compiled as the service has them, on all cores."""

    def networks(self, name: str, size: int) -> list[nn.Module]:
        """Denoiser and classifier."""
        return [models.build(name), models.build("cnn2", image_size=size, n_classes=CLASSES), _Single()]

    def prepare(self, size: int) -> None:
        """Compiled."""
        runtime.keep_memory()
        self.engine = engine.Engine(self.network)
        self.engine.compile(size, threads=os.cpu_count() or 1)

    def answer(self, films: np.ndarray) -> np.ndarray:
        """Logits."""
        return self.engine(films)[0]


class _Single(nn.Module):
    """One tensor as the engine expects it."""

    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor]:
        return (logits,)


INFERENCE = {"ours": OurInference, "eager float32": EagerInference}
