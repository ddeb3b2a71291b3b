"""Load, bind and run graphs: bundles, device buffers, ONNX Runtime, TensorRT. Imports no torch and no onnx."""
