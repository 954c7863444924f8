"""Probes: what a model can do besides predicting text, asked of a complete run. One file each, with its config."""
