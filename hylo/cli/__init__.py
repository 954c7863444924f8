"""The command line: compose, name, explain errors."""
