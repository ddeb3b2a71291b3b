"""A double of TensorRT and of the CUDA driver, for tests on machines that have neither.

In: the API surface of a version (tests/data/tensorrt_api.json, read off the official bindings). Out: a module that
shows exactly those names, "compiles" ONNX graphs and executes them with ONNX Runtime's CPU provider over host memory
that plays the device's. It refuses what the real one refuses. It proves nothing about speed, kernels or numbers of a
GPU; wherever it is used, it is named as a double.
"""

from trt_double.cuda import CudaDouble, IllegalAccess
from trt_double.module import VERSIONS, device_of, install, make_tensorrt

__all__ = ["VERSIONS", "CudaDouble", "IllegalAccess", "device_of", "install", "make_tensorrt"]
