"""Sources of base models: one file each, with its typed config in it."""
