"""Shared by all packages: errors, typed settings, the registry, files, cache, devices, progress."""
