"""What decodes in `gpu_check.py`: voxedge's own loop, ONNX Runtime over buffers that never move, and transformers.

In: a bundle's graph or a checkpoint, and a capacity. Out: `Steps` that are rewound, stepped and prefilled; each call
returns when its logits are on the host, so that a wall clock around it measures the whole step. Measures nothing.

ONNX Runtime's CUDA graphs need every tensor at an address that stays, on the device. voxedge's loop gives token ids
and lengths from the host, so `FixedSteps` binds copies of its own. The fused flavour's cache has a fixed capacity, and
its kernel reads the past's length from the device, so one captured step serves every context; the portable flavour's
past grows, so it would need a capture per length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Engine
from voxedge.engines.errors import BackendUnavailableError
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.ort import load_onnxruntime
from voxedge.runtime.decoder import CacheShape, Decoder, KvCache

Logits = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]
_VOCABULARY = 97


class Steps(Protocol):
    """Something that decodes."""

    def rewind(self, context: int) -> None:
        """Make the same `context` tokens the past."""

    def step(self) -> Logits:
        """Append one token and wait for its logits [C]."""

    def prefill(self, count: int) -> Logits:
        """Forget everything, take `count` tokens at once and wait for the logits [C] after the last."""


def prompt(count: int) -> npt.NDArray[np.int32]:
    """The tokens that every engine is given."""
    return np.arange(count, dtype=np.int32) % _VOCABULARY


class OurSteps:
    """`runtime.decoder` over any engine of the language model."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._decoder = Decoder(engine)
        self._cache = KvCache(engine, self._decoder.cache_shape, capacity)
        self._filled = 0

    def rewind(self, context: int) -> None:
        """Fill the cache once, then only set its length back."""
        self._cache.length = min(self._filled, context)
        if context > self._filled:
            self.prefill(context)

    def step(self) -> Logits:
        """Append token 1; what it overwrites of the prompt has to be filled again."""
        self._filled = min(self._filled, self._cache.length)
        return self._decoder.forward(np.array([1], np.int32), self._cache).copy()

    def prefill(self, count: int) -> Logits:
        """Through the prefill profile, in parts where it is longer."""
        self._cache.clear()
        found = self._decoder.forward(prompt(count), self._cache).copy()
        self._filled = count
        return found


class FixedSteps:
    """A session of ONNX Runtime whose tensors never move; its step is captured as a CUDA graph where asked for."""

    def __init__(self, path: Path, spec: GraphSpec, capacity: int, graph: bool, device: Device = "cuda") -> None:
        runtime = load_onnxruntime(device, spec.min_onnxruntime)
        self._device, self._value = device, runtime.OrtValue.ortvalue_from_numpy
        self._session = _open(runtime, path, device, graph)
        shape = CacheShape.of(spec)
        self.placement = placement(self._session)
        self._capacity, self._length, self._filled = capacity, 0, 0
        rows = np.zeros((1, shape.kv_heads, capacity, shape.head_dim), shape.dtype)  # [B, G, M, D]
        leaves = [tensor.name.removeprefix("past.") for tensor in spec.inputs if tensor.name.startswith("past.")]
        self._caches = {leaf: self._put(rows) for leaf in leaves}
        self._logits = self._put(np.zeros(spec.output("logits").sizes({"batch": 1}), np.float32))  # [B, C]
        self._ids, self._lengths = self._put(np.ones((1, 1), np.int32)), self._put(np.zeros(1, np.int32))
        # The total is read on the host, once per capture: the capacity bounds it, the device's length says the rest.
        self._step = self._binding(self._ids, self._lengths, capacity)
        self._captured, self._free = runtime.RunOptions(), runtime.RunOptions()
        self._free.add_run_config_entry("gpu_graph_id", "-1")

    def _put(self, array: npt.NDArray[Any]) -> Any:  # noqa: ANN401 - ONNX Runtime has no types
        return self._value(array.copy(), self._device, 0)  # on the CPU the array itself becomes the buffer

    def _binding(self, ids: Any, lengths: Any, total: int) -> Any:  # noqa: ANN401
        binding = self._session.io_binding()
        count = ids.shape()[1]
        inputs = {"ids": ids, "lengths": lengths, "logits_at": self._put(np.array([count - 1], np.int32))}
        inputs["total"] = self._value(np.array([total], np.int32), "cpu", 0)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for leaf, value in self._caches.items():
            binding.bind_ortvalue_input(f"past.{leaf}", value)
            binding.bind_ortvalue_output(f"present.{leaf}", value)
        binding.bind_ortvalue_output("logits", self._logits)
        return binding, inputs  # a binding does not keep what is bound alive

    def rewind(self, context: int) -> None:
        """As `OurSteps`."""
        if context > self._filled:
            self.prefill(context)
        self._length = context

    def step(self) -> Logits:
        """New values into the old buffers, one run, logits to the host."""
        self._filled = min(self._filled, self._length)
        self._ids.update_inplace(np.ones((1, 1), np.int32))
        self._lengths.update_inplace(np.array([self._length], np.int32))
        self._session.run_with_iobinding(self._step[0], self._captured)
        self._length += 1
        return self._read()

    def prefill(self, count: int) -> Logits:
        """Never captured: its length varies."""
        for start in range(0, count, 1024):
            ids = prompt(count)[None, start : start + 1024]
            end = start + ids.shape[1]
            bound = self._binding(self._put(ids), self._put(np.array([end - 1], np.int32)), end)
            self._session.run_with_iobinding(bound[0], self._free)
        self._length = self._filled = count
        return self._read()

    def _read(self) -> Logits:
        found: Logits = self._logits.numpy()[0]
        return found


