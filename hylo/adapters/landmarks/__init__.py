"""Landmark designs, one file per design."""
