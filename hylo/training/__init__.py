"""Training of a model's components."""
