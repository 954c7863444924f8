"""Optimizers: one file each, including its config; discovered automatically."""
