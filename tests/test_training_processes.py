"""Training over processes: killed ones that are started again, and two that share the work."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import Tampered, network, task

from pneumo_lib.steps import ClassificationStep
from pneumo_lib.training import fit

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """Children that begin with everything imported, so that one can be killed every second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pneumo_lib.training", "scipy.ndimage", "pytest"])
    return context


def train(folder: Path, die_at: int = 0, pause: float = 0.0) -> None:
    """Train in this process; it kills itself just before the `die_at`-th time it touches a file of its folder."""
    torch.set_num_threads(1)
    os.environ["PNEUMO_QUIET"] = "1"
    touched = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal touched
        if event in FILE_EVENTS and (str(folder) in str(arguments[0]) or event in ("os.remove", "os.rmdir")):
            touched += 1
            if touched == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    step = Tampered(ClassificationStep(), lambda model, calls, outcome: time.sleep(pause) or outcome)
    fit(network(), task(step, epochs=4, schedule="cosine", checkpoint_every=2), folder)
    folder.with_suffix(".touched").write_text(str(touched))


def start(forks: ForkServerContext, folder: Path, **options: float) -> multiprocessing.process.BaseProcess:
    """Begin a training in another process."""
    process = forks.Process(target=train, args=(folder,), kwargs=options)
    process.start()
    return process


def finish(forks: ForkServerContext, folder: Path) -> None:
    """Train to the end, from whatever an earlier process left behind."""
    process = start(forks, folder)
    process.join(120)
    assert process.exitcode == 0


def outcome(folder: Path) -> dict[str, object]:
    """Everything that a finished training must agree in: weights and checkpoints bit for bit, and the curve."""
    weights = sorted(folder.rglob("*.safetensors"))
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds")
    return {str(path.relative_to(folder)): path.read_bytes() for path in weights} | {"curve": history.to_csv()}


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory) -> Path:
    """The folder of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "training"
    finish(forks, folder)
    return folder


def test_killed_at_any_file_it_ends_with_the_same_weights(forks, whole, tmp_path):
    touched = int(whole.with_suffix(".touched").read_text())
    assert touched > 40  # the hook sees the storing of four epochs
    for moment in random.Random(0).sample(range(1, touched + 1), 10):
        folder = tmp_path / f"killed_{moment}"
        process = start(forks, folder, die_at=moment)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        finish(forks, folder)
        assert outcome(folder) == outcome(whole), f"killed before touching file {moment} of {touched}"


def test_killed_ten_times_at_random_moments_it_ends_with_the_same_weights(forks, whole, tmp_path):
    folder, draw, kills = tmp_path / "training", random.Random(1), 0
    for _ in range(10):
        process = start(forks, folder, pause=0.2)  # 16 batches in all: over three seconds, more than one life
        time.sleep(draw.uniform(0.1, 0.8))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    finish(forks, folder)
    assert kills >= 3  # nobody ends before: an epoch takes as long as the longest life
    assert outcome(folder) == outcome(whole)


def launch(processes: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run training_script.py; several processes by `accelerate launch`.

    There `--multi_gpu` means several processes on one machine. `--cpu` would need MPI, and starts one process without.
    """
    options = ["--multi_gpu", "--num_machines=1", "--main_process_port=0"]
    options += ["--mixed_precision=no", "--dynamo_backend=no"]
    module = ["accelerate.commands.launch", *options, f"--num_processes={processes}"]
    script = [str(TESTS / "training_script.py"), str(folder), *arguments]
    command = [sys.executable, *(["-m", *module] if processes > 1 else []), *script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PNEUMO_QUIET": "1"}
    folder.mkdir(exist_ok=True)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def reports(folder: Path) -> list[dict]:
    """What each process said at its end."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("report_*.json"))]


def files(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_same_training(one: dict, other: dict) -> None:
    """Equal curves to 1e-3 and weights to 1e-4, as several processes add their gradients in another order."""
    assert one["curve"].keys() == other["curve"].keys()
    for name, values in one["curve"].items():
        assert other["curve"][name] == pytest.approx(values, abs=1e-3), name
    for name, values in one["weights"].items():
        assert other["weights"][name] == pytest.approx(values, abs=1e-4), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """The report of one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert launch(1, folder).returncode == 0
    (report,) = reports(folder)
    return report


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """The folder of two processes that trained together."""
    folder = tmp_path_factory.mktemp("pair")
    ended = launch(2, folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return folder


def test_two_processes_train_like_one_and_count_each_film_once(alone, pair):
    first, second = reports(pair)
    assert_same_training(alone, first)
    assert first["curve"] == second["curve"] and first["weights"] == second["weights"]
    assert alone["counts"] == [13, 13, 65, 65] * 3  # loss and score, training and validation, three epochs
    assert first["counts"] == second["counts"] == alone["counts"]


def test_only_the_first_process_writes(pair):
    assert files(pair / "rank_0") == {"history.csv", "state_0003/best.safetensors", "state_0003/progress.json"}
    assert files(pair / "rank_1") == {"state.tmp/random_states_1.pkl"}  # its own generators, kept by Accelerate


def test_two_processes_take_up_what_one_left(alone, tmp_path):
    stopped = launch(1, tmp_path, "2")
    assert stopped.returncode == 1 and "tiny.Stop" in stopped.stderr
    shutil.copytree(tmp_path / "rank_0", tmp_path / "rank_1")
    ended = launch(2, tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    first, second = reports(tmp_path)
    assert_same_training(alone, first)
    assert first["weights"] == second["weights"] and len(first["counts"]) == 8  # two epochs were left
