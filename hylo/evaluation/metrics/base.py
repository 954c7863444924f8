"""The interface of a metric: sums per window, and the value of their mean. Imports no torch, since reports use it."""

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

import numpy as np

from hylo.core.registry import import_all, registered
from hylo.stats.estimates import perplexity

Table = Any
"""A DataFrame, typed as Any because pandas types every column access as a union of all it could return."""


class Metric(ABC):
    """A mean of the negative log-likelihood (NLL) over some weight; lower is better. Registered as `metric`."""

    name: ClassVar[str]
    """Used in result.json, tables and claims (`<name>_improvement`)."""
    label: ClassVar[str]
    """Used in headers and figures."""
    short: ClassVar[str]
    """Used before "improvement" in headers."""
    description: ClassVar[str]
    """Used in sentences."""
    about: ClassVar[str]
    """Definition, as a phrase without a full stop."""
    order: ClassVar[int]
    """Position among the metrics."""
    prefix: ClassVar[str]
    """Prefix of its columns in summary.csv and contrasts.csv; empty only for the first metric."""
    brief: ClassVar[bool] = True
    """Whether it is shown where space is limited: on the console, on paper, in figures."""
    everywhere: ClassVar[bool] = True
    """Whether every record holds its sums; otherwise tables of studies without them leave its columns out."""
    success: ClassVar[float | None] = None
    """Improvement in percent that counts as success; None: not a criterion."""

    @abstractmethod
    def window_sums(self, bins: Table, thirds: Table) -> Table:
        """Sums by window: columns nll_sum (nats) and weight, index window.

        Args:
            bins: window, bin (tenths of the positions), nll_sum, tokens, bytes, and words unless the record is older
                than their count; as in eval.parquet.
            thirds: window, third, and the same sums; as in thirds.parquet.
        """

    @abstractmethod
    def value(self, nll_sum: float, weight: float) -> float:
        """The metric from sums over all windows."""

    @abstractmethod
    def percent(self, difference: float, reference: float) -> float:
        """Converts a difference of mean NLL to an improvement in percent.

        Args:
            difference: cell minus reference, nats per weight.
            reference: mean NLL of the reference, nats per weight; taken as known.
        """

    @abstractmethod
    def difference(self, percent: float, reference: float) -> float:
        """Converts an improvement in percent to a difference of mean NLL: the inverse of `percent`."""


class Perplexity(Metric):
    """exp of the mean NLL: a difference of means is a ratio of perplexities, independent of the reference."""

    def value(self, nll_sum: float, weight: float) -> float:
        return perplexity(nll_sum / weight)

    def percent(self, difference: float, reference: float) -> float:
        with np.errstate(over="ignore"):
            return -100 * float(np.expm1(difference))

    def difference(self, percent: float, reference: float) -> float:
        return math.log1p(-percent / 100)


@cache
def all_metrics() -> tuple[Metric, ...]:
    """All metrics, by order."""
    import hylo.evaluation.metrics

    import_all(hylo.evaluation.metrics)
    return tuple(sorted((cls() for cls in registered("metric").values()), key=lambda metric: metric.order))


def main_metric() -> Metric:
    """The first metric: used to choose settings and for verdicts on components."""
    return all_metrics()[0]


def metric_named(name: str) -> Metric:
    """The metric of this name.

    Raises:
        KeyError: there is no such metric.
    """
    return {metric.name: metric for metric in all_metrics()}[name]
