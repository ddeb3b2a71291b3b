"""Values of a checkpoint's tensors that are computed on the way to a graph.

In: `LazyTensor`s. Out: wrappers that are `LazyTensor`s themselves: elementwise, weight norm, zeros. None holds more
than a block. Moves nothing (see `checkpoint.rearrange`); does not know: file formats, names of models, graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.tensors import (
    Array,
    Block,
    LazyTensor,
    array_dtype,
    block_indices,
    item_bytes,
    materialise,
)


@dataclass(frozen=True, slots=True)
class Zeros:
    """Zeros that a model has no tensor for, such as the row of an id that adds nothing."""

    shape: tuple[int, ...]
    """Lengths of the axes."""
    dtype: str
    """Type that the tensors beside it are stored in."""
    name: str = "zeros"
    """For messages."""

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Blocks of zeros; see `LazyTensor.blocks`."""
        for index in block_indices(self.shape, item_bytes(self.dtype), max_bytes):
            yield index, np.zeros([part.stop - part.start for part in index], array_dtype(self.dtype))


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A function applied to every block; it must act on each element alone."""

    tensor: LazyTensor
    """The source."""
    function: Callable[[Array], Array]
    """Array in, array of the same shape out."""
    label: str
    """What the function does, for messages."""
    dtype: str = "float32"
    """Type that the function returns."""

    @property
    def name(self) -> str:
        """The function's label and the source."""
        return f"{self.label}({self.tensor.name})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source."""
        return self.tensor.shape

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Transformed blocks; see `LazyTensor.blocks`."""
        for index, values in self.tensor.blocks(max_bytes):
            yield index, self.function(values).astype(self.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class WeightNorm:
    """Weight normalisation folded in float64: w = g v / ||v|| (Salimans and Kingma 2016, eq. 2).

    The norm runs over all axes but the first. That is right for transposed convolutions too, whose first axis is the
    INPUT channel, because the layer normalises its stored weight along axis 0.
    """

    gain: LazyTensor
    """g, [C, 1, ...]: one value per index of the direction's first axis."""
    direction: LazyTensor
    """v, [C, ...]."""

    def __post_init__(self) -> None:
        expected = (self.direction.shape[:1] + (1,) * (len(self.direction.shape) - 1)) if self.direction.shape else ()
        if self.gain.shape != expected or not expected:
            raise CheckpointError(
                f"{self.gain.name}: expected weight-norm gains of shape {expected} for directions of shape "
                f"{self.direction.shape}, found {self.gain.shape}; only normalisation along axis 0 is supported"
            )

    @property
    def name(self) -> str:
        """Name of the direction."""
        return self.direction.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the direction."""
        return self.direction.shape

    @property
    def dtype(self) -> str:
        """The folded weight is float32."""
        return "float32"

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Folded blocks, in two passes over the direction; see `LazyTensor.blocks`."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a zero direction gives NaN, which checked_blocks names
            scale = materialise(self.gain).astype(np.float64).reshape(-1) / self._norms(max_bytes)  # [C]
            for index, values in self.direction.blocks(max_bytes):
                factor = scale[index[0]].reshape((-1,) + (1,) * (values.ndim - 1))
                yield index, (values.astype(np.float64) * factor).astype(np.float32)

    def _norms(self, max_bytes: int) -> npt.NDArray[np.float64]:
        squares = np.zeros(self.shape[0], np.float64)
        for index, values in self.direction.blocks(max_bytes):
            rows = values.astype(np.float64).reshape(values.shape[0], -1)  # [c, rest]
            squares[index[0]] += (rows * rows).sum(axis=1)
        return np.sqrt(squares)
