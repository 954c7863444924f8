"""Tasks of lm-eval: loading them, asking a model with an adapter, and scores per item. Imported only if asked for."""
