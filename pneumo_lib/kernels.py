"""Notebook kernels that are there at once: copies of one process that has imported what the notebooks import.

To import PyTorch, and what stands on it, takes every kernel 5 to 10 s. So a report has one process do it, while the
films are made ready, and each kernel is a fork of that one (`multiprocessing`'s fork server). Linux only; elsewhere,
and where code has changed since, a kernel starts as Jupyter starts it.
"""

import ast
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from pneumo_lib import workers

if sys.platform == "linux":
    import resource

_loaded: list[tuple[str, int]] = []  # the library's files, with their times, as the fork server found them


class FreshKernel(AsyncKernelManager):
    """Starts the interpreter that runs the report: a ``python3`` kernel found on the machine may be another one."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


class CopiedKernel(FreshKernel):
    """Starts the same kernel as a copy of the process that `preload` began.

    Attributes:
        peak: largest resident size of a copy that has ended, or of its workers, in KiB.
    """

    peak = 0

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options) -> None:
        self.provisioner.process = _Copy(kernel_cmd[3:], options.get("cwd") or os.getcwd(), options["env"])
        self.provisioner.pid = self.provisioner.process.pid
        self._reconcile_connection_info(self.provisioner.connection_info)


class _Copy:
    """A forked kernel with those methods of `subprocess.Popen` that Jupyter asks for."""

    stdin = stdout = stderr = None

    def __init__(self, *of_kernel: object) -> None:
        context = multiprocessing.get_context("forkserver")
        self._told, telling = context.Pipe(duplex=False)
        self._process = context.Process(target=_be_kernel, args=(*of_kernel, telling))
        program, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:  # a kernel has no use for the program of its parent, which multiprocessing would run again in it
            self._process.start()
        finally:
            sys.modules["__main__"] = program
        telling.close()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        with contextlib.suppress(EOFError):  # it was killed before it could tell
            CopiedKernel.peak = max(CopiedKernel.peak, self._told.recv())
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To the kernel and its workers; to the kernel alone as long as it has no group of its own."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if self.poll() is None:
                os.kill(self.pid, number)


def preload(notebooks: Iterable[Path]) -> type[FreshKernel]:
    """Begin to import, in another process, what the notebooks import; says which class starts their kernels.

    It returns at once and may be called again; what the first call of this process began serves all. Code that has
    changed since would not be seen by a copy, so kernels are fresh from then on.
    """
    if sys.platform != "linux":
        return FreshKernel
    files = sorted((str(path), path.stat().st_mtime_ns) for path in Path(__file__).parent.rglob("*.py"))
    if not _loaded:
        _loaded.extend(files)
        names = dict.fromkeys(name for notebook in notebooks for name in _imported(notebook))
        multiprocessing.set_forkserver_preload([__name__, *names, "ipykernel.kernelapp"])
        multiprocessing.forkserver.ensure_running()
    return CopiedKernel if files == _loaded else FreshKernel


def _imported(notebook: Path) -> list[str]:
    """Every module that a notebook's code cells import, and every name that may be one: what is none is passed over."""
    cells = (cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")
    names = []
    for cell in cells:
        try:
            statements = ast.walk(ast.parse(cell.source))
        except SyntaxError:  # its kernel will say so
            continue
        for one in statements:
            if isinstance(one, ast.Import):
                names += [alias.name for alias in one.names]
            elif isinstance(one, ast.ImportFrom) and one.module:
                names += [one.module, *(f"{one.module}.{alias.name}" for alias in one.names)]
    return names


def _be_kernel(arguments: Sequence[str], folder: str, environment: Mapping[str, str], telling: Connection) -> None:
    """What the forked process does: it becomes a kernel, and ends with the process that asked for it."""
    os.setsid()  # as Jupyter does: Ctrl-C in a terminal is for the report, which then ends its kernel
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["ipykernel_launcher", *arguments]
    from ipykernel.kernelapp import IPKernelApp  # not above: the report, which is no kernel, would pass for one

    try:
        workers.hire()
        workers.end_with_parent()
        IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
    finally:
        workers.dismiss()  # or the end of this process would wait for theirs
        ended = (resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        telling.send(max(one.ru_maxrss for one in ended))
