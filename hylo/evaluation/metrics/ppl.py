"""Perplexity: exp of the mean negative log-likelihood (nats) per token, over all windows and positions."""

from hylo.core.registry import register
from hylo.evaluation.metrics.base import Perplexity, Table


@register("metric", "ppl")
class Ppl(Perplexity):
    """PPL."""

    name, label, short, description = "ppl", "PPL", "PPL", "perplexity"
    prefix, order, success = "", 0, 2.0
    about = "perplexity: exp of the mean negative log-likelihood (nats) per token"

    def window_sums(self, bins: Table, thirds: Table) -> Table:
        return bins.groupby("window")[["nll_sum", "tokens"]].sum().rename(columns={"tokens": "weight"})
