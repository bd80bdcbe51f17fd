"""Several processes, on one machine and on several: the same answers as one, one message where one of them dies."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import hosts
from waiting import wait_for

from pneumo_lib import cli, processes
from pneumo_lib.errors import UsageError

SMALL = ["-p", "image_size=32", "-p", "batch_size=8", "-p", "sigma=0.1", "-p", "val_fraction=0.3", "-p", "precision=no"]


# ---- a process that is the only one ----------------------------------------------------------------------------------


def test_a_single_process_goes_through_all_of_it_unaware():
    assert processes.count() == 1 and processes.first() and processes.speaks_first()
    assert processes.gather("a") == ["a"] and processes.by_first(lambda: 3) == 3
    assert processes.share_out(str, [2, 1]) == ["2", "1"]
    assert list(processes.stream(lambda part: (item + 1 for item in part), range(600))) == list(range(1, 601))
    with processes.first_before_others(), processes.alone():
        processes.agree("anything", "1")
    assert not processes.lost_one(RuntimeError("gloo: Connection closed by peer")), "nobody was there"


def test_those_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda told: [told, ("other-host", "b")])
    with pytest.raises(
        UsageError, match=r"differ in their films: a \(process 0 on .*\), b \(process 1 on other-host\)"
    ):
        processes.agree("films", "a")
    with pytest.raises(UsageError, match=r"differ in their files: [0-9a-f]{12} \(process 0"):
        processes.agree("files", "a long list of files" * 10)


def test_to_work_alone_ends_with_the_block_even_in_a_fault():
    with pytest.raises(ValueError, match="broken"), processes.alone():
        raise ValueError("broken")
    assert not processes._alone


# ---- several ---------------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PNEUMO_QUIET": "1"} | more


def command(count: int, *arguments: object) -> list[str]:
    """`pneumo` in so many processes of this machine."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m"] if count > 1 else []
    return [sys.executable, "-m", *launcher, "pneumo_lib", "--", *map(str, arguments)]


def run(count: int, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command(count, *arguments), env=environment(), capture_output=True, text=True, timeout=300)
    assert (ended.returncode != 0) == (code != 0), ended.stderr[-3000:]
    return ended


