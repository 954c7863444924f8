"""Optimizers: how gradients become steps. One file each, with its config; found by discovery."""
