"""Rows of an array that stay where they are, on the disk as a rule, until somebody asks for them."""

from typing import Any

import numpy as np


class Picked:
    """Some rows of an array, in an order of their own, without a copy of them.

    What is indexed comes as an array in memory, so a training that asks for a batch at a time needs memory for that
    batch. NumPy makes an array of the whole where it needs one.

    Args:
        source: (M, ...) array, memory-mapped or not.
        rows: (N,) indices into it.
    """

    def __init__(self, source: np.ndarray, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self.rows), *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the source."""
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """What a copy would take."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.source[self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("picked rows cannot become an array without a copy")
        return np.asarray(self[:], dtype)
