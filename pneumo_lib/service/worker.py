"""Inference behind a bounded queue: films that wait at the same time go through a network together."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from pneumo_lib.decision import Answer
from pneumo_lib.errors import ServiceError
from pneumo_lib.service.catalog import Offer


@dataclass(frozen=True)
class _Job:
    offer: Offer
    handling: str
    film: np.ndarray
    future: Future = field(default_factory=Future)

    def goes_with(self, other: "_Job") -> bool:
        return self.offer is other.offer and self.handling == other.handling


class Worker:
    """Threads that classify films, as many as there are cores to do it.

    Args:
        places: films that may be in work at once, read ones and waiting ones alike.
        batch: films that go through a network together at most.
        threads: by default one for each thread that torch would use itself; torch is then left one in each.
    """

    def __init__(self, places: int, batch: int, threads: int = 0) -> None:
        self.places, self.batch = places, batch
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._taken, self._closed = 0, False
        count = threads or torch.get_num_threads()
        self._threads = [threading.Thread(target=self._work, name=f"inference-{k}") for k in range(count)]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @contextlib.contextmanager
    def reserved(self, films: int) -> Iterator[None]:
        """Places for so many films while open.

        Raises:
            ServiceError: there are not so many left.
        """
        with self._changed:
            if self._closed or self._taken + films > self.places:
                raise ServiceError(
                    f"{self._taken} of {self.places} places are taken and {films} are needed", code="busy"
                )
            self._taken += films
        try:
            yield
        finally:
            with self._changed:
                self._taken -= films

    def submit(self, offer: Offer, handling: str, film: np.ndarray) -> Future[Answer]:
        """Queue one film, (S, S) uint8 as `Diagnoser.shrink` gives it."""
        job = _Job(offer, handling, film)
        with self._changed:
            if self._closed:
                raise ServiceError("the service is going down", code="busy")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finish what is queued, take nothing new, end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        torch.set_num_threads(1)  # counts for this thread: the films, not the arithmetic of one, are shared out
        while jobs := self._next():
            try:
                films = np.stack([job.film for job in jobs])
                answers = jobs[0].offer.diagnoser.answer(films, jobs[0].handling)
                for job, answer in zip(jobs, answers, strict=True):
                    job.future.set_result(answer)
            except BaseException as error:  # whoever waits must not wait for ever
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)

    def _next(self) -> list[_Job]:
        """The jobs at the front that go together, a fair share of what waits; empty when closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            share = min(self.batch, -(-len(self._waiting) // len(self._threads)))
            jobs: list[_Job] = []
            while self._waiting and len(jobs) < share and (not jobs or self._waiting[0].goes_with(jobs[0])):
                jobs.append(self._waiting.popleft())
            return jobs
