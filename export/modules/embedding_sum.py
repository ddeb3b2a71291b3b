"""Several tables summed to one embedding: text and all audio channels of a row.

In: text ids and rows of the audio tables. Out: embeddings. Which code is which row, and what a pad code stands for, is
the runtime's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxedge.export.modules.basic import Embedding


class EmbeddingSum(nn.Module):
    """Rows of the text table and of the stacked audio tables, summed in FP32."""

    def __init__(self, text_rows: int, audio_rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.text = Embedding(text_rows, width, dtype)
        self.audio = Embedding(audio_rows, width, dtype)

    def forward(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Sum text rows [B, S] and audio rows [B, S, n] INT32 to [B, S, d] FP32."""
        summed: Tensor = self.text(ids) + self.audio(rows).sum(2)
        return summed
