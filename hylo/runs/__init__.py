"""One run, from typed configuration to record."""
