"""The codec's decoder as a module in torch on the CPU, with the weights of a bundle: what the graphs are compared with.

In: a bundle and its checkpoint's sizes. Out: a module that was not traced, and a stream over it.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import Tensor

from voxedge.engines.bundle import Bundle
from voxedge.engines.manifest import TensorSpec
from voxedge.export.checkpoint.moss_codec import CodecConfig, Transformer
from voxedge.export.codec_graphs import FRAMES_PER_CALL
from voxedge.export.modules.codec import CodecDecoder
from voxedge.runtime.codec_settings import DECODER


def load_decoder(bundle: Bundle, config: CodecConfig) -> CodecDecoder:
    """The decoder with all its layers, FP32; the graph's weights have the names and shapes of the module's."""
    depths = [stage.layers for stage in config.decoder if isinstance(stage, Transformer)]
    module = CodecDecoder(config, depths, FRAMES_PER_CALL.max + config.context, torch.float32).eval()
    graph = onnx.load(str(bundle.graph_path(bundle.manifest.graph(DECODER)))).graph
    names = set(module.state_dict())
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer if item.name in names}
    module.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in arrays.items()})
    return module


def states(tensors: tuple[TensorSpec, ...], prefix: str) -> list[TensorSpec]:
    """The graph's states in the order of the module's: by stack, by layer, key before value."""
    found = [tensor for tensor in tensors if tensor.name.startswith(prefix)]
    return sorted(found, key=lambda tensor: (*map(int, tensor.name.split(".")[1:3]), tensor.name))


class TorchStream:
    """Decodes frame by frame as the reference would: caches are concatenated and cut."""

    def __init__(self, bundle: Bundle, module: CodecDecoder, context: int) -> None:
        self._module, self._context = module, context
        inputs = bundle.manifest.graph(DECODER).inputs
        self._past = [torch.zeros(spec.sizes({"past": 0, "batch": 1})) for spec in states(inputs, "past.")]

    def feed(self, codes: np.ndarray) -> np.ndarray:
        """Codes [Q, n] to samples [n * hop]."""
        with torch.inference_mode():
            audio, *new = self._module(torch.from_numpy(np.ascontiguousarray(codes[:, None], np.int32)), self._past)
            self._past = [self._cut(old, rows) for old, rows in zip(self._past, new, strict=True)]
            samples: np.ndarray = audio.reshape(-1).numpy()
        return samples

    def _cut(self, old: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([old, rows])[-self._context :] if self._context else old
