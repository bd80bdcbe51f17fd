"""The workers of one process: they share its threads, outlive a fault, and end with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from waiting import gone, wait_for

from pneumo_lib import workers
from pneumo_lib.errors import DataError, TrainingError


def told_by(item: int) -> tuple[int, int, int]:
    """The item, and who took it with how many threads; it takes long enough for the others to have a share."""
    time.sleep(0.1)
    return item, os.getpid(), torch.get_num_threads()


def end_at(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse(item: int) -> int:
    raise DataError(f"film {item} is odd")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    workers.dismiss()


@pytest.mark.slow
def test_workers_share_items_and_threads(two_threads):
    told = workers.run(told_by, range(20))
    assert [item for item, _, _ in told] == list(range(20)) and {threads for *_, threads in told} == {1}
    assert os.getpid() not in {worker for _, worker, _ in told} and len({worker for _, worker, _ in told}) == 2
    with pytest.raises(DataError, match=r"film \d is odd"):
        workers.run(refuse, range(4))
    again = workers.run(told_by, range(20))
    assert {worker for _, worker, _ in again} <= {worker for _, worker, _ in told}, "they stay for the next call"


@pytest.mark.slow
def test_a_worker_that_is_ended_is_said_and_the_next_call_finds_new_ones(two_threads):
    with pytest.raises(TrainingError, match=r"worker process was ended.*memory"):
        workers.run(end_at, range(8))
    assert [item for item, *_ in workers.run(told_by, range(3))] == [0, 1, 2]


def nap(folder: str) -> None:
    """A minute's work that leaves a file when it begins."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


def employer(folder: Path, body: str, *arguments: object) -> subprocess.Popen:
    """A program of its own, with two threads and in a group of processes of its own."""
    lines = ["import sys, time, torch", "import test_workers", "from pneumo_lib import workers"]
    lines += [
        "if __name__ == '__main__':",
        "    torch.set_num_threads(2)",
        *(f"    {line}" for line in body.splitlines()),
    ]
    (folder / "employer.py").write_text("\n".join(lines))
    return subprocess.Popen(
        [sys.executable, folder / "employer.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PNEUMO_QUIET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_an_interrupt_ends_what_workers_do_and_leaves_them_ready(tmp_path):
    body = (
        "naps = [sys.argv[1]] * 8\n"
        "for work, items, pause in ((abs, [0, 0], 60), (test_workers.nap, naps, 0), (abs, [-1, -2], 0)):\n"
        "    try:\n        print(*workers.run(work, items), flush=True)\n        time.sleep(pause)\n"
        "    except KeyboardInterrupt:\n        print('interrupted', flush=True)\n"
    )
    naps = tmp_path / "naps"
    naps.mkdir()
    started = employer(tmp_path, body, naps)
    assert started.stdout.readline() == "0 0\n"
    os.killpg(started.pid, signal.SIGINT)  # a worker is idle, another may still be starting
    wait_for(lambda: len(list(naps.iterdir())) == 2, 120)
    os.killpg(started.pid, signal.SIGINT)  # both work
    rest, complaints = started.communicate(timeout=50)
    assert (rest, complaints) == ("interrupted\ninterrupted\n1 2\n", "")


@pytest.mark.slow
def test_workers_do_not_outlive_the_process_that_employs_them(tmp_path):
    body = (
        "print(*{worker for _, worker, _ in workers.run(test_workers.told_by, range(20))}, flush=True)\n"
        "time.sleep(60)\n"
    )
    started = employer(tmp_path, body)
    hired = started.stdout.readline().split()
    assert hired and not any(gone(worker) for worker in hired)
    started.kill()
    started.wait()
    for worker in hired:
        wait_for(lambda worker=worker: gone(worker), 20)


@pytest.mark.slow
def test_workers_that_were_hired_are_copies_and_are_the_ones_that_work(tmp_path):
    body = (
        "workers.hire()\n"
        "test_workers.KNOWN = 'only here'\n"
        "print(*workers.run(test_workers.known, [0, 1]), flush=True)\n"
        "workers.dismiss()\n"
        "print(*workers.run(test_workers.known, [0, 1]), flush=True)\n"
    )
    body = "test_workers.KNOWN = 'before'\n" + body
    ended = employer(tmp_path, body)
    rest, complaints = ended.communicate(timeout=100)
    assert (rest, complaints) == ("before before\nnothing nothing\n", ""), "later ones import for themselves"


KNOWN = "nothing"


def known(_: int) -> str:
    return KNOWN
