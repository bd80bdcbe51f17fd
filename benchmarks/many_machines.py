"""How work goes faster with processes: one core, its machine's cores as threads, two processes, two hosts.

    python benchmarks/many_machines.py --rounds 3

Trains, evaluates, ablates and diagnoses phantoms in each way, in turn, and checks that all ways find the same. Hosts
are network namespaces (see `hosts`), left out where they cannot be made. Efficiency is films per second, or grids,
over twice those of one core.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import hosts  # noqa: E402

from pneumo_lib import ablation, config, diagnosis, evaluation, pipeline, processes, runs, runtime  # noqa: E402

WAYS = ("one core", "two threads", "two processes", "two hosts")
TASKS = ("train", "evaluate", "ablate", "diagnose")
SIZE, FILES = 128, 600
OPTIONS = {"image_size": SIZE, "epochs": 2, "batch_size": 32, "precision": "auto", "phantoms": 1.0}


def work(task: str, folder: Path) -> tuple[float, float, str]:
    """(Seconds, films or grids done in them, what was found), of a task in this process and those beside it."""
    settled = config.make("demo", **OPTIONS)
    images = pipeline.open_data(settled, folder / "cache")
    run = runs.open_run(folder / "run", settled)
    return {"train": _train, "evaluate": _evaluate, "ablate": _ablate, "diagnose": _diagnose}[task](run, images, folder)


def _train(run: runs.Run, images: object, folder: Path) -> tuple[float, float, str]:
    place = processes.by_first(lambda: tempfile.mkdtemp(dir=folder))
    fitted = pipeline.train_denoiser(runs.Run(Path(place), run.config), images, "unet_denoiser")
    last = fitted.history.iloc[-1]  # the first epoch warms up
    films = len(pipeline.films(images, "train")) + len(pipeline.films(images, "val"))
    return last["seconds"], films, f"{last['val_loss']:.3f}"


def _evaluate(run: runs.Run, images: object, folder: Path) -> tuple[float, float, str]:
    denoiser = run.load_model("denoiser", "unet_denoiser").model
    classifier = run.load_model("classifier", "cnn2_on_unet_denoiser").model
    films = pipeline.films(images, "train")
    return _timed(lambda: _hash(_classified(classifier, films, denoiser)), len(films))


def _classified(classifier: object, films: object, denoiser: object) -> bytes:
    return evaluation.classify(classifier, films, evaluation.View("gaussian", 0.25), denoiser=denoiser).tobytes()


def _ablate(run: runs.Run, images: object, folder: Path) -> tuple[float, float, str]:
    place = processes.by_first(lambda: tempfile.mkdtemp(dir=folder))
    films = [pipeline.films(images, split) for split in ("train", "val")]
    return _timed(lambda: _hash(_grid(films, run.config, Path(place))), 1)


def _grid(films: list[object], settled: config.Config, place: Path) -> bytes:
    return ablation.run_grid(*films, settled, place).drop(columns="seconds").to_csv(index=False).encode()


def _diagnose(run: runs.Run, images: object, folder: Path) -> tuple[float, float, str]:
    diagnoser = diagnosis.Diagnoser.load(run.path)
    diagnoser.compile()
    found = sorted(images.root.rglob("*.png"))
    films = (found * (FILES // len(found) + 1))[:FILES]
    answers = processes.stream(diagnoser.diagnose_all, films)
    return _timed(lambda: _hash("".join(map(str, answers)).encode()), FILES)


def _timed(function: Callable[[], str], amount: float) -> tuple[float, float, str]:
    processes.gather(None)  # begin together
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, amount, found


def _hash(found: bytes) -> str:
    return hashlib.sha256(found).hexdigest()[:12]


def prepare(folder: Path) -> None:
    """Films and networks that the timed calls then find."""
    settled = config.make("demo", **OPTIONS)
    images = pipeline.open_data(settled, folder / "cache")
    run = runs.open_run(folder / "run", settled)
    pipeline.train_denoiser(run, images, "unet_denoiser")
    pipeline.train_classifier(run, images, "unet_denoiser")


def measure(way: str, task: str, folder: Path, pair: tuple[hosts.Host, hosts.Host] | None) -> dict[str, object]:
    """One turn: what the first process says of it."""
    program = [__file__, "--work", task, "--folder", str(folder)]
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *program]
    calls = {
        "one core": [(["taskset", "-c", "0", sys.executable, *program], {"LOCAL_WORLD_SIZE": "2"})],
        "two threads": [([sys.executable, *program], {"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "1"})],
        "two processes": [(several, {})],
    }
    started = []
    for call, variables in calls[way] if way in calls else hosts.commands(pair, program):
        quiet = {"PNEUMO_QUIET": "1", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen(call, env=os.environ | quiet | variables, **options))
    said = "".join([one.communicate(timeout=1800)[0] for one in started])
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    if len(told) != 1 or any(one.returncode for one in started):
        raise SystemExit(f"{task} in {way} failed: {[one.returncode for one in started]} {said[-500:]}")
    return told[0]


def main() -> None:
    """Take turns and print a table; with --work do one turn's work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="all by default")
    parser.add_argument("--work", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        processes.join()
        seconds, amount, found = work(given.work, given.folder)
        if processes.first():
            print(json.dumps({"seconds": seconds, "amount": amount, "found": found}))
        processes.leave()
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        prepare(Path(folder))
        try:
            pair = stack.enter_context(hosts.pair())
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no hosts could be made, and that way is left out: {error}", file=sys.stderr)
            pair = None
        turns(given.tasks, given.rounds, Path(folder), pair)


def turns(tasks: Sequence[str], rounds: int, folder: Path, pair: tuple[hosts.Host, hosts.Host] | None) -> None:
    """These tasks in every way, in turn; prints a row for each."""
    ways = WAYS if pair else WAYS[:-1]
    print(f"{runtime.device_name()}; {rounds} rounds of each, medians\n")
    print("| task | way | films/s (ablate: grids/h) | range | efficiency | found |\n|---|---|---|---|---|---|")
    for task in tasks:
        told: dict[str, list[dict]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                told[way].append(measure(way, task, folder, pair))
        base = None
        for way in ways:
            rates = [one["amount"] / one["seconds"] * (3600 if task == "ablate" else 1) for one in told[way]]
            rate = statistics.median(rates)
            base = base or rate
            share = "" if way == "one core" else f"{rate / base / 2:.0%}"
            found = ", ".join(sorted({one["found"] for one in told[way]}))
            print(
                f"| {task} | {way} | {rate:.1f} | {min(rates):.1f} to {max(rates):.1f} | {share} | {found} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
