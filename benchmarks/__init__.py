"""hylo compared with peft + transformers, and with the time of the matrix products alone. `python -m benchmarks`."""
