"""What all TensorRT engines of one process share: the library, the device and scratch memory.

In: an imported `Library` and a `Cuda`. Out: opened engines, and one stretch of scratch memory for all of them, since
they run one after the other on one stream. Does not decide whether an engine fits (see `engines.stamps`) and does not
run any.
"""

from __future__ import annotations

import logging
import mmap
import threading
from pathlib import Path
from typing import Any

from voxedge.engines.errors import BackendUnavailableError, EngineMismatchError, InferenceError, VoxedgeError
from voxedge.engines.trt.api import Library
from voxedge.engines.trt.cuda import Cuda, DeviceMemory
from voxedge.engines.trt.host import unsupported
from voxedge.engines.trt.monitor import recent_errors, shared_logger
from voxedge.engines.trt.staging import ALIGNMENT

_log = logging.getLogger(__name__)


class Session:
    """TensorRT on one device."""

    def __init__(self, library: Library, cuda: Cuda) -> None:
        self.library, self.cuda = library, cuda
        self.lock = threading.RLock()
        self.logger = shared_logger(library)
        self._runtime = library.module.Runtime(self.logger)
        self._scratch: DeviceMemory | None = None

    def open(self, path: Path, weights: Path | None = None) -> Any:  # noqa: ANN401 - TensorRT's own class
        """Deserialise an engine file whose stamp was compared.

        Args:
            path: The engine file; it is mapped, not read into memory of its own.
            weights: The .onnx file that a stripped engine's weights are in; None where it has them.

        Raises:
            EngineMismatchError: TensorRT refuses the file.
            BackendUnavailableError: The driver is too old for the library, or it has no kernels for this GPU.
            InferenceError: There is no room for its weights.
        """
        self.cuda.enter()
        recent_errors.clear()
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            raise refused(f"{path}: expected an engine, found an empty file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            runtime = self._runtime
            engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._cannot_open(path)
        if weights is not None:
            self._refit(engine, weights)
        if engine.streamable_weights_size > 0:
            budget = min(engine.get_weight_streaming_automatic_budget(), engine.streamable_weights_size)
            engine.weight_streaming_budget_v2 = budget
            total = engine.streamable_weights_size
            _log.info("%s: %d of %d bytes of weights stay on the device", path.name, budget, total)
        return engine

    def _cannot_open(self, path: Path) -> VoxedgeError:
        """The error that fits what TensorRT said."""
        text = said()
        if "driver version is insufficient" in text:
            return BackendUnavailableError(
                f"the NVIDIA driver is older than the CUDA of {self.library.flavour} {self.library.version}: "
                f"update it; `voxedge doctor` shows both ({text})"
            )
        if "does not support this compute capability" in text:
            return unsupported(self.library, self.cuda.gpu, text)
        if "memory" in text.lower():
            return InferenceError(f"no room for the engine {path.name}: {text}; use --memory staged, close programs")
        return refused(f"{path}: {self.library.flavour} {self.library.version} cannot open this engine")

    def _refit(self, engine: Any, weights: Path) -> None:  # noqa: ANN401
        trt = self.library.module
        refitter = trt.Refitter(engine, self.logger)
        refit_parser = trt.OnnxParserRefitter(refitter, self.logger)
        if not refit_parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise refused(f"{weights}: its weights do not fit the stripped engine")

    def scratch(self, size: int) -> DeviceMemory:
        """The memory that execution contexts work in: one stretch, as large as the largest request so far."""
        if self._scratch is None or self._scratch.size < size:
            self._scratch = None  # given back first: on a small device both would not fit
            self._scratch = self.cuda.allocate(max(size, ALIGNMENT))
        return self._scratch

    def close(self) -> None:
        """Give the device's memory back."""
        self._scratch = None
        self.cuda.close()


def refused(what: str) -> EngineMismatchError:
    """An error with what TensorRT said last."""
    return EngineMismatchError(f"{what}: {said()}; build it again: voxedge build BUNDLE --force")


def failed(graph: str) -> InferenceError:
    """The error of a run that TensorRT refused, with its own words."""
    return InferenceError(f"graph {graph} failed: {said()}")


def said() -> str:
    """What TensorRT complained about last."""
    return "; ".join(recent_errors) or "TensorRT gave no reason, run again with -vv"
