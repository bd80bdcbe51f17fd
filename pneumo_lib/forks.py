"""One process that has imported the whole library, of which others are copies: `multiprocessing`'s fork server.

To import PyTorch, and what stands on it, takes every process 5 to 10 s; a copy is there at once. Linux only.
"""

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
import sys
from pathlib import Path

_found: list[tuple[str, int]] = []  # the library's files, with their times, as the server found them


def begin() -> None:
    """Start the server, which imports in the background; once for each process, where it can be had."""
    if sys.platform == "linux" and not _found:
        _found.extend(_files())
        # The kernel's module comes last: packages that find it take their process for a notebook's, and warn.
        multiprocessing.set_forkserver_preload(["pneumo_lib.cli", "ipykernel.kernelapp"])
        multiprocessing.resource_tracker.ensure_running()  # first, since to start it resets the mask below
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited: Ctrl-C is not for the server
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def begun() -> bool:
    """Whether this process has a server, and the library is still as that one found it."""
    return bool(_found) and _found == _files()


def _files() -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in Path(__file__).parent.rglob("*.py"))
