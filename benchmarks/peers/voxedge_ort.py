"""voxedge itself: the speech expert's graph for ONNX Runtime, driven by the runtime's own decoding loop.

In: a random MoE-TTS checkpoint, exported in FP32 by `prepare` and quantised from there. Options: `name` of the bundle,
and `quantise` with those of `QuantiseConfig`; without it the FP32 bundle itself. Ranges of activations and of the cache
come from a prompt of random ids, which for random weights is what there is to calibrate with. The timed step is
`runtime.decoder.Decoder.forward` over the shared cache, on a session from the session cache; nothing is bypassed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Handle, LmEngine, Logits, Reply, Request, serve_engine, token_ids

_GRAPH = "speech_expert"
_PROMPT = 96
"""Tokens that ranges are taken from."""


def _folder(request: Request, name: str = "") -> Path:
    return Path(request["work"]) / f"voxedge-{name or request['options']['name']}"


def prepare(request: Request) -> Reply:
    """Export the checkpoint and quantise it with voxedge, once; a bundle appears only when it is complete."""
    import onnxruntime  # noqa: F401

    source, folder = _folder(request, "fp32"), _folder(request)
    if not (source / "voxedge.json").is_file():
        from voxedge.export.config import ExportConfig
        from voxedge.export.systems import export_checkpoint

        export_checkpoint(Path(request["checkpoint"]), source, ExportConfig(components=(_GRAPH,)))
    if not (folder / "voxedge.json").is_file():
        from voxedge.calibration.quantise.bundle import quantise_bundle
        from voxedge.calibration.quantise.config import QuantiseConfig

        quantise_bundle(source, folder, QuantiseConfig(**request["options"]["quantise"]), _statistics(source))
    return {"path": str(folder)}


def _statistics(source: Path) -> Any:  # noqa: ANN401 - calibration is imported by `prepare` alone
    """Activations of the FP32 bundle over a prompt of random ids; kept beside the bundle."""
    from voxedge.calibration.statistics import Provenance, Statistics, bundle_hash
    from voxedge.calibration.watching import Accumulators, WatchingLoader
    from voxedge.engines.bundle import Bundle
    from voxedge.runtime.decoder import Decoder, KvCache

    path = source.with_name(source.name + ".statistics.safetensors")
    if path.is_file():
        return Statistics.load(path)
    bundle, accumulators = Bundle.open(source), Accumulators()
    loader = WatchingLoader(bundle, accumulators)
    decoder = Decoder(loader.load(_GRAPH))
    ids = token_ids(_PROMPT, int(loader.load(_GRAPH).spec.output("logits").shape[1]) - 1)
    decoder.forward(np.array(ids, np.int32), KvCache(decoder.engine, decoder.cache_shape, _PROMPT))
    loader.close()
    provenance = Provenance(bundle_hash(bundle.manifest), "random ids", "0" * 64, 1, 0, _PROMPT, "", "")
    found = {key: accumulator.finish() for key, accumulator in accumulators.items()}
    statistics = Statistics.of(provenance, {key: value for key, value in found.items() if value is not None})
    statistics.save(path)
    return statistics


class _TimedBinding:
    """A binding that adds up the seconds of its runs."""

    def __init__(self, inner: Handle, times: list[float]) -> None:
        self.bind = inner.bind
        self._run = inner.run
        self._times = times

    def run(self) -> None:
        started = time.perf_counter()
        self._run()
        self._times.append(time.perf_counter() - started)


class _TimedEngine:
    """The engine with timed bindings; all else is the engine's own."""

    def __init__(self, inner: Handle) -> None:
        self._inner = inner
        self.times: list[float] = []

    def __getattr__(self, name: str) -> Handle:
        return getattr(self._inner, name)

    def binding(self) -> _TimedBinding:
        return _TimedBinding(self._inner.binding(), self.times)


class VoxedgeOrt(LmEngine):
    """The speech expert on ONNX Runtime's CPU provider."""

    def __init__(self, request: Request) -> None:
        import onnxruntime

        from voxedge.engines.bundle import Bundle
        from voxedge.engines.ort import OrtOptions
        from voxedge.engines.session_cache import SessionCache
        from voxedge.runtime.decoder import Decoder, KvCache

        bundle = Bundle.open(_folder(request))
        spec = bundle.manifest.graph(_GRAPH, "ort")
        options = OrtOptions(device="cpu", threads=int(request["threads"]))
        sessions = SessionCache(Path(request["work"]) / "sessions")
        self._engine: Any = _TimedEngine(sessions.open(bundle, spec, options))
        self._version = onnxruntime.__version__
        self._decoder = Decoder(self._engine)
        self._cache = KvCache(self._engine, self._decoder.cache_shape, int(request["capacity"]))
        config = json.loads((Path(request["checkpoint"]) / "speech_expert" / "config.json").read_text())
        self.rows = int(config["vocab_size"])

    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    def rewind(self, length: int) -> None:
        """Shorten the cache; its rows stay where they are."""
        self._cache.length = length

    def prefill(self, ids: list[int]) -> Logits:
        """Append ids; the logits leave out the end of speech, which the peers' models do not have."""
        logits: Logits = self._decoder.forward(np.array(ids, np.int32), self._cache)[: self.rows]
        return logits

    def step(self, token: int) -> Logits:
        """Append one id."""
        return self.prefill([token])

    def versions(self) -> dict[str, str]:
        """Version of ONNX Runtime."""
        return {"onnxruntime": self._version}

    def overhead_s(self, steps: int) -> dict[str, list[float]]:
        """Time of the decoding loop around the session's own run, and of the sampler's choice of the next id."""
        from voxedge.runtime.noise import NoiseStream
        from voxedge.runtime.sampling import Sampler, SamplingConfig

        config = SamplingConfig(top_k=25, top_p=0.8, ras_window=10, max_tokens=steps + 1)
        sampler = Sampler(config, None, None, NoiseStream(0, "benchmark"))
        token = 1
        found: dict[str, list[float]] = {"decoding loop": [], "sampler": []}
        for _ in range(steps):
            started = time.perf_counter()
            logits = self.step(token)
            stepped = time.perf_counter()
            token = sampler.next(logits)
            found["sampler"].append(time.perf_counter() - stepped)
            found["decoding loop"].append(stepped - started - self._engine.times[-1])
        return found


if __name__ == "__main__":
    serve_engine(VoxedgeOrt, prepare)
