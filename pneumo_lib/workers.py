"""Worker processes of one process, which share its threads among them: small networks train faster side by side."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

from pneumo_lib import forks
from pneumo_lib.errors import TrainingError

Item, Made = TypeVar("Item"), TypeVar("Made")
MOST = 4  # of one process; each needs the memory of a training
_pools: dict[tuple[int, int], ProcessPoolExecutor] = {}  # by the number of workers and the threads of each


def run(
    function: Callable[[Item], Made],
    items: Sequence[Item],
    *,
    brief: bool = False,
    progress: Callable[..., Any] = iter,
    **title: str,
) -> list[Made]:
    """function(item) of every item, in order, by workers that share the threads of this process among them.

    Small networks train faster side by side than one after the other on all threads. Without threads to share, or
    with a GPU, this process does it all. Function and items are pickled, so the function belongs to a module.

    Args:
        brief: all of it takes less time than importing does, so this process does it unless workers can be copied.
        progress: bar, called as ``progress(iterable, **title)``.

    Raises:
        TrainingError: a worker was ended from outside.
    """
    workers = min(torch.get_num_threads(), len(items), MOST)
    if workers < 2 or torch.cuda.is_available() or (brief and not (_pools or forks.begun())):
        return [function(item) for item in progress(items, **title)]
    coming, running, made = enumerate(items), {}, {}
    try:
        for _ in progress(range(len(items)), **title):
            # No more than there are workers: what waits in the pool's queue could not be taken back.
            for number, item in islice(coming, workers - len(running)):
                running[_submit(workers, function, item)] = number
            one = next(as_completed(running))
            made[running.pop(one)] = one.result()
        return [made[number] for number in range(len(items))]
    except BrokenProcessPool as error:
        _pools.clear()
        raise TrainingError(
            "a worker process was ended from outside, most likely because the memory ran out. Close other programs, "
            "or set OMP_NUM_THREADS=1 to do without workers; the same call goes on from what is stored."
        ) from error


def hire() -> None:
    """Have the workers of `run` ready, as copies of this process: it must have imported all and run no threads.

    Elsewhere they are started when first asked for, and each imports for itself.
    """
    workers = min(torch.get_num_threads(), MOST)
    if workers > 1:
        _workers(workers, "fork")
        _submit(workers, abs, 0)


def dismiss() -> None:
    """Let the workers end; another call of `run` would start new ones."""
    for pool in _pools.values():
        pool.shutdown()
    _pools.clear()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it with `multiprocessing` has ended, however it did."""
    parent = parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _submit(workers: int, function: Callable[[Item], Made], item: Item) -> Future[Made]:
    pool = _workers(workers)  # first, since to make one resets the mask below
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # what a new worker inherits until `_employ` is through
    try:
        return pool.submit(_interruptible, function, item)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _workers(count: int, method: str = "") -> ProcessPoolExecutor:
    """They stay for the next call: unless copied, one takes as long to start as importing PyTorch."""
    key = count, torch.get_num_threads() // count
    if key not in _pools:
        method = method or ("forkserver" if forks.begun() else "spawn")
        _pools[key] = ProcessPoolExecutor(count, get_context(method), _employ, key[1:])
    return _pools[key]


def _employ(threads: int) -> None:
    """Make a worker of a new process: it has so many threads, draws no bars, and does not outlive its employer.

    An interrupt, which a terminal and Jupyter send to all processes, ends what a worker does, never an idle worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's too: those of several workers would spend their time waiting for cores
    os.environ["PNEUMO_QUIET"] = "1"
    end_with_parent()


def _interruptible(function: Callable[[Item], Made], item: Item) -> Made:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return function(item)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
