"""What a metric is: sums by window of what was recorded, and how their mean reads. Without torch: reports need it."""

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

import numpy as np

from hylo.core.registry import import_all, registered
from hylo.stats.estimates import perplexity

Table = Any
"""A DataFrame: pandas types what its tables give as everything that a table can hold."""


class Metric(ABC):
    """A mean of the negative log-likelihood (NLL) over something, lower is better. Registered as `metric`."""

    name: ClassVar[str]
    """As in result.json, tables and claims (`<name>_improvement`)."""
    label: ClassVar[str]
    """As in headers and figures."""
    short: ClassVar[str]
    """Before "improvement" in headers."""
    description: ClassVar[str]
    """As in sentences."""
    about: ClassVar[str]
    """What it is, in a sentence without a full stop."""
    order: ClassVar[int]
    """Its place among the metrics."""
    prefix: ClassVar[str]
    """Of its columns in summary.csv and contrasts.csv; empty for the first metric alone."""
    brief: ClassVar[bool] = True
    """Whether it is shown where room is short: on the console, on paper, in figures."""
    success: ClassVar[float | None] = None
    """Percent of improvement that counts as success; None: it is no criterion."""

    @abstractmethod
    def window_sums(self, bins: Table, thirds: Table) -> Table:
        """Sums by window: columns nll_sum (nats) and weight, index window.

        Arguments:
            bins: window, bin (tenths of the positions), nll_sum, tokens, bytes; as eval.parquet.
            thirds: window, third, and the same sums; as thirds.parquet.
        """

    @abstractmethod
    def value(self, nll_sum: float, weight: float) -> float:
        """The metric of sums over windows."""

    @abstractmethod
    def percent(self, difference: float, reference: float) -> float:
        """The improvement in percent that a difference of mean NLL is.

        Arguments:
            difference: of the cell less its reference, nats per weight.
            reference: mean NLL of the reference, nats per weight; taken as known.
        """

    @abstractmethod
    def difference(self, percent: float, reference: float) -> float:
        """The difference of mean NLL that an improvement in percent is: the inverse of `percent`."""


class Perplexity(Metric):
    """exp of the mean NLL: a difference of means is a ratio of perplexities, whatever the reference."""

    def value(self, nll_sum: float, weight: float) -> float:
        return perplexity(nll_sum / weight)

    def percent(self, difference: float, reference: float) -> float:
        with np.errstate(over="ignore"):
            return -100 * float(np.expm1(difference))

    def difference(self, percent: float, reference: float) -> float:
        return math.log1p(-percent / 100)


@cache
def all_metrics() -> tuple[Metric, ...]:
    """Every metric by its order."""
    import hylo.evaluation.metrics

    import_all(hylo.evaluation.metrics)
    return tuple(sorted((cls() for cls in registered("metric").values()), key=lambda metric: metric.order))


def main_metric() -> Metric:
    """The first metric: settings are chosen by it, and verdicts on components rest on it."""
    return all_metrics()[0]


def metric_named(name: str) -> Metric:
    """A metric by name.

    Raises:
        KeyError: there is none of that name.
    """
    return {metric.name: metric for metric in all_metrics()}[name]
