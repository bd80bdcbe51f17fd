"""Threads that share a round get what they would have got alone."""

import threading
import time

import pytest

from pneumo_lib.service.together import Together


class Log:
    """Takes items in rounds; a round with a bad item takes none."""

    def __init__(self) -> None:
        self.taken, self.rounds, self.open = [], [], threading.Event()
        self.open.set()

    def take(self, items) -> None:
        self.open.wait(10)
        self.rounds.append(list(items))
        if "bad" in items:
            raise ValueError("a bad item")
        self.taken += items


def ask(together: Together, parts: list[list], found: dict) -> list[threading.Thread]:
    def one(k: int) -> None:
        try:
            together.do(parts[k])
            found[k] = None
        except Exception as error:
            found[k] = error

    threads = [threading.Thread(target=one, args=(k,)) for k in range(len(parts))]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture
def log() -> Log:
    return Log()


def crowd(log: Log, parts: list[list], **options) -> dict:
    """All parts but the first wait while the first is in work."""
    together, found = Together(log.take, **options), {}
    log.open.clear()
    threads = ask(together, parts, found)
    end = time.monotonic() + 10
    while len(together._waiting) < len(parts) - 1 and time.monotonic() < end:
        time.sleep(0.001)
    log.open.set()
    for thread in threads:
        thread.join(10)
    assert len(found) == len(parts)
    return found


def test_whoever_waits_joins_the_next_round(log):
    found = crowd(log, [[k] for k in range(20)])
    assert set(found.values()) == {None}
    assert sorted(log.taken) == list(range(20))
    assert sorted(map(len, log.rounds)) == [1, 19]


def test_a_bad_share_spoils_no_other(log):
    found = crowd(log, [[1], [2, 3], ["bad", 4], [5], ["bad"]])
    assert [k for k, error in found.items() if error] and all(isinstance(found[k], ValueError) for k in (2, 4))
    assert [found[k] for k in (0, 1, 3)] == [None] * 3
    assert sorted(log.taken) == [1, 2, 3, 5], "once each, and nothing of a share that failed"


def test_an_error_that_meets_all_alike_is_raised_for_all_and_no_share_is_tried_alone(log):
    asked = []
    found = crowd(log, [[1], [2, 3], ["bad", 4], [5]], common=lambda error: asked.append(error) or True)
    first = next(k for k in range(4) if found[k] is None)
    others = [found[k] for k in range(4) if k != first]
    assert asked and all(error is asked[0] for error in others), "one error, and it was asked about"
    assert len(log.rounds) == 2 and log.taken == log.rounds[0]


def test_alone_it_is_one_round_and_a_failure_is_not_tried_again(log):
    together = Together(log.take)
    together.do([1, 2])
    with pytest.raises(ValueError, match="a bad item"):
        together.do(["bad"])
    together.do([3])
    assert log.rounds == [[1, 2], ["bad"], [3]] and log.taken == [1, 2, 3]


def test_what_ends_a_program_ends_it(log):
    together = Together(lambda items: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        together.do([1])
