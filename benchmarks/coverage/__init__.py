"""What the intervals and rules of hylo.stats cover, by simulation: docs/statistics.md holds the tables."""
