"""hylo beside peft + transformers, and beside what the matrix products alone would take. `python -m benchmarks`."""
