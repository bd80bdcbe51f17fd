"""A piece of work on a GPU, recorded once as a CUDA graph and replayed from then on.

Steps of small networks leave a GPU waiting for Python, which starts some hundred kernels for each. A graph starts them
all at once; every call finds its tensors where those of the recording lay.

Source: "CUDA graphs" in PyTorch's notes on CUDA semantics, the recipe for whole networks.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WARM = 3  # calls before the recording, in which libraries choose their algorithms and take their memory

Work = Callable[..., tuple[Tensor, ...]]


class Replayed:
    """Calls `work`, and from the fourth call on replays it wherever the shapes are those of the first.

    Other shapes, such as those of a short last batch, are worked on as without recording.

    Args:
        work: tensors in, tensors out; leaves gradients in `grad` of the parameters, after it has removed the former
            ones. It must neither wait for the device nor send anything to it.
        parameters: those that get gradients.

    What a call returns is overwritten by the next one.
    """

    def __init__(self, work: Work, parameters: Iterable[nn.Parameter]) -> None:
        self.work, self.parameters = work, list(parameters)
        self.shapes: list[torch.Size] = []
        self.warmed = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        self.shapes = self.shapes or [one.shape for one in given]
        if [one.shape for one in given] != self.shapes:
            return self.work(*given)
        if self.warmed < WARM:
            self.warmed += 1
            return aside(self.work, given)
        if self.replay is None:
            self.given = tuple(one.clone() for one in given)
            self.replay, self.answer = record(self.work, self.given)
            self.grads = [parameter.grad for parameter in self.parameters]
        for kept, new in zip(self.given, given, strict=True):
            kept.copy_(new)
        self.replay()
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad  # a step of another shape has put its own there
        return self.answer


def aside(work: Work, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The work on a stream of its own, as it has to be done before a recording."""
    own = torch.cuda.Stream()
    own.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(own):
        answer = work(*given)
    torch.cuda.current_stream().wait_stream(own)
    return answer


def record(work: Work, given: tuple[Tensor, ...]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """What replays the work on those very tensors, and the tensors that each replay fills. Nothing is worked on yet.

    Raises:
        RuntimeError: CUDA's, where the work waits for the device or sends something to it.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = work(*given)
    return graph.replay, answer
