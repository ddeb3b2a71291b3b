"""Measure what precision costs: graph against graph, bundle against bundle."""
