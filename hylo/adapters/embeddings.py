"""Trained embeddings: a change of the token embeddings.

    E' = E + D        D [V, d], zero at step 0

With the norms, what LongLoRA trains beside LoRA to extend the context ("LoRA+" in arXiv 2309.12307, section 3.3). Where
the output head is tied to the embeddings it is the same tensor and changes with them; learned positions (GPT-2) stay.
V d parameters, all of them saved. Here D is trained rather than E itself, as described in hylo/adapters/deltas.py.
Merged: E' = E + D.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from hylo.adapters.deltas import DeltasConfig
from hylo.core.registry import register


@register("component", "embeddings")
@dataclass(kw_only=True, slots=True)
class EmbeddingsConfig(DeltasConfig):
    """No settings except the learning-rate multiplier."""

    what: ClassVar[str] = "one table of token embeddings"

    def tensors(self, model: PreTrainedModel) -> dict[str, list[str]]:
        """The table, which the output head reads, too, if it is tied to it."""
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        if not isinstance(table, nn.Embedding):
            return {}
        reading = [table, head] if getattr(head, "weight", None) is table.weight else [table]
        paths = {id(module): path for path, module in model.named_modules()}
        return {f"{paths[id(table)]}.weight": [paths[id(module)] for module in reading]}
