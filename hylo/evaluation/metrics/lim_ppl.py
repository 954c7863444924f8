"""Lost-in-the-middle perplexity: the perplexity of the middle third of each window's predicted positions (own design;
named after the effect described in arXiv 2307.03172)."""

from hylo.core.registry import register
from hylo.evaluation.metrics.base import Perplexity, Table

MIDDLE = 1
"""Index of the middle third."""


@register("metric", "lim_ppl")
class LimPpl(Perplexity):
    """LIM-PPL."""

    name, label, short, description = "lim_ppl", "LIM-PPL", "LIM", "perplexity of the middle third"
    prefix, order, success = "lim_", 1, 5.0
    about = "perplexity over the middle third of positions"

    def window_sums(self, bins: Table, thirds: Table) -> Table:
        middle = thirds[thirds["third"] == MIDDLE]
        return middle.groupby("window")[["nll_sum", "tokens"]].sum().rename(columns={"tokens": "weight"})
