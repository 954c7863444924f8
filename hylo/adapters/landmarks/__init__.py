"""Landmark designs: one file each."""
