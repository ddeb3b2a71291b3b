"""Turn checkpoints as their authors release them into bundles of ONNX graphs."""
