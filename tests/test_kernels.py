"""Kernels copied from a process that has imported everything: the same kernels, there at once, gone with the report."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from waiting import gone, wait_for

from pneumo_lib import kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are copied on Linux only")

REPORT = """
import sys
from pathlib import Path
from pneumo_lib import forks

forks.begin()

from pneumo_lib import report
from pneumo_lib.report_html import ReportHeader

folder, *changed = map(Path, sys.argv[1:])
notebooks = sorted(folder.glob("*.ipynb"))
for path in changed:
    path.touch()
header = ReportHeader("Title", "films", "demo", "today", "abc", "CPU", {}, {}, True)
made = report.run_report(notebooks, run_dir=folder / "run", out_dir=folder / "out", header=header, progress=False)
print(made.manifest.read_text())
"""
FACTS = (
    "import json, os, sys\nimport pandas, torch\nfrom pathlib import Path\n"
    "print(json.dumps({'pid': os.getpid(), 'group': os.getpgid(0), 'folder': os.getcwd(), 'argv': sys.argv[0],\n"
    "    'parent': Path(f'/proc/{os.getppid()}/cmdline').read_text(), 'variable': os.environ.get('ASKED'),\n"
    "    'loaded': sorted(sys.modules)}))"
)


def write(folder: Path, number: int, *sources: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell(f"# {number:02d} · Part {number}\n\n## Question")]
    path = folder / f"{number:02d}_part.ipynb"
    nbformat.write(new_notebook(cells=[*cells, *map(new_code_cell, sources)]), path)
    return path


def begin(folder: Path, *changed: Path) -> subprocess.Popen:
    """A report of its own process on the notebooks of a folder."""
    (folder / "program.py").write_text(REPORT)
    return subprocess.Popen(
        [sys.executable, folder / "program.py", folder, *changed],
        env=os.environ | {"ASKED": "for", "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def printed(folder: Path, number: int) -> dict:
    cells = nbformat.read(folder / f"run/notebooks/{number:02d}_part.ipynb", as_version=4).cells
    return json.loads(next(cell for cell in cells if cell.get("outputs")).outputs[0].text)


@pytest.mark.slow
def test_kernels_are_copies_that_have_imported_everything(tmp_path):
    for number in (1, 2):
        write(tmp_path, number, FACTS)
    made, complaints = begin(tmp_path).communicate(timeout=200)
    assert not re.search("Traceback|Warning|leaked", complaints), "no worker, semaphore or socket is left behind"
    assert json.loads(made)["peak_memory_mb"] > 100, "of the kernels, which are no children of the report"
    one, two = printed(tmp_path, 1), printed(tmp_path, 2)
    assert one["pid"] != two["pid"] and gone(one["pid"]) and gone(two["pid"])
    assert one["parent"] == two["parent"] and "forkserver" in one["parent"]
    for facts in (one, two):
        assert facts["group"] == facts["pid"], "Ctrl-C in a terminal does not reach it"
        assert facts["folder"] == str(tmp_path) and facts["variable"] == "for"
        assert facts["argv"] == "ipykernel_launcher" and {"torch", "pneumo_lib.plots"} <= set(facts["loaded"])


@pytest.mark.slow
def test_code_that_has_changed_is_loaded_by_fresh_kernels(tmp_path):
    write(tmp_path, 1, FACTS)
    file = Path(kernels.__file__)
    before = file.stat()
    try:
        _, complaints = begin(tmp_path, file).communicate(timeout=200)
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "Traceback" not in complaints and "forkserver" not in printed(tmp_path, 1)["parent"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_kernel_and_workers_end_with_the_report(tmp_path, number):
    source = (
        "import multiprocessing, os, time\nfrom pathlib import Path\n"
        "pids = [os.getpid(), os.getppid(), *(p.pid for p in multiprocessing.active_children())]\n"
        "Path('pids').write_text(' '.join(map(str, pids)))\ntime.sleep(300)"
    )
    write(tmp_path, 1, source)
    report = begin(tmp_path)
    wait_for(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 4 and not any(map(gone, pids)), "kernel, fork server, two workers"
    os.kill(report.pid, number)
    report.communicate(timeout=60)
    for pid in pids:
        wait_for(lambda pid=pid: gone(pid), 20)


@pytest.mark.slow
def test_nobody_waits_for_a_kernel_that_was_not_shut_down(tmp_path):
    program = (
        "import asyncio\nfrom pneumo_lib import kernels\n\nasync def start():\n    manager = kernels.CopiedKernel()\n"
        "    await manager.start_kernel()\n    print(manager.provisioner.pid)\n\nasyncio.run(start())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert ended.returncode == 0 and not re.search("Traceback|leaked", ended.stderr)
    wait_for(lambda: gone(ended.stdout.strip()), 20)


@pytest.mark.slow
def test_an_interrupt_is_not_for_the_process_that_is_copied(tmp_path):
    program = (
        "import multiprocessing, time\nfrom pneumo_lib import forks\nforks.begin()\nprint('begun', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
        "    copy = multiprocessing.get_context('forkserver').Process(target=print, args=('copied',))\n"
        "    copy.start()\n    copy.join()\n"
    )
    (tmp_path / "program.py").write_text("if __name__ == '__main__':\n" + textwrap.indent(program, "    "))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    started = subprocess.Popen([sys.executable, tmp_path / "program.py"], **options)
    assert started.stdout.readline() == "begun\n"
    time.sleep(1)  # the server is importing
    os.killpg(started.pid, signal.SIGINT)
    assert started.communicate(timeout=100) == ("copied\n", "")


@pytest.mark.slow
def test_the_command_line_begins_it_for_a_report_alone(tmp_path):
    program = (
        "import sys\nfrom pneumo_lib import __main__, forks\nsys.modules['pneumo_lib.cli'] = forks\n"
        "forks.main, forks.begin = lambda: None, lambda: print('begun')\nsys.argv = sys.argv[1:]\n__main__.main()"
    )

    def said(*arguments: str) -> str:
        command = [sys.executable, "-c", program, "pneumo", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert said("report", "--preset", "demo") == "begun\n"
    assert said("report", "--help") == said("doctor") == said() == ""
