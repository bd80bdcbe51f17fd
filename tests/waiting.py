"""Waiting for other processes in tests."""

import time
from collections.abc import Callable
from pathlib import Path


def wait_for(true: Callable[[], bool], seconds: float = 120) -> None:
    for _ in range(int(seconds * 20)):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(f"still not so after {seconds} s")


def gone(process: str | int) -> bool:
    """Whether a process has ended, fetched by its parent or not."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
