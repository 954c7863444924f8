"""Word perplexity: loss per word of the text instead of per token, as papers report it for models whose tokens are
parts of words.

exp(sum of token NLL / number of words)        a word is a run of characters that are not white space

A word belongs to the token in which it begins, so words of a window's first token, which is not predicted, do not
count. Own choice; the harness lm-eval divides by the words of whole documents, which differs by those at the ends.
"""

from typing import ClassVar

from hylo.core.registry import register
from hylo.evaluation.metrics.base import Perplexity, Table


@register("metric", "word_ppl")
class WordPpl(Perplexity):
    """Word PPL. Records older than the count of words have no value."""

    name, label, short, description = "word_ppl", "Word PPL", "Word", "perplexity per word"
    prefix, order, brief = "word_", 3, False
    about = "perplexity per word: exp of the mean negative log-likelihood (nats) per word of the text"
    everywhere: ClassVar[bool] = False

    def window_sums(self, bins: Table, thirds: Table) -> Table:
        counted = bins if "words" in bins else bins.assign(words=0)
        return counted.groupby("window")[["nll_sum", "words"]].sum().rename(columns={"words": "weight"})
