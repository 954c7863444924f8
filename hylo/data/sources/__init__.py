"""Text sources: one file per source, including its typed config."""
