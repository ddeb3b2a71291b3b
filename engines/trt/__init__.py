"""TensorRT and TensorRT for RTX: engines built from portable graphs."""
