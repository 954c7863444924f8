"""Evaluation: one forward pass over the windows gives the loss of every token, and everything else is a sum of those.

    PPL = exp(sum of token NLL / tokens)      natural logarithm, over all windows
    LIM-PPL: the same over the middle third of the predicted positions ("lost in the middle")
    bits per byte = sum of token NLL / (ln 2 * UTF-8 bytes predicted), comparable across tokenizers

Sums are kept per window and position group, so that intervals and contrasts need no model.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from hylo.adapters.model import AdaptedModel
from hylo.data.windows import Windows
from hylo.progress import Progress

BINS, THIRDS = 10, 3


@dataclass(frozen=True)
class Evaluation:
    """Sums by window and position.

    bins: window, bin (0-9), nll_sum (nats), tokens, bytes. thirds: window, third (0-2), and the same sums.
    """

    bins: pd.DataFrame
    thirds: pd.DataFrame

    def metrics(self) -> dict[str, float | int]:
        """The record's `metrics` section."""
        nll, tokens, size = (float(self.bins[name].to_numpy().sum()) for name in ("nll_sum", "tokens", "bytes"))
        thirds = self.thirds[["nll_sum", "tokens"]].to_numpy(dtype=float).reshape(-1, THIRDS, 2).sum(axis=0)
        head, middle, tail = (math.exp(loss / count) for loss, count in thirds)
        return {
            "ppl": math.exp(nll / tokens),
            "lim_ppl": middle,
            "head_ppl": head,
            "tail_ppl": tail,
            "nll_nats_per_token": float(nll / tokens),
            "bits_per_byte": float(nll / (math.log(2) * size)),
            "eval_tokens": int(tokens),
        }


def evaluate(
    model: AdaptedModel, windows: Windows, accelerator: Accelerator, *, batch_size: int, label: str
) -> Evaluation:
    """Evaluate the model on every window, without gradients and without dropout."""
    nll = token_nll(model, windows.ids, accelerator, batch_size=batch_size, label=label)
    return Evaluation(
        bins=position_sums(nll, windows.bytes, BINS, "bin"),
        thirds=position_sums(nll, windows.bytes, THIRDS, "third"),
    )


@torch.no_grad()
def token_nll(
    model: AdaptedModel, ids: np.ndarray, accelerator: Accelerator, *, batch_size: int, label: str
) -> np.ndarray:
    """Negative log-likelihood of each token given those before it in its window.

    Arguments:
        ids: [W, L] token ids. Every process evaluates a share of each batch.

    Returns:
        [W, L - 1] float64, in nats.
    """
    model.eval()
    parts = []
    with Progress(label, len(ids), visible=accelerator.is_main_process) as progress:
        for first in range(0, len(ids), batch_size):
            batch = torch.from_numpy(ids[first : first + batch_size].astype(np.int64))
            padding = -len(batch) % accelerator.num_processes
            padded = torch.cat([batch, batch[:1].expand(padding, -1)]).chunk(accelerator.num_processes)
            share = padded[accelerator.process_index].to(accelerator.device)
            with accelerator.autocast():
                losses = window_nll(model(input_ids=share).logits, share)
            gathered = accelerator.gather(losses)
            assert isinstance(gathered, Tensor)
            parts.append(gathered[: len(batch)].cpu().double().numpy())
            progress.update(first + len(batch))
    return np.concatenate(parts)


def window_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Token losses of a batch of windows: logits [B, L, V], ids [B, L] -> [B, L - 1] float32, in nats."""
    flat = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return flat.view(ids.shape[0], -1)


def position_sums(nll: np.ndarray, sizes: np.ndarray, groups: int, name: str) -> pd.DataFrame:
    """Sum token losses by window and position group.

    Predicted position t of n falls into group floor(groups * t / n). Where n is smaller than the number of groups, some
    groups are empty: zero tokens.

    Arguments:
        nll, sizes: [W, n] losses in nats and UTF-8 bytes of the predicted tokens.

    Returns:
        Columns window, `name`, nll_sum, tokens, bytes; W * groups rows.
    """
    count, length = nll.shape
    member = np.arange(length) * groups // length == np.arange(groups)[:, None]  # [groups, n]
    return pd.DataFrame(
        {
            "window": np.repeat(np.arange(count), groups),
            name: np.tile(np.arange(groups), count),
            # Not a product with `member`: there, one loss that is not finite would spoil all groups.
            "nll_sum": np.stack([nll[:, group].sum(axis=1) for group in member], axis=1).ravel(),
            "tokens": np.tile(member.sum(axis=1), count),
            "bytes": (sizes @ member.T).ravel(),
        }
    )
