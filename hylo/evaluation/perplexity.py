"""Evaluation: one forward pass over the windows gives the loss of every token; everything else is a sum of those.

    NLL of a token = -log p(token | preceding tokens in its window)      natural logarithm
    mean window PPL = arithmetic mean over windows of exp(mean token NLL of the window): dominated by a few windows;
        recorded because published numbers use it

Sums are kept per window and position group, so metrics (hylo/evaluation/metrics), intervals and contrasts need no
model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor

from hylo.adapters.model import AdaptedModel
from hylo.core.errors import TrainingDiverged
from hylo.core.files import finite_or_none
from hylo.core.progress import Progress
from hylo.data.windows import Windows, labels_of, model_inputs, next_tokens
from hylo.evaluation.metrics import Metric, all_metrics
from hylo.stats.estimates import mean_window_ppl, perplexity

BINS, THIRDS = 10, 3


@dataclass(frozen=True)
class Evaluation:
    """Sums by window and position.

    Attributes:
        bins: columns window, bin (0-9), nll_sum (nats), tokens, bytes, words.
        thirds: columns window, third (0-2), and the same sums.
    """

    bins: pd.DataFrame
    thirds: pd.DataFrame

    def metrics(self) -> dict[str, float | int | None]:
        """The record's `metrics` section.

        A perplexity is None if it overflows (a mean NLL above 709 nats), or if its third of the positions has no token.

        Raises:
            TrainingDiverged: a token's loss is not finite.
        """
        windows = self.bins[["nll_sum", "tokens"]].to_numpy(dtype=float).reshape(-1, BINS, 2).sum(axis=1)
        if not np.isfinite(windows).all():
            first = int(np.flatnonzero(~np.isfinite(windows).all(axis=1))[0])
            raise TrainingDiverged(f"the loss of evaluation window {first} is not finite; try a lower learning rate")
        nll, tokens = (float(self.bins[name].to_numpy().sum()) for name in ("nll_sum", "tokens"))
        thirds = self.thirds[["nll_sum", "tokens"]].to_numpy(dtype=float).reshape(-1, THIRDS, 2).sum(axis=0)
        head, _, tail = (finite_or_none(perplexity(loss / count)) if count else None for loss, count in thirds)
        return {metric.name: self._value(metric) for metric in all_metrics()} | {
            "head_ppl": head,
            "tail_ppl": tail,
            "mean_window_ppl": finite_or_none(mean_window_ppl(windows[:, 0], windows[:, 1])),
            "nll_nats_per_token": float(nll / tokens),
            "eval_tokens": int(tokens),
        }

    def _value(self, metric: Metric) -> float | None:
        sums = metric.window_sums(self.bins, self.thirds)
        nll, weight = (float(sums[name].to_numpy().sum()) for name in ("nll_sum", "weight"))
        return finite_or_none(metric.value(nll, weight)) if weight else None


def evaluate(
    model: AdaptedModel,
    windows: Windows,
    accelerator: Accelerator,
    *,
    batch_size: int,
    label: str,
    each_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates the model on every window, without gradients or dropout. Padding never counts.

    `each_batch` is called after each batch.
    """
    nll = token_nll(
        model,
        windows.ids,
        accelerator,
        lengths=windows.lengths,
        labels=windows.labels(),
        batch_size=batch_size,
        label=label,
        each_batch=each_batch,
    )
    skipped = None if windows.context is None else windows.context - 1
    nll, sizes = of_predicted(nll, windows), of_predicted(windows.bytes, windows)
    words = None if windows.words is None else of_predicted(windows.words, windows)
    bins, thirds = (
        position_sums(nll, sizes, groups, name, windows.predicted, skipped=skipped, words=words)
        for groups, name in ((BINS, "bin"), (THIRDS, "third"))
    )
    return Evaluation(bins, thirds)


def of_predicted(values: np.ndarray, windows: Windows) -> np.ndarray:
    """Values of tokens [W, L - 1] with those of each window's predicted tokens first, in order."""
    if windows.counted is None:
        return values
    return np.take_along_axis(values, np.argsort(~windows.counted[:, 1:], axis=1, kind="stable"), axis=1)


