"""Sources of base models: one file each, with its typed config in it (a GGUF file in a wheel, the hub, a folder, tiny)."""
