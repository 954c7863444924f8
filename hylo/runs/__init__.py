"""One run, from a typed configuration to its record."""
