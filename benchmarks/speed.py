"""Ours beside the ways people train this recipe today, in turn, on the same films, and beside what the machine allows.

    make bench        # or: pneumo benchmark

Every contender (see `contenders`) lives in a process of its own and takes one turn in every round, alone on the
machine. Prints tables, and with --out writes speed.json, speed.md and speed.png. A contender whose package is not
installed is left out and named.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from datetime import date
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import roofline  # noqa: E402
from contenders import CONTENDERS, INFERENCE, OursUnkept  # noqa: E402

from pneumo_lib import models, plots, runtime  # noqa: E402
from pneumo_lib.data import phantom  # noqa: E402

TRAINING = {  # task of the contender, films, their height and width
    "denoiser training": ("denoiser", 160, (256, 256)),
    "classifier training, frozen denoiser in front": ("classifier", 160, (256, 256)),
    "denoiser training from full-size JPEG files": ("denoiser", 96, (1250, 1600)),
}
ANSWERING = ["autoencoder, batches of 32", "autoencoder, one film", "unet, batches of 32", "unet, one film"]


def draw(folder: Path, films: int, height: int, width: int) -> None:
    """Phantoms as JPEG files of that size, FOLDER/CLASS/NUMBER.jpg, every third of a class."""
    rng, findings = np.random.default_rng(0), list(phantom.FINDINGS)
    for number in range(films):
        label = findings[number % 3]
        (folder / label).mkdir(parents=True, exist_ok=True)
        film = Image.fromarray(phantom.draw(label, size=256, rng=rng)).resize((width, height), Image.Resampling.BICUBIC)
        grain = np.asarray(film, np.float32) + rng.normal(
            0, 4, (height, width)
        )  # a film's, or the files would be small
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).convert("RGB").save(folder / label / f"{number}.jpg")


class Turns:
    """A contender in its process."""

    def __init__(self, name: str, task: str, data: Path, size: int) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--as", name, task, str(data), str(size)]
        quiet = os.environ | {"PNEUMO_QUIET": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
        )
        self.name, self.speeds, self.memory = name, [], 0.0
        self.present = bool(self.take())  # the first turn warms up
        self.speeds.clear()

    def take(self) -> str:
        """One turn; the answer is empty where the contender cannot take part."""
        print("turn", file=self.process.stdin, flush=True)
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                told = json.loads(line)
                self.speeds.append(told["films"] / told["seconds"])
                self.memory = told["megabytes"]
                return line
        return ""

    def end(self) -> None:
        """Let the process go."""
        self.process.stdin.close()
        self.process.wait(60)


def be(name: str, task: str, data: str, size: str) -> None:
    """What the process of a contender does."""
    torch.manual_seed(0)
    kinds = INFERENCE if task in ANSWERING else CONTENDERS
    contender = None
    for _ in sys.stdin:
        contender = contender or kinds[name](task, Path(data), int(size))
        start = time.perf_counter()
        films = contender.turn()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("\n" + json.dumps({"films": films, "seconds": seconds, "megabytes": peak}), flush=True)


def compare(names: list[str], task: str, data: Path, size: int, rounds: int) -> list[dict]:
    """One row per contender: median, range and the ratio of ours to it."""
    turns = [Turns(name, task, data, size) for name in names]
    there = [t for t in turns if t.present]
    for _ in range(rounds):
        for contender in there:
            contender.take()
    for contender in turns:
        contender.end()
    ours = statistics.median(there[0].speeds)
    rows = []
    for t in turns:
        if not t.present:
            rows.append({"way": t.name, "films/s": "not installed, or it failed"})
            continue
        middle = statistics.median(t.speeds)
        spread = f"{min(t.speeds):.1f} to {max(t.speeds):.1f}"
        rows.append(
            {"way": t.name, "films/s": round(middle, 1), "range": spread, "ours over it": f"{ours / middle:.1f} x"}
            | {"ms/film": round(1000 / middle, 2), "peak MB": round(t.memory)}
        )
    return rows


def floors(size: int, speeds: dict[str, float]) -> list[dict]:
    """One row per network: what the machine allows, and how near ours comes."""
    machine = roofline.measure()
    rows = []
    for name, task in (("autoencoder", "denoiser training"), ("unet_denoiser", ""), ("cnn2", "")):
        made = models.build(name) if name in models.DENOISERS else models.build(name, image_size=size, n_classes=3)
        floor = roofline.floor(made, size, machine)
        row = {"network": name} | {k: round(v, 2 if k == "GFLOP" else 1) for k, v in floor.items()}
        reached = speeds.get(task)
        rows.append(row | {"ours": f"{reached:.0f} ({reached / floor['films/s']:.0%})" if reached else "-"})
    kind = str(machine.dtype).removeprefix("torch.")
    rate = f"{machine.bandwidth / 1e9:.1f} GB/s copied, {machine.rate / 1e9:.0f} GFLOP/s in {kind}"
    return [*rows, {"network": rate}]


def table(rows: list[dict]) -> str:
    """Markdown."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows)])


