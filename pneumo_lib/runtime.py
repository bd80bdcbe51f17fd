"""What surrounds the numbers: seeds, device, precision, progress bars, the versions in use."""

import ctypes
import functools
import importlib.metadata
import os
import platform
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from pneumo_lib import processes

Item, Made = TypeVar("Item"), TypeVar("Made")
MALLOC = {"mmap_threshold": (-3, 2**30), "trim_threshold": (-1, 2**30), "arena_max": (-8, 4)}  # glibc's malloc.h
PACKAGES = ("torch", "torchvision", "accelerate", "torchmetrics", "numpy", "pandas", "matplotlib", "papermill")


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch; fresh weights are drawn from the last."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def fast_bf16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


@functools.cache
def keep_memory() -> None:
    """Let glibc keep what the networks gave back, instead of asking the system for it anew with every layer.

    Without this up to half of a training on CPUs goes into page faults. The process stays as large as it once was.
    Other C libraries have no such knobs, and nothing happens there.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        for knob, value in MALLOC.values():
            ctypes.CDLL(None).mallopt(knob, value)


def accelerator(precision: str = "auto") -> Accelerator:
    """The Accelerator that owns device, precision and processes; it knows one process inside `processes.alone`.

    Args:
        precision: "auto", "bf16" or "no" (float32).
    """
    keep_memory()
    mixed = ("bf16" if fast_bf16() else "no") if precision == "auto" else precision
    AcceleratorState._reset_state(True)  # shared in the process, it would refuse another precision than its first
    with processes.unseen():
        return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed)


def device() -> torch.device:
    """Where networks run that nothing is trained with."""
    keep_memory()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def progress(items: Iterable[Any] | None = None, *, desc: str = "", total: int | None = None, **options: Any) -> tqdm:
    """A tqdm bar on standard error with time left that leaves nothing behind; off on other processes than the first."""
    quiet = os.environ.get("RANK", "0") != "0" or bool(os.environ.get("PNEUMO_QUIET"))
    return tqdm(items, desc=desc, total=total, leave=False, mininterval=0.5, file=sys.stderr, disable=quiet, **options)


def in_threads(
    function: Callable[[Item], Made], items: Iterable[Item], *, threads: int = 0, ahead: int = 4
) -> Iterator[Made]:
    """function(item) of each item, in order, computed by threads before it is asked for.

    Args:
        threads: as many as there are processors for this process when 0.
        ahead: items of each thread that may wait to be taken, so that memory does not grow with the number of items.
    """
    coming, waiting, threads = iter(items), deque(), threads or processes.cores()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            waiting.extend(pool.submit(function, item) for item in islice(coming, ahead * threads - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def project_root() -> Path:
    """The nearest folder, from the working directory up, that holds the project; else the working directory."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks").is_dir() and (p / "pneumo_lib").is_dir()), here)


def locate(path: str | Path) -> Path:
    """An absolute path; a relative one starts at the project's folder, whichever folder a notebook runs in."""
    return project_root() / Path(path).expanduser()


def commit() -> str:
    """Short hash of the git commit of this code, with "+changes" if files differ from it; "unknown" outside git."""
    folder = Path(__file__).parent
    try:
        rev = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return "unknown"
    if rev.returncode:
        return "unknown"
    return rev.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def device_name() -> str:
    """The accelerator's name, or the number of CPU threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads{', bfloat16' if fast_bf16() else ''}"


def versions() -> dict[str, str]:
    """Version of Python and of each package whose numbers end up in the report."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe() -> pd.DataFrame:
    """One-column table of commit, device and versions, for the top of a notebook."""
    rows = {"commit": commit(), "device": device_name(), **versions()}
    return pd.DataFrame({"value": rows})