def said(text: str) -> list[str]:
    """The messages of `pneumo`, launchers' left out."""
    return re.findall(r"^pneumo: .*", text, re.MULTILINE)


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the runs of one process and of two: `one` and `two`."""
    return tmp_path_factory.mktemp("processes")


def options(folder: Path, films: Path, *more: str) -> list[object]:
    common = ["--preset", "tiny", "--data", films, "--run", folder, "--cache", folder.parent / "cache"]
    return [*common, *SMALL, *more]


@pytest.fixture(scope="module")
def one(place, film_folder) -> Path:
    for name in ("unet_denoiser", "classifier"):
        run(1, "train", name, *options(place / "one", film_folder))
    return place / "one"


@pytest.fixture(scope="module")
def two(place, film_folder) -> Path:
    for name in ("unet_denoiser", "classifier"):
        run(2, "train", name, *options(place / "two", film_folder))
    return place / "two"


def assert_same_run(one: Path, other: Path) -> None:
    """Equal curves but for what adding gradients in another order makes of them, the same files, no others."""
    for part in ("denoiser/unet_denoiser", "classifier/cnn2_on_unet_denoiser"):
        pd.testing.assert_frame_equal(history(one / part), history(other / part), atol=2e-3, rtol=2e-3)
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    assert names[0] == names[1], names[0] ^ names[1]


@pytest.mark.slow
def test_two_processes_train_one_run_like_one(one, two):
    assert_same_run(one, two)


@pytest.mark.slow
def test_two_processes_share_the_films_and_say_the_same(one, film_folder, tmp_path):
    told = [run(count, "evaluate", one, "--cache", one.parent / "cache").stdout for count in (1, 2)]
    assert told[0] == told[1] and "cnn2_on_unet_denoiser" in told[0], told
    films = shutil.copytree(film_folder / "test", tmp_path / "films")
    (films / "broken.png").write_bytes(b"no film")
    for count in (1, 2):
        ended = run(count, "diagnose", films, "--run", one, "--csv", tmp_path / f"{count}.csv", code=3)
        assert ended.stderr.count("1 of ") == 1, ended.stderr
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()
    lines = [run(count, "diagnose", film_folder / "test", "--run", one, "--json").stdout for count in (1, 2)]
    assert lines[0] == lines[1] and lines[0].count("\n") > 5


@pytest.mark.slow
def test_two_processes_take_the_cells_of_the_grid_in_turn(place, film_folder):
    folders = [place / "grid_1", place / "grid_2"]
    told = [run(n, "ablate", *options(folder, film_folder)).stdout for n, folder in enumerate(folders, start=1)]
    tables = [re.sub(r"\S+$|run folder.*", "", text, flags=re.MULTILINE) for text in told]  # but for the seconds
    assert tables[0] == tables[1] and "denoised" in tables[0]
    kept = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")) for folder in folders]
    assert kept[0] == kept[1] and len(kept[0]) > 8
    for name in kept[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), "each cell was one process's own"


@pytest.mark.slow
def test_what_all_processes_find_wrong_is_said_once(tmp_path):
    ended = run(2, "train", "autoencoder", "--preset", "quick", "--data", tmp_path / "nowhere", code=3)
    (message,) = said(ended.stderr)
    assert "nowhere" in message and 'Traceback (most recent call last):\n  File "<frozen' not in message


@pytest.mark.slow
def test_processes_with_different_films_do_not_begin(film_folder, tmp_path):
    other = shutil.copytree(film_folder, tmp_path / "other")
    shutil.copy(next((other / "train").rglob("*.png")), next((other / "train").glob("*")) / "one_more.png")
    (other / "manifest.csv").unlink()
    folder = f'"$([ "$RANK" = 0 ] && echo {film_folder} || echo {other})"'
    call = f"{sys.executable} -m pneumo_lib train autoencoder --preset tiny -p image_size=32 --run {tmp_path / 'run'}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    shell = ["bash", "-c", f"exec {call} --cache {tmp_path / 'cache'} --data {folder}"]
    ended = subprocess.run([*launcher, *shell], env=environment(), capture_output=True, text=True, timeout=300)
    (message,) = said(ended.stderr)
    assert ended.returncode and "differ in their" in message and "process 1 on" in message
    assert not list((tmp_path / "run").rglob("*.safetensors"))


# ---- one that dies ---------------------------------------------------------------------------------------------------


class Running:
    """A command at work, the first lines of what it says, and its end."""

    def __init__(self, arguments: list[str], **options: str) -> None:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(arguments, env=environment(**options), start_new_session=True, **pipes)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    def end(self, seconds: float) -> str:
        """What it has said when it has ended, as it must within so many seconds."""
        self.process.wait(seconds)
        self.reader.join(10)
        return "".join(self.lines)

    def kill(self) -> None:
        """All of it at once."""
        os.killpg(self.process.pid, signal.SIGKILL)


def workers(launcher: int) -> dict[int, int]:
    """Process numbers by rank, of the processes that a launcher has started."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            variables = (stat.parent / "environ").read_bytes().split(b"\0") if parent == launcher else []
        except OSError:
            continue
        found |= {int(text[5:]): int(stat.parent.name) for text in variables if text.startswith(b"RANK=")}
    return found


