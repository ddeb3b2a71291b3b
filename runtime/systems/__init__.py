"""One short module for each system that can speak, over the shared parts of `voxedge.runtime`."""
