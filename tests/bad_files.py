"""What the worst files cost the service: run by a test in a process of its own, so that nothing else counts.

    python bad_files.py RUN_FOLDER HISTORY_URL

It prints a JSON object: of each file its status, code, processor seconds, and by how many MB the memory of the process
had at most grown since the first.
"""

import json
import resource
import sys
import time
from contextlib import closing
from pathlib import Path

import test_service_api as api
from service_app import calling, send

from pneumo_lib.service import catalog
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import History
from pneumo_lib.service.settings import Settings

STATUS = Path("/proc/self/status")
FILES = {name: bad[0] for name, bad in api.BAD.items()} | {name: odd[0] for name, odd in api.ODD.items()}


def memory(line: str) -> float:
    """VmRSS (held now) or VmHWM (the most ever held) in MB; elsewhere than on Linux the latter in any case.

    What `getrusage` calls the peak is on Linux at least the parent's, which may be a test run of gigabytes.
    """
    if STATUS.exists():
        found = next(row for row in STATUS.read_text().splitlines() if row.startswith(f"{line}:"))
        return int(found.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def main(run: str, history: str) -> None:
    """Send every file once, after one film that makes the service load what it needs."""
    offers, told = catalog.load([run]), {}
    with closing(History(history)) as made:
        made.upgrade()
    with closing(Clinic(Settings(history=history), offers, History(history), threads=1)) as clinic:
        client = calling(clinic)
        send(client, api.pictures.encode(api.RAMP), keep_film="true")
        before = memory("VmRSS")
        for name, data in FILES.items():
            started = time.process_time()
            status, code = api.outcome(send(client, (data, "film.png"), keep_film="true"))
            seconds = time.process_time() - started
            told[name] = {"status": status, "code": code, "seconds": seconds, "mb": memory("VmHWM") - before}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
