"""One file per architecture, one registry: `build(name, **arguments)` makes any network of this project."""

import contextlib
import difflib
import io
import shutil
from collections.abc import Callable
from copy import deepcopy

import torch
import torchsummary
import torchviz
from torch import nn

from pneumo_lib.errors import UsageError
from pneumo_lib.models.autoencoder import Autoencoder
from pneumo_lib.models.cnn2 import CNN2
from pneumo_lib.models.unet_denoiser import UNetDenoiser

MODELS: dict[str, Callable[..., nn.Module]] = {
    "autoencoder": Autoencoder,
    "cnn2": CNN2,
    "unet_denoiser": UNetDenoiser,
}


NO_DOT = "Graphviz's `dot` is not installed, so the graph is given as text (DOT); any DOT viewer draws it.\n"


def build(name: str, **arguments: object) -> nn.Module:
    """Make a network with fresh weights from torch's global generator.

    Raises:
        UsageError: no architecture of that name, or an argument that it does not take or cannot use.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no architecture is called {name!r}.{hint} There are: {', '.join(sorted(MODELS))}.")
    try:
        return MODELS[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"architecture {name!r} cannot be built from {arguments}: {error}") from error


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def summary(model: nn.Module, image_size: int) -> str:
    """The layer table of torchsummary: layer, output shape, parameters, as text.

    torchsummary prints, and looks for a GPU unless told otherwise; it is given a copy on the CPU here.
    """
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        torchsummary.summary(_cpu_copy(model), (1, image_size, image_size), device="cpu")
    return text.getvalue().strip()


def graph(model: nn.Module, image_size: int) -> tuple[str, bytes | None]:
    """The autograd graph of one forward pass, by torchviz.

    Returns:
        The DOT text, and the drawing as PNG bytes; None where Graphviz's `dot` is not installed.
    """
    copy = _cpu_copy(model)
    dot = torchviz.make_dot(copy(torch.zeros(1, 1, image_size, image_size)), params=dict(copy.named_parameters()))
    dot.graph_attr.update(rankdir="LR", size="12,12")
    return dot.source, dot.pipe(format="png") if shutil.which("dot") else None


def _cpu_copy(model: nn.Module) -> nn.Module:
    return deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()
