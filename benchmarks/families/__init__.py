"""Which families of models work with which designs: the table of docs/models.md, made by trying each on a tiny model.

    python -m benchmarks.families --write     tries all families of the installed transformers and rewrites the page

A family is a model type of transformers' causal language models. Each gets a tiny model with random weights
(`tiny.py`), and each design is attached to it and put through the audit and more (`contract.py`).
"""
