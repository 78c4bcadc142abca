"""Checks of a config, its data and its weights: one function for each question."""
