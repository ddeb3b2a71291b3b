"""One short module for each system that can be exported, over the shared parts of `voxedge.export`."""
