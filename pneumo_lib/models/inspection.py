"""What a network is made of and asks for: layer table, graph, size, arithmetic, stages, smallest film."""

import contextlib
import io
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import torch
import torchsummary
import torchviz
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pneumo_lib.errors import UsageError

NO_DOT = (
    "The graph is given as text (DOT), which any DOT viewer draws: either Graphviz's `dot` is not installed, "
    "or there are too many edges for a readable drawing.\n"
)
LARGEST_DRAWN = 1000  # edges; DenseNet-121 has 1695, on which dot works for minutes
LARGEST_SEARCHED = 1024  # pixels


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_flops(model: nn.Module, image_size: int) -> int:
    """Floating point operations of one film's way through the network, a multiplication and an addition being two.

    Convolutions and matrix products are counted, which is nearly all; nothing is computed.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _meta_copy(model)(torch.empty(1, 1, image_size, image_size, device="meta"))
    return counter.get_total_flops()


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose feature maps tell a network's story, by name, in order of execution; Grad-CAM takes the last.

    A network names them in its attribute `stages`; without one they are its convolutions.
    """
    names = getattr(model, "stages", None)
    if names is None:
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return {name: model.get_submodule(name) for name in names}


def summary(model: nn.Module, image_size: int) -> str:
    """The layer table of torchsummary: layer, output shape, parameters, as text.

    torchsummary prints, and looks for a GPU unless told otherwise; it is given a copy on the CPU here.
    """
    text, copy = io.StringIO(), _cpu_copy(model)
    for module in copy.modules():
        module.register_forward_pre_hook(_joined)
    with contextlib.redirect_stdout(text):
        torchsummary.summary(copy, (1, image_size, image_size), device="cpu")
    return text.getvalue().strip()


def graph(model: nn.Module, image_size: int) -> tuple[str, bytes | None]:
    """The autograd graph of one forward pass, by torchviz.

    Returns:
        The DOT text, and the drawing as PNG bytes; None where Graphviz's `dot` is not installed, or the graph has more
        than 1000 edges.
    """
    copy = _cpu_copy(model)
    dot = torchviz.make_dot(copy(torch.zeros(1, 1, image_size, image_size)), params=dict(copy.named_parameters()))
    dot.graph_attr.update(rankdir="LR", size="12,12")
    drawn = shutil.which("dot") and dot.source.count("->") <= LARGEST_DRAWN
    return dot.source, dot.pipe(format="png") if drawn else None


@cache
def takes(make: Callable[..., nn.Module], side: int) -> bool:
    """Whether a classifier of that kind can be built for films of `side` pixels and takes one in evaluation.

    Tried on PyTorch's `meta` device, which computes shapes alone: no memory, no arithmetic, no random numbers.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            make(image_size=side).eval()(torch.empty(1, 1, side, side))
    except (RuntimeError, ValueError):
        return False
    return True


@cache
def smallest_side(make: Callable[..., nn.Module]) -> int:
    """Side in pixels of the smallest film that such a classifier takes; UsageError if it takes none up to 1024."""
    low, high = 0, 1
    while not takes(make, high):
        low, high = high, 2 * high
        if high > LARGEST_SEARCHED:
            raise UsageError(f"it takes no film of 1 to {LARGEST_SEARCHED} pixels: look for a fault in the network")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if takes(make, middle) else (middle, high)
    return high


def _joined(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    """DenseNet hands lists of maps from layer to layer, which torchsummary cannot read; joined they mean the same."""
    return tuple(torch.cat(one, 1) if isinstance(one, list) else one for one in inputs)


def _cpu_copy(model: nn.Module) -> nn.Module:
    return deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy without values, in evaluation mode; the original's are never copied, however large it is."""
    values = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(value): torch.empty_like(value, device="meta") for value in values}).eval()
