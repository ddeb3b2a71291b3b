"""Read checkpoints lazily, tensor by tensor, as hostile files."""
