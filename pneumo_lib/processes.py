"""Several processes that run one program: who writes, who waits, and how work is shared out among them.

`torchrun`, `accelerate launch` or anything else that sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
starts them, on one machine or on many. All make the same calls in the same order; what is stored, the first one
stores, on a disk that all of them see. A process that is the only one goes through all of this unaware of it.
"""

import hashlib
import os
import platform
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from pneumo_lib.errors import UsageError

Item, Made = TypeVar("Item"), TypeVar("Made")
PATIENCE = timedelta(days=1)  # for what the first process does while the others wait, such as decoding all films
PART, PARTS = 32, 8  # items of a part, and parts that each process takes in a round of `stream`
TOLD_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
LONG = 20  # characters of a text that a message can hold
_alone, _calls = False, 0


def join() -> None:
    """Meet the other processes, where the environment says that there are any.

    From then on the signal to terminate, which launchers send when one process has died, ends this one like Ctrl-C.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        signal.signal(signal.SIGTERM, _interrupt)
        PartialState(cpu=not torch.cuda.is_available())


def leave() -> None:
    """Part from the other processes once all is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes share the work at hand."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return count() == 1 or dist.get_rank() == 0


def cores() -> int:
    """Processors for each process of this machine."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def alone() -> Iterator[None]:
    """Work inside the block is this process's own: nothing there waits for the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def unseen() -> Iterator[None]:
    """Inside the block Accelerate is not told of the other processes, if this one works alone."""
    hidden = {name: os.environ.pop(name) for name in TOLD_BY_LAUNCHERS if _alone and name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def gather(value: Any) -> list[Any]:
    """What each process gave, in the order of their ranks."""
    told = [value] * count()
    if len(told) > 1:
        dist.all_gather_object(told, value)
    return told


def by_first(function: Callable[[], Made]) -> Made:
    """What the function returns in the first process, the only one that calls it; the others wait for it."""
    if count() == 1:
        return function()
    made = None
    if first():
        with alone():
            made = function()
    return gather(made)[0]


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process goes through the block, then the others: what it stores there, they find."""
    if count() == 1:
        yield
        return
    store, key = _meeting()
    if not first():
        store.wait([key], PATIENCE)
    try:
        yield
    finally:
        store.set(key, "done")


def agree(what: str, value: str) -> None:
    """Raise a UsageError where not all processes hold the same text; `what` names it in the plural.

    A long text is represented by a hash.
    """
    if count() == 1:
        return
    if len(value) > LONG:
        value = hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:12]
    told = gather((platform.node(), value))
    if any(other != value for _, other in told):
        said = ", ".join(f"{other} (process {rank} on {host})" for rank, (host, other) in enumerate(told))
        raise UsageError(
            f"the processes of this run differ in their {what}: {said}. "
            "Start all of them with one command, on folders that all of them see."
        )


def share_out(
    function: Callable[[Item], Made], items: Sequence[Item], *, progress: Callable[..., Any] = iter, **title: str
) -> list[Made]:
    """function(item) of every item, in order, known to all processes; each was computed by one of them, alone.

    Whoever is free takes the next, so it matters little how long each takes.

    Args:
        progress: bar, called as ``progress(iterable, **title)``; the first process shows what it takes itself.
    """
    if count() == 1:
        return [function(item) for item in progress(items, **title)]
    agree("numbers of parts", str(len(items)))
    store, key = _meeting()
    taken = iter(lambda: store.add(key, 1) - 1, None)
    with alone():
        made = {number: function(items[number]) for number in progress(_below(taken, len(items)), **title)}
    joined = {number: value for part in gather(made) for number, value in part.items()}
    return [joined[number] for number in range(len(items))]


def stream(
    function: Callable[[Iterable[Item]], Iterable[Made]], items: Sequence[Item], *, progress: Callable[..., Any] = iter
) -> Iterator[Made]:
    """What the function makes of items, one for each and in their order, in every process.

    Several processes answer in rounds, so that memory does not grow with the number of items.
    """
    if count() == 1:
        yield from function(progress(items))
        return
    size = PART * PARTS * count()
    for start in progress(range(0, len(items), size)):
        turn = items[start : start + size]
        parts = [turn[k : k + PART] for k in range(0, len(turn), PART)]
        for made in share_out(lambda part: list(function(part)), parts):
            yield from made


def lost_one(error: BaseException) -> bool:
    """Whether an error says that another process of this run has gone."""
    kinds = (dist.DistError, dist.DistBackendError, dist.DistNetworkError)
    return count() > 1 and (isinstance(error, kinds) or "gloo" in str(error) or "NCCL" in str(error))


def speaks_first() -> bool:
    """Whether no process of this run has said yet why it ends; this one no longer ends at a launcher's signal."""
    if not dist.is_initialized():
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it would come between having the word and saying it
    try:
        return _store().add("ending", 1) == 1
    except RuntimeError:  # the launcher that kept the store is gone too
        return True


def _below(numbers: Iterable[int], limit: int) -> Iterator[int]:
    for number in numbers:
        if number >= limit:
            return
        yield number


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def _meeting() -> tuple[dist.Store, str]:
    """Where processes leave each other notes, and a name that all of them give to this call and to no other."""
    global _calls
    _calls += 1
    return _store(), f"pneumo/{_calls}"


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers send it more than once
    raise KeyboardInterrupt
