"""A trained network as a function on arrays: PyTorch answers at once, ONNX Runtime sooner once it is compiled.

Compiled, a network is one call that does not need the interpreter in between, so that threads do not wait for each
other, and gives a film the same numbers to the last bit whichever films go through beside it. PyTorch's kernels differ
with the size of a batch in the last bits of float32.
"""

import copy

import numpy as np
import onnxruntime
import torch
from torch import nn

INPUT = "films"
MOST = 4096  # films in one call


class Engine:
    """One network; threads may share it.

    Args:
        network: films (B, 1, S, S) float32 to several tensors, each with a row per film; stays as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
        self._session: onnxruntime.InferenceSession | None = None

    def __call__(self, films: np.ndarray) -> list[np.ndarray]:
        """What the network gives for films (B, 1, S, S) float32."""
        if session := self._session:
            return session.run(None, {INPUT: films})
        return self.plain(films)

    @torch.inference_mode()
    def plain(self, films: np.ndarray) -> list[np.ndarray]:
        """The same by PyTorch, compiled or not."""
        given = self._network(torch.from_numpy(films).contiguous(memory_format=torch.channels_last))
        return [tensor.numpy() for tensor in given]

    def compile(self, side: int, threads: int = 1) -> None:
        """Answer through ONNX Runtime from now on. Takes seconds, and calls of other threads go on meanwhile.

        Args:
            side: of the films, pixels.
            threads: that one call uses.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graph = to_onnx(copy.deepcopy(self._network), side)  # threads may be using the other one
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def to_onnx(network: nn.Module, side: int) -> bytes:
    """A network as an ONNX file: input "films" (B, 1, side, side) float32, any B; constants included.

    Args:
        network: in evaluation mode.
        side: of the films, pixels.
    """
    several = torch.export.Dim("batch", min=1, max=MOST)
    example = torch.rand(2, 1, side, side)
    program = torch.onnx.export(
        network, (example,), dynamo=True, input_names=[INPUT], dynamic_shapes=({0: several},), verbose=False
    )
    return program.model_proto.SerializeToString()
