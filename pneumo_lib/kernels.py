"""Notebook kernels that are there at once: copies of the process that `forks` keeps.

Where there is none, and where code has changed since it began, a kernel starts as Jupyter starts it.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import ModuleType

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from pneumo_lib import forks, workers

if sys.platform == "linux":
    import resource


class FreshKernel(AsyncKernelManager):
    """Starts the interpreter that runs the report: a ``python3`` kernel found on the machine may be another one."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


class CopiedKernel(FreshKernel):
    """Starts the same kernel as a copy.

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
        atexit.register(self.send_signal, signal.SIGKILL)  # multiprocessing would wait for one that is still at work

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        with contextlib.suppress(EOFError):  # it was killed before it could tell
            CopiedKernel.peak = max(CopiedKernel.peak, self._told.recv() if self._told.poll() else 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To the kernel and its workers; to the kernel alone as long as it has no group of its own."""
        if self.poll() is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                os.kill(self.pid, number)


def prepared() -> type[FreshKernel]:
    """The class that starts kernels of the library as it is now; its first call begins what later kernels copy."""
    forks.begin()
    return CopiedKernel if forks.begun() else FreshKernel


def _be_kernel(arguments: Sequence[str], folder: str, environment: Mapping[str, str], telling: Connection) -> None:
    """What the forked process does: it becomes a kernel, and ends with the process that asked for it."""
    os.setsid()  # as Jupyter does: Ctrl-C in a terminal is for the report, which then ends its kernel
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
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
