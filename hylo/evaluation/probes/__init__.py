"""Probes: test what a model can do besides predicting text, on complete runs. One file each, including its config."""
