"""Studies: a question with cells, seeds, contrasts and claims, and what to run next to answer it."""
