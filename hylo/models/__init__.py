"""Sources of base models: one file per source, including its typed config."""
