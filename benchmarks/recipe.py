"""The whole recipe of system A, end to end, phase by phase, beside the floor of the machine and the usual loops.

    python benchmarks/recipe.py --data FOLDER --out OUT     # on a GPU: 50 + 50 epochs on 5,029 films of 256 pixels
    python benchmarks/recipe.py --films 96 --epochs 1       # a try on drawings

Prints seconds and films per second of decoding, denoiser and classifier training (validation and stored states
included), then `speed` for the same tasks on the same machine. With --out both go into files there. --profile also says
what the steps of each training spend their time on, and how much of it a GPU is at work. --graphs trains by steps that
are recorded once and replayed (`pneumo_lib.replay`), on a GPU; --profile then looks at both kinds.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import roofline  # noqa: E402
import speed  # noqa: E402

from pneumo_lib import models, runtime, steps, training  # noqa: E402
from pneumo_lib.data import cache, folder  # noqa: E402
from pneumo_lib.recipe import Recipe  # noqa: E402

FILMS, EPOCHS, SIZE, BATCH, SIGMA = 5029, 50, 256, 32, 0.5  # of the source report
VALIDATION = 0.1


@contextmanager
def timed(rows: list[dict], phase: str, films: int) -> Iterator[dict]:
    """Add a row for a phase."""
    row: dict = {"phase": phase}
    start = time.perf_counter()
    yield row
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    row |= {"seconds": round(seconds, 1), "films/s": round(films / seconds, 1)}
    rows.append(row)


def run(data: Path, kept: Path, given: argparse.Namespace) -> list[dict]:
    """Decode, train the denoiser, train the classifier behind it."""
    rows: list[dict] = []
    machine = roofline.measure()
    found = folder.scan(data)
    with timed(rows, "decoding, once", len(found.table)):
        read = cache.load(found, image_size=given.size, cache_dir=kept / "cache")
    everything = steps.Films(np.asarray(read.images), read.labels, read.table["path"].tolist()).draw(
        given.films, seed=0
    )
    held = np.random.default_rng(0).permutation(len(everything)) < max(1, round(VALIDATION * len(everything)))
    train, val = (
        steps.Films(everything.images[part], everything.labels[part], [everything.keys[k] for k in part])
        for part in (np.flatnonzero(~held), np.flatnonzero(held))
    )
    recipe = Recipe(epochs=given.epochs, batch_size=BATCH, lr=1e-3)
    denoiser = models.build("autoencoder")
    n_classes = int(everything.labels.max()) + 1
    classifier = models.build("cnn2", image_size=given.size, n_classes=n_classes)
    for name, network, make in (
        ("denoiser", denoiser, lambda: steps.DenoisingStep("mse")),
        ("classifier, frozen denoiser in front", classifier, lambda: steps.ClassificationStep(denoiser)),
    ):
        task = training.Task(make(), train, val, steps.Corruption("gaussian", SIGMA), recipe, seed=0, name=name)
        with timed(rows, f"{name}: {given.epochs} epochs", len(train) * given.epochs) as row:
            fitted = training.fit(network, task, kept / name.partition(",")[0], graphs=given.graphs)
            row["validation"] = f"{fitted.history['val_score'].iloc[-1]:.3f}"
        for graphs in sorted({False, given.graphs}) if given.profile else []:
            place = kept / f"profile_{graphs}" / name.partition(",")[0]
            print(f"{name}{', recorded' * graphs}: {profile(network, task, place, graphs=graphs)}", flush=True)
        floor = roofline.floor(network.to("cpu"), given.size, machine)["films/s"]
        rows[-1]["share of the floor"] = f"{rows[-1]['films/s'] / floor:.0%}"
    rows.append({"phase": "all", "seconds": round(sum(row["seconds"] for row in rows), 1)})
    return rows


def profile(network: nn.Module, task: training.Task, place: Path, films: int = 20 * BATCH, *, graphs: bool) -> str:
    """Milliseconds of a training step by the clock and by what the device works, and its dearest operators.

    On a CPU to be watched costs more than time: what the profiler keeps splits the memory that large blocks come back
    to, and page faults are charged to whoever writes first. Only the clock is to be believed there.
    """
    few = replace(task, train=task.train.draw(films, seed=0))
    loop = training.Loop(network, few, place, graphs=graphs)
    loop.train(1)  # warms up
    count, gpu = math.ceil(len(few.train) / BATCH), torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * gpu
    start = time.perf_counter()
    loop.train(2)  # ends with a number from the device, so the clock waits for it
    clock = 1000 * (time.perf_counter() - start) / count
    with torch.profiler.profile(activities=kinds) as seen:
        loop.train(3)
    kind = "device" if gpu else "cpu"
    operators = seen.key_averages()
    busy = sum(getattr(one, f"self_{kind}_time_total") for one in operators) / 1000 / count
    table = operators.table(sort_by=f"self_{kind}_time_total", row_limit=20, max_name_column_width=60)
    return f"{clock:.2f} ms a step, of which the {kind} works {busy:.2f} (watched, over all threads)\n{table}"


def main() -> None:
    """Run the recipe, then the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of films; drawings by default")
    parser.add_argument("--films", type=int, default=FILMS, help="at most so many of them")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each network")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the films that the networks see")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison; 0 leaves it out")
    parser.add_argument("--speed-films", type=int, default=0, help="of each task of the comparison")
    parser.add_argument("--graphs", action="store_true", help="record steps once and replay them, on a GPU")
    parser.add_argument("--profile", action="store_true", help="print where the time of each training goes")
    parser.add_argument("--out", default="", help="folder for recipe.json and the files of speed.py")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recipe-") as place:
        data = Path(given.data) if given.data else Path(place, "films")
        if not given.data:
            speed.draw(data, given.films, 256, 256)
        rows = run(data, Path(place), given)
    columns = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name, "") for name in columns} for row in rows]
    print(
        f"{runtime.device_name()}, torch {torch.__version__}, commit {runtime.commit()}\n\n{speed.table(rows)}",
        flush=True,
    )
    if given.out:
        Path(given.out).mkdir(parents=True, exist_ok=True)
        written = {"device": runtime.device_name(), "graphs": given.graphs, "rows": rows}
        Path(given.out, "recipe.json").write_text(json.dumps(written, indent=1))
    if given.rounds:
        sys.argv = [
            "speed.py",
            "--rounds",
            str(given.rounds),
            "--size",
            str(given.size),
            "--only",
            "training$|in front$",
        ]
        sys.argv += ["--films", str(given.speed_films)]
        sys.argv += ["--out", given.out] if given.out else []
        speed.main()


if __name__ == "__main__":
    main()