def wait_for_epochs(folder: Path) -> None:
    """Until some epochs are stored there."""
    wait_for(lambda: any(state.name >= "state_0002" for state in folder.glob("state_*[0-9]")))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_ends_the_other_with_one_message_and_the_run_goes_on(rank, film_folder, place, tmp_path):
    long = options(tmp_path / "run", film_folder, "-p", "epochs=60")
    started = Running(command(2, "train", "unet_denoiser", *long))
    state = tmp_path / "run" / "denoiser" / "unet_denoiser"
    wait_for_epochs(state)
    os.kill(workers(started.process.pid)[rank], signal.SIGKILL)
    (message,) = said(started.end(30))
    assert started.process.returncode and "lost one of its processes" in message
    assert "goes on from the last stored state" in message
    assert not list(state.rglob("*.tmp")) and len(list(state.glob("state_*"))) <= 2
    ended = run(2, "train", "unet_denoiser", *long)
    assert "60" in ended.stdout.splitlines()[-2].split()[0]
    assert len(history(state)) == 60 and history(state)["epoch"].is_monotonic_increasing


@pytest.mark.parametrize("moment", ["the loss is noticed", "the word is taken"])
def test_the_signal_of_a_launcher_while_a_loss_is_being_told_leaves_one_message(moment, monkeypatch, capfd):
    class Gone(Exception):
        pass

    class Notes:
        taken = 0

        def add(self, *_: object) -> int:
            self.taken += 1
            hit("the word is taken")
            return self.taken

    def hit(now: str) -> bool:
        if now == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    def app() -> None:
        signal.signal(signal.SIGTERM, processes._interrupt)
        raise RuntimeError("gloo: Connection closed by peer")

    def leave(code: int) -> None:
        raise Gone(code)

    notes, before = Notes(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(processes, "join", lambda: None)
    monkeypatch.setattr(processes, "first", lambda: True)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "lost_one", lambda error: hit("the loss is noticed"))
    monkeypatch.setattr(processes, "_store", lambda: notes)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    try:
        with pytest.raises(Gone):
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said(capfd.readouterr().err) == [f"pneumo: {cli.LOST}"]


# ---- several machines ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[hosts.Host, hosts.Host]]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(hosts.pair())
        except (OSError, subprocess.CalledProcessError) as error:
            message = f"NO HOSTS: several machines were NOT tested; it takes iproute2 and root ({error})"
            pytest.fail(message) if os.environ.get("PNEUMO_REQUIRE_HOSTS") == "1" else pytest.skip(message)


def on_hosts(pair: tuple[hosts.Host, hosts.Host], *arguments: object) -> list[Running]:
    """`pneumo` at work on each of them."""
    program = ["-m", "pneumo_lib", *map(str, arguments)]
    return [Running(call, **variables) for call, variables in hosts.commands(pair, program)]


@pytest.mark.slow
def test_two_machines_train_and_answer_like_one_process(pair, one, film_folder, place):
    for name in ("unet_denoiser", "classifier"):
        both = on_hosts(pair, "train", name, *options(place / "hosts", film_folder))
        texts = [running.end(200) for running in both]
        assert [running.process.returncode for running in both] == [0, 0], texts
        assert "run folder" in texts[0] and "run folder" not in texts[1], "the first one speaks"
    assert_same_run(one, place / "hosts")
    alone = run(1, "evaluate", one, "--cache", one.parent / "cache").stdout
    both = on_hosts(pair, "evaluate", one, "--cache", one.parent / "cache")
    assert alone.strip() in both[0].end(200) and both[1].end(200).count("cnn2") == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", ["the first", "the second"])
def test_a_machine_that_is_gone_ends_the_other_with_one_message(which, pair, film_folder, tmp_path):
    long = options(tmp_path / "run", film_folder, "-p", "epochs=60")
    both = on_hosts(pair, "train", "unet_denoiser", *long)
    wait_for_epochs(tmp_path / "run" / "denoiser" / "unet_denoiser")
    staying, going = both if which == "the second" else reversed(both)
    inside = workers(going.process.pid).values()
    going.kill()
    for number in inside:
        os.kill(number, signal.SIGKILL)
    (message,) = said(staying.end(60))
    assert staying.process.returncode and "goes on from the last stored state" in message
