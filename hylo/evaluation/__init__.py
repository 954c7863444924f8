"""Measuring a model: perplexity by window, and what probes ask."""
