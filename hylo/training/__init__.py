"""Training a model's components."""
