"""Simulated coverage of the intervals and rules of hylo.stats; docs/statistics.md holds the tables."""
