"""Bits per byte: comparable across tokenizers, because it counts bytes of text rather than tokens.

sum of token NLL / (ln 2 * UTF-8 bytes of the predicted tokens)        as in arXiv 2101.00027, section 3.1
"""

import math

from hylo.core.registry import register
from hylo.evaluation.metrics.base import Metric, Table


@register("metric", "bits_per_byte")
class BitsPerByte(Metric):
    """Bits per byte; improvements are in percent of the reference value."""

    name, label, short, description = "bits_per_byte", "Bits per byte", "Bits per byte", "bits per byte"
    prefix, order, brief = "bits_per_byte_", 2, False
    about = "mean negative log-likelihood in bits per UTF-8 byte of the text"

    def window_sums(self, bins: Table, thirds: Table) -> Table:
        return bins.groupby("window")[["nll_sum", "bytes"]].sum().rename(columns={"bytes": "weight"})

    def value(self, nll_sum: float, weight: float) -> float:
        return nll_sum / (math.log(2) * weight)

    def percent(self, difference: float, reference: float) -> float:
        return -100 * difference / reference

    def difference(self, percent: float, reference: float) -> float:
        return -percent / 100 * reference
