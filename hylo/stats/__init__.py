"""Estimates, intervals and decisions from per-window NLL sums. Pure functions on arrays: no files, no plots.

Shapes: sums of token NLL are [seeds, windows] in nats, token counts [windows]. All seeds and both arms of a contrast
share the same windows, so there is one vector of counts. Every estimate except `mean_window_ppl`, the published
measure, is a ratio of sums, never a mean of ratios: PPL = exp(sum of NLL / number of tokens). Everything is computed on
log PPL and transformed at the end.

What an interval covers depends on the number of seeds:

- one seed: "evaluation noise only", i.e. new windows but the same training run (`window_bootstrap`);
- several seeds: new seeds and new windows (`crossed_interval`).

Windows are treated as exchangeable; correlation between neighbouring windows of a document is not modelled.

Files: arrays (checks), estimates (PPL, improvement), intervals (the crossed model), effect (a contrast with everything
a decision needs), selection (variance from choosing a tuned setting), multiple (Holm), attribution (Shapley),
sequential (when there are enough seeds). Their coverage is simulated in benchmarks/coverage.
"""

from hylo.stats.arrays import LEVEL, RESAMPLES, Array, Interval
from hylo.stats.attribution import shapley
from hylo.stats.effect import Effect, effect
from hylo.stats.estimates import (
    difference,
    improvement,
    mean_window_ppl,
    params_per_pct,
    perplexity,
    ppl,
    ratio_of_sums,
)
from hylo.stats.intervals import crossed_interval, window_bootstrap
from hylo.stats.multiple import holm
from hylo.stats.selection import choice_variance
from hylo.stats.sequential import LOOKS, decided, levels, looks, sequential_p_value

__all__ = [
    "LEVEL",
    "LOOKS",
    "RESAMPLES",
    "Array",
    "Effect",
    "Interval",
    "choice_variance",
    "crossed_interval",
    "decided",
    "difference",
    "effect",
    "holm",
    "improvement",
    "levels",
    "looks",
    "mean_window_ppl",
    "params_per_pct",
    "perplexity",
    "ppl",
    "ratio_of_sums",
    "sequential_p_value",
    "shapley",
    "window_bootstrap",
]
