"""What reading films costs: the cache of decoded films beside the bare decoder, and a set larger than memory allows.

    python benchmarks/films_on_disk.py                      # both
    python benchmarks/films_on_disk.py --films 20000 --rounds 1

First, full-size JPEG files (1,600 x 1,250 phantoms) go into the cache and, in turn, only through Pillow's decoder on as
many threads. Then a network that costs next to nothing trains one epoch on a memory-mapped array of 256 x 256 films,
phantoms repeated, a tenth of them held out for validation; memory is read off along the way.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import speed  # noqa: E402

from pneumo_lib import data, pipeline, processes, runtime, training  # noqa: E402
from pneumo_lib.data import phantom  # noqa: E402
from pneumo_lib.recipe import Recipe  # noqa: E402
from pneumo_lib.steps import Corruption, DenoisingStep  # noqa: E402

SIZE, JPEGS, HEIGHT, WIDTH = 256, 200, 1250, 1600


def decode(path: Path) -> None:
    """What no reader of these files can leave out."""
    with Image.open(path) as film:
        film.load()


def decoding(rounds: int) -> None:
    """Films per second of the bare decoder and of the cache, in turn; prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        speed.draw(Path(folder, "films"), JPEGS, HEIGHT, WIDTH)
        paths = sorted(Path(folder, "films").rglob("*.jpg"))
        found = data.scan(Path(folder, "films"))
        rates: dict[str, list[float]] = {"decoder alone": [], "cache": []}
        busy = []
        for _ in range(rounds):
            start = time.perf_counter()
            with ThreadPoolExecutor(processes.cores()) as pool:
                list(pool.map(decode, paths))
            rates["decoder alone"].append(JPEGS / (time.perf_counter() - start))
            start, used = time.perf_counter(), time.process_time()
            data.load(found, image_size=SIZE, cache_dir=Path(folder, "cache"))
            seconds = time.perf_counter() - start
            rates["cache"].append(JPEGS / seconds)
            busy.append((time.process_time() - used) / seconds / processes.cores())
            shutil.rmtree(Path(folder, "cache"))
    print(f"{JPEGS} JPEG films of {WIDTH} x {HEIGHT}, {processes.cores()} threads, medians of {rounds}\n")
    print("| | films/s | range |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} to {max(values):.1f} |")
    print(f"\nprocessors busy while the cache is filled: {statistics.median(busy):.0%}\n", flush=True)


def repeated(folder: Path, films: int) -> data.ImageSet:
    """Phantoms, repeated to so many films in one memory-mapped file, split with a tenth of them for validation."""
    rng, findings = np.random.default_rng(0), list(phantom.FINDINGS)
    drawn = np.stack([phantom.draw(findings[k % 3], size=SIZE, rng=rng) for k in range(300)]).astype(np.uint8)
    with open(folder / "films.u8", "wb") as file:
        for start in range(0, films, len(drawn)):
            file.write(drawn[: films - start].data)
    images = np.memmap(folder / "films.u8", np.uint8, "r", shape=(films, SIZE, SIZE))
    numbers = np.arange(films)
    table = pd.DataFrame({"path": [f"{k:06d}.png" for k in numbers], "label": numbers % 3, "bytes": SIZE**2})
    table = table.assign(split=np.where(numbers % 10, "train", "val"), group=[f"patient {k // 3}" for k in numbers])
    return data.ImageSet(images, table, data.CLASSES, root=folder, key="phantoms, repeated")


class Cheap(nn.Module):
    """Two small convolutions on a quarter of the pixels: the films' way to it is what takes the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, stride=4))

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) -> (B, 1, H, W)."""
        return self.layers(films)


def own_megabytes() -> float:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


class Watched:
    """A denoiser's step that notes memory and time now and then."""

    def __init__(self, every: int) -> None:
        self.step = DenoisingStep()
        self.every, self.calls, self.seen = every, 0, [(0, time.perf_counter(), own_megabytes())]

    def __call__(self, model: nn.Module, *batch: torch.Tensor) -> object:
        outcome = self.step(model, *batch)
        self.calls += len(batch[0])
        if self.calls - self.seen[-1][0] >= self.every:
            self.seen.append((self.calls, time.perf_counter(), own_megabytes()))
        return outcome


def large_set(films: int) -> None:
    """One epoch over so many films; prints memory and speed along the way."""
    with tempfile.TemporaryDirectory() as folder:
        images = repeated(Path(folder), films)
        before, start = own_megabytes(), time.perf_counter()
        step = Watched(films // 8)
        parts = [pipeline.films(images, split) for split in ("train", "val")]
        recipe = Recipe(epochs=1, batch_size=64)
        task = training.Task(step, *parts, Corruption("gaussian", 0.5), recipe, seed=0, name="cheap")
        training.fit(Cheap(), task, Path(folder, "run"))
        seconds, size = time.perf_counter() - start, images.images.nbytes / 1e9
    print(f"{films:,} films of {SIZE} x {SIZE}, {size:.1f} GB memory-mapped, one epoch: {seconds:.0f} s in all\n")
    print("| films | films/s | own memory, MB |\n|---|---|---|")
    print(f"| before | | {before:.0f} |")
    for (done, then, _), (more, now, megabytes) in zip(step.seen, step.seen[1:], strict=False):
        print(f"| {more:,} | {(more - done) / (now - then):.0f} | {megabytes:.0f} |")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=200_000, help="films of the large set; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5, help="turns of decoder and cache; 0 leaves them out")
    given = parser.parse_args()
    print(f"{runtime.device_name()}\n")
    if given.rounds:
        decoding(given.rounds)
    if given.films:
        large_set(given.films)


if __name__ == "__main__":
    main()
