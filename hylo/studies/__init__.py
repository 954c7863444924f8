"""A question with cells, seeds, contrasts and claims, and what to run next for it."""
