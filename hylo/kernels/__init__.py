"""Frozen layers and the loss, computed with less time and memory than by the formulas as they are written.

Nothing here knows a method: an adapter describes its layers as `Projection`s. See docs/speed.md.
"""
