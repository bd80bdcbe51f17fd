"""Work that is cheaper for many than for each: whoever comes while it is under way joins the next round."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Share(Generic[T]):
    """What one thread wants done."""

    items: Sequence[T]
    done: bool = False
    error: BaseException | None = None


class Together(Generic[T]):
    """Does the work of several threads at once, one round at a time; a round that fails is done share by share.

    Args:
        work: does all it is given or, where it raises, none.
        common: whether an error would meet every share alike, as when nobody is there to do the work; then no share
            is tried alone, since each would wait as long for the same.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], None], *, common: Callable[[BaseException], bool] = lambda error: False
    ) -> None:
        self._work, self._common = work, common
        self._waiting: list[_Share[T]] = []
        self._door, self._turn = threading.Lock(), threading.Lock()

    def do(self, items: Sequence[T]) -> None:
        """Return when the work on these items is done, or raise what it raised for them."""
        mine = _Share(items)
        with self._door:
            self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                with self._door:
                    shares, self._waiting = self._waiting, []
                self._round(shares)
        if mine.error:
            raise mine.error

    def _round(self, shares: Sequence[_Share[T]]) -> None:
        try:
            self._work([item for share in shares for item in share.items])
        except BaseException as error:
            alike = len(shares) == 1 or self._common(error)
            for share in shares:
                share.error = error if alike else self._alone(share)
        for share in shares:
            share.done = True

    def _alone(self, share: _Share[T]) -> BaseException | None:
        try:
            self._work(share.items)
        except BaseException as error:
            return error
        return None
