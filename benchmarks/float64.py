"""Perplexity against an independent loop in float64: the table of docs/protocols.md.

    python -m benchmarks.float64 --write     measures every combination and rewrites the table

The loop reads one text at a time and predicts one token at a time, from nothing but the tokens before it: no batch, no
padding, no mask, no cache, no adapter, no fused function. Its weights are the model's in float64; those of a merged
adapter are W + s B A, added here, not by the library. The other side is what a run uses: a float32 model on padded
batches, with the losses of `hylo.adapters.model`.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from benchmarks.families.tiny import VOCABULARY, tiny_model
from hylo.adapters.low_rank import LowRankConfig
from hylo.adapters.model import AdaptedModel
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.evaluation.perplexity import token_nll
from hylo.stats.estimates import perplexity

PAGE = Path(__file__).resolve().parents[1] / "docs" / "protocols.md"
BEGIN, END = "<!-- float64: written by python -m benchmarks.float64 -->", "<!-- end of float64 -->"
FAMILIES = {"gpt2": "GPT-2", "llama": "Llama", "qwen2": "Qwen2", "gemma": "Gemma"}
WEIGHTS = ("plain", "merged")
PADDING = ("left", "right")
BATCHES = (1, 3, 12)
LENGTHS = (24, 5, 17, 9, 2, 21, 13, 24, 7, 11, 19, 3)
"""Tokens per text: three of them share a batch of any size with longer ones."""
TOLERANCE = 1e-6
RANK, ALPHA = 3, 6.0


def texts() -> list[np.ndarray]:
    """Random tokens."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, VOCABULARY, length) for length in LENGTHS]


def models(family: str, weights: str) -> tuple[AdaptedModel, PreTrainedModel]:
    """A tiny model for a run in float32, and the same weights in float64, computed apart."""
    base, slow = tiny_model(family), tiny_model(family).double()
    if weights == "plain":
        return AdaptedModel(base, {}, context_length=max(LENGTHS), seed=0).eval(), slow
    config = LowRankConfig(rank=RANK, alpha=ALPHA)
    adapted = AdaptedModel(base, {"low_rank": config}, context_length=max(LENGTHS), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in adapted.adapter_state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
        trained = {name: tensor.double() for name, tensor in adapted.adapter_state_dict().items()}
        for path in {name.removeprefix("low_rank.layers.").rpartition(".")[0] for name in trained}:
            layer = slow.get_submodule(path)
            A, B = (trained[f"low_rank.layers.{path}.{name}"] for name in "AB")
            update = ALPHA / RANK * B @ A
            weight = layer.get_parameter("weight")
            weight.add_(update.T if isinstance(layer, Conv1D) else update)
    return AdaptedModel(adapted.merge(), {}, context_length=max(LENGTHS), seed=0).eval(), slow


@torch.no_grad()
def looped(model: PreTrainedModel, texts: list[np.ndarray]) -> float:
    """Perplexity, one token at a time."""
    total, count = 0.0, 0
    for text in texts:
        for t in range(1, len(text)):
            scores = model(input_ids=torch.from_numpy(text[None, :t])).logits[0, -1].tolist()
            largest = max(scores)
            total += largest + math.log(sum(math.exp(score - largest) for score in scores)) - scores[text[t]]
            count += 1
    return math.exp(total / count)


def batched(model: AdaptedModel, texts: list[np.ndarray], padding: str, size: int) -> float:
    """Perplexity as a run computes it, from batches of `size` texts padded on one side."""
    longest = max(map(len, texts))
    ids = np.full((len(texts), longest), VOCABULARY - 1)
    real = np.zeros((len(texts), longest), dtype=bool)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if padding == "left" else slice(len(text))
        ids[row, place], real[row, place] = text, True
    if padding == "right":
        accelerator = accelerator_for(Device.cpu, Precision.float32)
        nll = token_nll(model, ids, accelerator, lengths=real.sum(axis=1), batch_size=size, label="float64")
    else:
        nll = np.concatenate([*_left(model, torch.from_numpy(ids), torch.from_numpy(real), size)])
    return perplexity(nll.sum() / (real.sum() - len(texts)))


@torch.no_grad()
def _left(model: AdaptedModel, ids: Tensor, real: Tensor, size: int) -> Iterator[np.ndarray]:
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:].where(real[:, :-1], torch.tensor(-100))
    for rows in torch.arange(len(ids)).split(size):
        losses = model(input_ids=ids[rows], attention_mask=real[rows].long(), targets=targets[rows])
        yield losses.double().numpy()


def deviations(family: str, weights: str) -> dict[tuple[str, int], float]:
    """Relative difference of perplexities by padding and batch size."""
    model, slow = models(family, weights)
    expected = looped(slow, texts())
    return {
        (padding, size): abs(batched(model, texts(), padding, size) / expected - 1)
        for padding in PADDING
        for size in BATCHES
    }


def table() -> str:
    """The table as Markdown."""
    columns = [f"{padding}, {size}" for padding in PADDING for size in BATCHES]
    lines = [f"| model | weights | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for family, name in FAMILIES.items():
        for weights in WEIGHTS:
            found = deviations(family, weights)
            cells = [f"{found[padding, size]:.0e}" for padding in PADDING for size in BATCHES]
            lines.append(f"| {name} | {weights} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.float64", description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the table of docs/protocols.md")
    arguments = parser.parse_args()
    written = table()
    if not arguments.write:
        print(written)
        return
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
