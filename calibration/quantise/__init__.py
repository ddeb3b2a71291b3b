"""Make the weights and activations of exported graphs smaller, layer by layer, without loading a model."""
