"""How fast this machine could train a network: its copy bandwidth and matrix rate, and the floor that they imply.

The floor counts what cannot be left out: the multiplications of the convolutions and matrix products, three times the
forward pass (forward, gradient of the inputs, gradient of the weights), and every layer's answer written once and read
twice, its gradient written and read once, in the precision of training. The larger of the two times is the floor. A
layer may beat the count of bytes by staying in a cache, and no library fuses all of them.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pneumo_lib import models, runtime

PASSES, TOUCHES = 3, 5  # over the products, and over each layer's answer


@dataclass(frozen=True)
class Machine:
    """Measured: bytes per second of a copy (read and written), operations per second of a matrix product.

    `dtype` is what it multiplies fastest: bfloat16, or float32 where bfloat16 is only emulated.
    """

    bandwidth: float
    rate: float
    dtype: torch.dtype = torch.bfloat16


def measure(side: int = 2048, megabytes: int = 256) -> Machine:
    """The machine as PyTorch can use it, medians of several tries."""
    dtype = torch.bfloat16 if runtime.fast_bf16() else torch.float32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / _median(lambda: target.copy_(source))
    return Machine(copied, 2 * side**3 / _median(lambda: a @ b), dtype)


def _median(work: Callable[[], object], times: int = 7) -> float:
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def bytes_of_answers(network: nn.Module, side: int, bytes_each: int = 2) -> int:
    """Bytes of what the layers of a network give for one film."""
    sizes: list[int] = []
    kept = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MaxPool2d, nn.ReLU, nn.Sigmoid)
    hooks = [
        layer.register_forward_hook(lambda *given: sizes.append(given[2].numel() * bytes_each))
        for layer in network.modules()
        if isinstance(layer, kept)
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 1, side, side))
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def floor(network: nn.Module, side: int, machine: Machine) -> dict[str, float]:
    """Per film: GFLOP and MB of one training step, and the films per second that they allow."""
    operations = PASSES * models.count_flops(network, side)
    moved = TOUCHES * bytes_of_answers(network, side, machine.dtype.itemsize)
    seconds = max(operations / machine.rate, moved / machine.bandwidth)
    return {"GFLOP": operations / 1e9, "MB": moved / 1e6, "films/s": 1 / seconds}
