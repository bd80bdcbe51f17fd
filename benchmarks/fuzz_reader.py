"""Mutated films through the reader, in a process with a memory cap and a watchdog: what comes out, and how fast.

    python benchmarks/fuzz_reader.py --cases 20000 --seed 0
    python benchmarks/fuzz_reader.py --seed 0 --case 1234          # that one again

A film that can be used and an ImageError with one of its codes are right answers; what starts with "!" is a failure.
"""

import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import mutated_films
import numpy as np
import typer

from pneumo_lib import images
from pneumo_lib.errors import ImageError

LIMIT = 2.0  # seconds of processor time for one film; at twice as many its reading is broken off
PATIENCE = 120.0  # seconds on the clock, for a reader that waits: the machine may have other things to do
MEMORY_CAP = 3 * 2**30  # bytes of address space of a worker
MAX_WARNINGS, MAX_TEXT = 100, 1000  # warnings about one film; characters of one of them, or of an error's message

Reader = Callable[[bytes], images.Film]


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        result: ``film``, the code of an ImageError, or a failure, which starts with "!".
        seconds: processor time, or time on the clock where the worker was lost.
        memory: the most that the worker ever held until then, in MiB.
        warned: how many warnings were issued.
    """

    result: str
    seconds: float
    memory: float = 0
    warned: int = 0


@dataclass(frozen=True)
class Watch:
    """Limits of a run; see the constants of the same names."""

    limit: float = LIMIT
    patience: float = PATIENCE
    memory_cap: int = MEMORY_CAP


def run(seed: int, numbers: range, *, reader: Reader = images.open_film, watch: Watch = Watch()) -> Iterator[Outcome]:
    """Yield the outcome of each case, read one after the other in a worker that is replaced when it is lost."""
    worker = None
    try:
        for number in numbers:
            worker = worker or _Worker(seed, reader, watch)
            outcome = worker.ask(number)
            worker = worker if outcome.memory else worker.stop()
            yield outcome
    finally:
        if worker:
            worker.stop()


class _Worker:
    def __init__(self, seed: int, reader: Reader, watch: Watch):
        context = multiprocessing.get_context("spawn")  # a fresh one: what this process holds must not count
        self.pipe, theirs = context.Pipe()
        self.watch, self.process = watch, context.Process(target=_work, args=(theirs, seed, reader, watch), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()  # it has imported all it needs

    def ask(self, number: int) -> Outcome:
        started = time.monotonic()
        try:
            self.pipe.send(number)
            if any(self.pipe.poll(self.watch.patience / 2) for _ in range(2)):  # the clock of a paused machine jumps
                return self.pipe.recv()
            return Outcome("! hang", time.monotonic() - started)
        except (EOFError, OSError):
            self.process.join()
            return Outcome(_death(self.process.exitcode), time.monotonic() - started)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _death(status: int | None) -> str:
    if status == -signal.SIGPROF:
        return "! hang"
    return f"! crash ({signal.Signals(-status).name})" if status and status < 0 else f"! crash (exit status {status})"


def _work(pipe: Connection, seed: int, reader: Reader, watch: Watch) -> None:
    mutated_films.samples()
    resource.setrlimit(resource.RLIMIT_AS, (watch.memory_cap, watch.memory_cap))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryFile() as said:
        for descriptor in (1, 2):
            os.dup2(said.fileno(), descriptor)
        pipe.send("ready")
        while True:
            case = mutated_films.make_case(seed, pipe.recv())
            before = os.fstat(said.fileno()).st_size
            signal.setitimer(signal.ITIMER_PROF, 2 * watch.limit)  # counts processor time, and ends the process
            result, seconds, warned = _read(case.data, reader)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if seconds > watch.limit:
                result = f"! over {watch.limit:g} s"
            elif os.fstat(said.fileno()).st_size > before:
                result = "! wrote to stdout or stderr"
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pipe.send(Outcome(result, seconds, memory, warned))


def _read(data: bytes, reader: Reader) -> tuple[str, float, int]:
    started = time.process_time()
    with warnings.catch_warnings(record=True, action="always") as caught:
        result = verdict(data, reader)
    seconds = time.process_time() - started
    texts = [str(warning.message) for warning in caught]
    if any("Secret" in text for text in texts):
        result = "! a warning names the patient"
    elif len(texts) > MAX_WARNINGS or any(len(text) > MAX_TEXT for text in texts):
        result = "! flood of warnings"
    return result, seconds, len(texts)


def verdict(data: bytes, reader: Reader) -> str:
    """Return ``film``, the code of an ImageError, or what is wrong, with a "!" before it."""
    try:
        film = reader(data)
    except ImageError as fault:
        if isinstance(fault.__cause__, MemoryError):
            return "! over the memory cap"
        sound = fault.code in images.HINTS and len(str(fault)) <= MAX_TEXT and "Secret" not in str(fault)
        return fault.code if sound else "! unsound ImageError"
    except MemoryError:
        return "! over the memory cap"
    except BaseException as error:
        return f"! {type(error).__name__}"
    return "film" if _is_usable(film.pixels) else "! unusable film"


def _is_usable(pixels: np.ndarray) -> bool:
    right = pixels.dtype == np.float32 and pixels.ndim == 2 and pixels.size > 0
    return bool(right and np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1)


def table(counts: Counter[tuple[str, str]]) -> str:
    """Return the outcomes as text, a line each, a column per kind; failures come first."""
    lines = [("outcome", *mutated_films.KINDS, "all")]
    for result in sorted({result for result, _ in counts}):
        cells = [counts[result, kind] for kind in mutated_films.KINDS]
        lines.append((result, *(f"{cell:,}" for cell in cells), f"{sum(cells):,}"))
    return "\n".join(f"{line[0]:30}" + "".join(f"{cell:>9}" for cell in line[1:]) for line in lines)


def main(
    cases: Annotated[int, typer.Option(help="how many")] = 20_000,
    seed: Annotated[int, typer.Option(help="another seed makes other cases")] = 0,
    case: Annotated[int, typer.Option(help="only this number; prints what became of it")] = -1,
    keep: Annotated[Path | None, typer.Option(help="folder for the files that failed")] = None,
) -> None:
    """Read mutated films, print a table of what came of them, end with status 1 when any of it is a failure."""
    numbers, counts, outcomes = range(case, case + 1) if case >= 0 else range(cases), Counter(), {}
    for number, outcome in zip(numbers, run(seed, numbers), strict=True):
        kind = mutated_films.KINDS[number % len(mutated_films.KINDS)]
        counts[outcome.result, kind] += 1
        outcomes[number] = outcome
        if outcome.result.startswith("!") or case >= 0:
            made = mutated_films.make_case(seed, number)
            print(f"case {number}: {outcome.result}, {outcome.seconds:.2f} s, {made.kind}, {', '.join(made.done)}")
            if keep and case < 0:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{number}.{made.kind.lower()}").write_bytes(made.data)
    slowest = max(outcomes, key=lambda number: outcomes[number].seconds)
    loudest = max(outcomes, key=lambda number: outcomes[number].warned)
    memory = max(outcome.memory for outcome in outcomes.values())
    largest = next(number for number in outcomes if outcomes[number].memory == memory)
    print(table(counts))
    print(f"slowest: case {slowest}, {outcomes[slowest].seconds:.2f} s; most warnings: case {loudest},", end=" ")
    print(f"{outcomes[loudest].warned}; most memory: {memory:.0f} MiB, reached in case {largest}")
    raise typer.Exit(any(result.startswith("!") for result, _ in counts))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
