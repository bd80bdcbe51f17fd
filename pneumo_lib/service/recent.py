"""The films of the last minutes, in memory, so that their pictures can be shown without being stored anywhere."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Held:
    """One case: its record, the film as it is shown (H, W) uint8, and as its model takes it (S, S) uint8.

    Both pictures are empty for a file that could not be read.
    """

    record: dict[str, Any]
    shown: np.ndarray
    small: np.ndarray

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return self.shown.nbytes + self.small.nbytes + 4096


class Recent:
    """Cases by id; the oldest go when room or time is over.

    Args:
        most_bytes: memory that they may take together.
        seconds: how long one stays at most.
    """

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self.most_bytes, self.seconds = most_bytes, seconds
        self._cases: OrderedDict[str, tuple[float, Held]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()
        self._timer: threading.Timer | None = None

    def put(self, held: Held) -> None:
        """Remember a case."""
        with self._lock:
            self._cases[held.record["id"]] = (time.monotonic(), held)
            self._bytes += held.size
            self._tidy()
            self._watch()

    def get(self, id: str) -> Held | None:
        """The case of that id, if it is still there."""
        with self._lock:
            self._tidy()
            return self._cases.get(id, (0.0, None))[1]

    def change(self, id: str, record: dict[str, Any]) -> None:
        """Another record for a case that is still there; its time goes on."""
        with self._lock:
            if id in self._cases:
                since, held = self._cases[id]
                self._cases[id] = (since, replace(held, record=record))

    def forget(self, id: str) -> Held | None:
        """Take a case out."""
        with self._lock:
            held = self._cases.pop(id, (0.0, None))[1]
            self._bytes -= held.size if held else 0
            return held

    def clear(self) -> None:
        """Take all out."""
        with self._lock:
            self._cases.clear()
            self._bytes = 0
            if self._timer:
                self._timer.cancel()
                self._timer = None

    def _watch(self) -> None:
        """See to it that the oldest case goes in time, even if nobody asks for anything any more."""
        if self._cases and self._timer is None:
            since, _ = next(iter(self._cases.values()))
            self._timer = threading.Timer(max(0.0, since + self.seconds - time.monotonic()) + 0.01, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            self._timer = None
            self._tidy()
            self._watch()

    def _tidy(self) -> None:
        latest = time.monotonic() - self.seconds
        while self._cases:
            since, held = next(iter(self._cases.values()))
            if since >= latest and self._bytes <= self.most_bytes:
                return
            self._cases.popitem(last=False)
            self._bytes -= held.size