def main() -> None:
    """Run everything, print it, and write it where asked."""
    if sys.argv[1:2] == ["--as"]:
        be(*sys.argv[2:6])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="side of the films that the networks see")
    parser.add_argument("--films", type=int, default=0, help="films of each training task; by default its own number")
    parser.add_argument("--only", default="", help="tasks whose name this regular expression finds")
    parser.add_argument("--out", default="", help="folder for speed.json, speed.md and speed.png")
    given = parser.parse_args()
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        for title, (task, films, shape) in TRAINING.items():
            if re.search(given.only, title):
                data = Path(folder, title)
                draw(data, given.films or films, *shape)
                names = [name for name in CONTENDERS if shape == (256, 256) or CONTENDERS[name] is not OursUnkept]
                found[title] = compare(names, task, data, given.size, given.rounds)
                print(f"\n{title}\n\n{table(found[title])}", flush=True)
        for task in ANSWERING:
            if re.search(given.only, task):
                found[task] = compare(list(INFERENCE), task, Path(folder), given.size, given.rounds)
                print(f"\ndenoise and classify: {task}\n\n{table(found[task])}", flush=True)
    speeds = {title: rows[0]["films/s"] for title, rows in found.items()}
    found["floor of a training step"] = floors(given.size, speeds)
    print(f"\nfloor of a training step\n\n{table(found['floor of a training step'])}")
    if given.out:
        write(Path(given.out), found, given)


def figure(found: dict[str, list[dict]]) -> Figure:
    """Bars: films per second of each way, one panel per training task, ranges as whiskers."""
    plots.use_style()
    titles = [title for title in TRAINING if title in found]
    drawn, panels = plt.subplots(1, len(titles), figsize=(4 * len(titles), 2.6), squeeze=False, layout="constrained")
    for title, ax in zip(titles, panels[0], strict=True):
        rows = [row for row in found[title] if "range" in row]
        speeds = np.array([row["films/s"] for row in rows])
        low, high = np.array([[float(end) for end in row["range"].split(" to ")] for row in rows]).T
        colours = ["#0072B2" if row["way"].startswith("ours") else "#999999" for row in rows]
        whiskers = np.clip([speeds - low, high - speeds], 0, None)
        ax.barh([row["way"] for row in rows], speeds, xerr=whiskers, color=colours)
        ax.invert_yaxis()
        ax.set(title="\n".join(textwrap.wrap(title, 34)), xlabel="films per second")
        ax.grid(axis="y", visible=False)
    return drawn


def write(folder: Path, found: dict[str, list[dict]], given: argparse.Namespace) -> None:
    """The tables with what they were measured on."""
    folder.mkdir(parents=True, exist_ok=True)
    where = (
        f"{platform.machine()}, {runtime.device_name()}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    command = f"python benchmarks/speed.py --rounds {given.rounds} --size {given.size}"
    head = f"{where}; {date.today()}, commit {runtime.commit()}; `{command}`; medians of {given.rounds} turns each."
    (folder / "speed.json").write_text(json.dumps({"measured": head, "tables": found}, indent=1) + "\n")
    if any(title in found for title in TRAINING):
        figure(found).savefig(folder / "speed.png", dpi=150)
    parts = [f"## {title}\n\n{table(rows)}" for title, rows in found.items()]
    (folder / "speed.md").write_text("\n\n".join([head, *parts]) + "\n")


if __name__ == "__main__":
    main()
