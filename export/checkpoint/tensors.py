"""The names of `engines.lazy` under which the readers of checkpoints know them.

In: nothing. Out: re-exported names. Defines nothing of its own.
"""

from voxedge.engines.lazy import (
    DEFAULT_BLOCK_BYTES,
    FLOATING,
    ITEM_BYTES,
    MAX_AXES,
    Array,
    Block,
    Index,
    InMemory,
    LazyTensor,
    RowReadable,
    array_dtype,
    block_indices,
    checked_blocks,
    decode,
    item_bytes,
    materialise,
    source_bytes,
    total_bytes,
)

__all__ = [
    "DEFAULT_BLOCK_BYTES",
    "FLOATING",
    "ITEM_BYTES",
    "MAX_AXES",
    "Array",
    "Block",
    "InMemory",
    "Index",
    "LazyTensor",
    "RowReadable",
    "array_dtype",
    "block_indices",
    "checked_blocks",
    "decode",
    "item_bytes",
    "materialise",
    "source_bytes",
    "total_bytes",
]
