"""The diagnosis service under load, beside a bare Flask route that does the same work one request at a time.

    python benchmarks/service_load.py --run runs/demo --seconds 60

Both are started on free ports of this machine, in turn, round after round, and get the same films from the same
clients. The bare route is the plainest form of what the sources' web pages do: read, denoise, classify, save the
picture, in the order of arrival. Ours keeps the film too, in its history. Prints a table, or JSON with --json.
With --batch every request to the service carries so many films; more than it has places for get 503.
"""

import argparse
import http.client
import io
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

WARM_UP = 15  # seconds; the service compiles its networks meanwhile
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pneumo_lib import images  # noqa: E402  # the clone that this file stands in
from pneumo_lib.data import phantom  # noqa: E402
from pneumo_lib.diagnosis import Diagnoser  # noqa: E402


@dataclass
class Tally:
    """What the clients saw of one server."""

    name: str
    seconds: float = 0.0
    batch: int = 1
    latencies: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float | str]:
        """One line of the table: films per second, milliseconds, MB, counts by status."""
        p50, p95, p99 = np.percentile(self.latencies, [50, 95, 99]) * 1000 if self.latencies else [np.nan] * 3
        return {
            "server": self.name,
            "films": len(self.latencies) * self.batch,
            "seconds": round(self.seconds, 1),
            "films/s": round(len(self.latencies) * self.batch / self.seconds, 1),
            "p50 ms": round(p50),
            "p95 ms": round(p95),
            "p99 ms": round(p99),
            "MB before": round(self.memory[0]),
            "MB half way": round(self.memory[1]),
            "MB after": round(self.memory[-1]),
            "answers": ", ".join(f"{n} x {status}" for status, n in sorted(self.statuses.items(), key=str)),
        }


def plain_app(run: str):
    """The bare route."""
    from flask import Flask, request

    app, diagnoser = Flask("plain"), Diagnoser.load(run)
    folder = Path(tempfile.mkdtemp(prefix="plain-"))

    @app.post("/")
    @torch.no_grad()
    def diagnose():
        film = Image.open(request.files["files"].stream).convert("L")
        film = film.resize((diagnoser.image_size,) * 2, Image.Resampling.BILINEAR)
        clean = diagnoser.denoiser(torch.from_numpy(np.asarray(film, np.float32) / 255)[None, None])
        probabilities = (diagnoser.classifier(clean)[0] / diagnoser.temperature).softmax(0)
        Image.fromarray(images.to_uint8(clean[0, 0].numpy())).save(folder / f"{uuid.uuid4()}.png")
        return {"label": diagnoser.classes[int(probabilities.argmax())], "probabilities": probabilities.tolist()}

    return app


def start(command: list[str]) -> tuple[subprocess.Popen, int]:
    """A server as a process of its own, and its port, once it answers."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, int(found[1])
    raise SystemExit(f"{' '.join(command)} did not start")


def load(
    port: int, path: str, bodies: list[tuple[bytes, str]], clients: int, seconds: float, tally: Tally, pid: int
) -> None:
    """Send films from so many clients for so long; a busy server is asked again after the time it names."""
    end, turn, lock = time.monotonic() + seconds, itertools.count(), threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            body, kind = bodies[next(turn) % len(bodies)]
            since = time.perf_counter()
            try:
                connection.request("POST", path, body, {"Content-Type": kind})
                answer = connection.getresponse()
                answer.read()
                status: int | str = answer.status
            except (OSError, http.client.HTTPException) as error:
                status, answer = type(error).__name__, None
                connection.close()
            with lock:
                tally.statuses[status] += 1
                if status == 200:
                    tally.latencies.append(time.perf_counter() - since)
            if status == 503:
                time.sleep(float(answer.headers["Retry-After"]))

    began = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    tally.memory.append(resident(pid))
    for thread in threads:
        thread.join()
    tally.seconds += time.monotonic() - began


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def multipart(*films: bytes, **fields: str) -> tuple[bytes, str]:
    """A form with these files, and its content type."""
    edge = uuid.uuid4().hex
    start = f"--{edge}\r\nContent-Disposition: form-data; name="
    parts = [f'{start}"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    parts += [f'{start}"files"; filename="film.png"\r\n\r\n'.encode() + film + b"\r\n" for film in films]
    return b"".join([*parts, f"--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"


def films(folder: str, n: int) -> list[bytes]:
    """Files of a folder, or phantoms of 256 pixels as PNG."""
    if folder:
        return [path.read_bytes() for path in sorted(p for p in Path(folder).rglob("*") if p.is_file())[:n]]
    drawn, rng = [], np.random.default_rng(0)
    for k in range(n):
        pixels = phantom.draw(list(phantom.FINDINGS)[k % 3], size=256, rng=rng)
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
        drawn.append(buffer.getvalue())
    return drawn


def main() -> None:
    """Load both servers in turn and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo")
    parser.add_argument("--films", default="", help="folder of films; phantoms by default")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60, help="of load for each server in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="films in one request to the service")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        plain_app(given.run).run(port=0, threaded=False)
        return
    sent = films(given.films, 64)
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "pneumo_lib", "serve", "--port", "0", "--run", given.run]
        ours += ["--history", f"sqlite:///{folder}/history.sqlite3"]
        plain = [sys.executable, __file__, "--plain", "--run", given.run]
        groups = [tuple(itertools.islice(itertools.cycle(sent), k, k + given.batch)) for k in range(len(sent))]
        servers = [
            ("bare Flask", plain, "/", [multipart(film) for film in sent], 1),
            (
                "service",
                ours,
                "/api/v1/diagnose",
                [multipart(*group, keep_film="true") for group in groups],
                given.batch,
            ),
        ]
        rows = []
        for name, command, path, bodies, batch in servers * given.rounds:
            process, port = start(command)
            try:
                load(port, path, bodies, given.clients, WARM_UP, Tally("warm-up"), process.pid)
                tally = Tally(name, batch=batch, memory=[resident(process.pid)])
                load(port, path, bodies, given.clients, given.seconds, tally, process.pid)
                tally.memory.append(resident(process.pid))
            finally:
                process.terminate()
                process.wait(30)
            rows.append(tally.row())
    speeds = [[row["films/s"] for row in rows[k::2]] for k in range(2)]
    ratio = round(float(np.median(speeds[1]) / np.median(speeds[0])), 2)
    if given.json:
        print(json.dumps({"clients": given.clients, "rows": rows, "ratio": ratio}, indent=1))
        return
    for name in rows[0]:
        print(f"{name:12}", *(f"{row[name]!s:>18}" for row in rows))
    print(f"throughput, service over bare Flask, medians of {given.rounds}: {ratio} x at {given.clients} clients")


if __name__ == "__main__":
    main()
