"""Measure what attention costs in time and memory, compared with its alternatives."""
