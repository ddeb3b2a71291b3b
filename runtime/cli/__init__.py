"""The `voxedge` command: the only place that prints."""