@torch.no_grad()
def token_nll(
    model: AdaptedModel,
    ids: np.ndarray,
    accelerator: Accelerator,
    *,
    lengths: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    batch_size: int,
    label: str,
    each_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Negative log-likelihood of each token given the preceding tokens in its window.

    Args:
        ids: [W, L] token ids. Every process evaluates a share of each batch.
        lengths: [W] number of tokens before the padding; None: no padding. The loss of padding is 0.
        labels: [W, L] ids, IGNORED where nothing is predicted and the loss is 0; None: padding alone.
        each_batch: called after each batch.

    Returns:
        [W, L - 1] float64, in nats.
    """
    model.eval()
    parts, processes = [], accelerator.num_processes
    lengths = np.full(len(ids), ids.shape[1]) if lengths is None else lengths
    labels = labels_of(ids, lengths) if labels is None else labels
    with Progress(label, len(ids), visible=accelerator.is_main_process) as progress:
        for first in range(0, len(ids), batch_size):
            batch = np.arange(first, min(first + batch_size, len(ids)))
            filled = np.append(batch, np.full(-len(batch) % processes, first))
            mine = np.split(filled, processes)[accelerator.process_index]
            inputs = model_inputs(ids[mine], lengths[mine], accelerator.device)
            targets = next_tokens(labels[mine], accelerator.device)
            with accelerator.autocast():
                losses = model(**inputs, targets=targets)[:, :-1]
            gathered = accelerator.gather(losses)
            assert isinstance(gathered, Tensor)
            parts.append(gathered[: len(batch)].cpu().double().numpy())
            progress.update(first + len(batch))
            each_batch()
    return np.concatenate(parts)


def position_sums(
    nll: np.ndarray,
    sizes: np.ndarray,
    groups: int,
    name: str,
    predicted: np.ndarray | None = None,
    *,
    skipped: np.ndarray | None = None,
    words: np.ndarray | None = None,
) -> pd.DataFrame:
    """Sums token losses by window and position group.

    Position t of a window's n predictions falls into group floor(groups * t / n), also where the first of them do not
    count, so a group always means the same places of a window. Groups may be empty: zero tokens.

    Args:
        nll, sizes: [W, L - 1] losses in nats and UTF-8 bytes of the predicted tokens.
        predicted: [W] number n of predictions per window, the first n of its row; the rest is padding. None: all.
        skipped: [W] number of first predictions that do not count; None: all count.
        words: [W, L - 1] words that begin in each predicted token; None: not counted.

    Returns:
        Columns window, `name`, nll_sum, tokens, bytes and, if they are counted, words; W * groups rows.
    """
    count, length = nll.shape
    predicted = np.full(count, length) if predicted is None else predicted
    skipped = np.zeros(count, int) if skipped is None else skipped
    counted = {"bytes": sizes} | ({} if words is None else {"words": words})
    sums, tokens = np.zeros((count, groups)), np.zeros((count, groups), int)
    amounts = {key: np.zeros((count, groups), int) for key in counted}
    for n, first in np.unique(np.stack([predicted, skipped], axis=1), axis=0):
        rows = np.flatnonzero((predicted == n) & (skipped == first))
        member = np.arange(n) * groups // n == np.arange(groups)[:, None]  # [groups, n]
        member[:, :first] = False
        losses = nll[rows][:, :n]
        # Not a product with `member`: one non-finite loss would then spoil all groups.
        sums[rows] = np.stack([losses[:, group].sum(axis=1) for group in member], axis=1)
        tokens[rows] = member.sum(axis=1)
        for key, amount in amounts.items():
            amount[rows] = counted[key][rows, :n] @ member.T
    table = {"window": np.repeat(np.arange(count), groups), name: np.tile(np.arange(groups), count)}
    table |= {"nll_sum": sums.ravel(), "tokens": tokens.ravel()}
    return pd.DataFrame(table | {key: amount.ravel() for key, amount in amounts.items()})
