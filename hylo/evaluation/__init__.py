"""Model evaluation: perplexity per window, and probes."""
