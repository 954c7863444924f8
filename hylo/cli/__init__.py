"""The command line: composes configurations, names cells, explains errors."""
