"""Fused kernels for frozen layers and the loss, faster and smaller in memory than the reference kernels.

Nothing here depends on a method: an adapter describes its layers as `Projection`s. See docs/speed.md.
"""