def _open(runtime: Any, path: Path, device: Device, graph: bool) -> Any:  # noqa: ANN401
    providers = _providers(device, graph)
    session = runtime.InferenceSession(str(path), _options(runtime), providers=providers)
    if device == "cuda" and session.get_providers()[0] != providers[0][0]:
        raise BackendUnavailableError(f"expected {providers[0][0]}, found {session.get_providers()[0]}")
    return session


def _options(runtime: Any) -> Any:  # noqa: ANN401
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    settings.enable_mem_pattern = False
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def _providers(device: Device, graph: bool) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"enable_cuda_graph": str(int(graph))}), "CPUExecutionProvider"]


def placement(session: Any) -> dict[str, dict[str, int]]:  # noqa: ANN401
    """How many nodes of each operator every execution provider has taken: what fell back to the CPU shows here."""
    found: dict[str, dict[str, int]] = {}
    for part in session.get_provider_graph_assignment_info():
        counts = found.setdefault(part.ep_name, {})
        for node in part.get_nodes():
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return found


def place(path: Path, device: Device) -> dict[str, dict[str, int]]:
    """`placement` of a graph that is loaded for nothing else."""
    runtime = load_onnxruntime(device)
    return placement(_open(runtime, path, device, False))


class TransformersSteps:
    """Hugging Face's model over a static cache; its step compiled by torch.compile with CUDA graphs, or eager."""

    def __init__(self, folder: Path, capacity: int, device: Device = "cuda", mode: str | None = None) -> None:
        import torch
        import transformers  # type: ignore[import-not-found]

        self._torch, self._device = torch, device
        dtype = torch.float16 if device == "cuda" else torch.float32
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self._model = model.to(device).eval()
        self._cache: Any = transformers.StaticCache(config=model.config, max_cache_len=capacity)
        self._forward = torch.compile(self._model.forward, mode=mode, fullgraph=True) if mode else self._model.forward
        self._length = 0

    def _run(self, forward: Callable[..., Any], ids: Sequence[int] | npt.NDArray[np.int32]) -> Logits:
        torch = self._torch
        given = torch.as_tensor(np.asarray(ids, np.int64), device=self._device)[None]
        place = torch.arange(self._length, self._length + len(ids), device=self._device)
        with torch.inference_mode():
            found = forward(
                input_ids=given,
                past_key_values=self._cache,
                position_ids=place[None],
                use_cache=True,
                logits_to_keep=1,
            )
        self._length += len(ids)
        logits: Logits = found.logits[0, -1].float().cpu().numpy()
        return logits

    def rewind(self, context: int) -> None:
        """Fill a cleared cache in eager mode: the compiled step sees one token only."""
        self._reset()
        if context:
            self._run(self._model.forward, prompt(context))

    def _reset(self) -> None:
        with self._torch.inference_mode():
            self._cache.reset()
        self._length = 0

    def step(self) -> Logits:
        """Append token 1."""
        return self._run(self._forward, [1])

    def prefill(self, count: int) -> Logits:
        """In eager mode."""
        self._reset()
        return self._run(self._model.forward, prompt(count))
