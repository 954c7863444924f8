"""What every room may use: errors, typed settings, the registry, files, cache, devices, progress."""
