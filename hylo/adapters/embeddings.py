"""Trained embeddings: a change of the token embeddings.

    E' = E + D        D [V, d], zero at step 0

With the norms, what LongLoRA trains beside LoRA to extend the context ("LoRA+" in arXiv 2309.12307, section 3.3). Where
the output head is tied to the embeddings it is the same tensor and changes with them; learned positions (GPT-2) stay.
V d parameters, all of them saved. Here D is trained rather than E itself, as described in hylo/adapters/deltas.py.
Merged: E' = E + D.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hylo.adapters.component import BuildContext, ComponentConfig
from hylo.adapters.deltas import Deltas
from hylo.core.errors import problem
from hylo.core.registry import register


@register("component", "embeddings")
@dataclass(kw_only=True, slots=True)
class EmbeddingsConfig(ComponentConfig):
    """No settings except the learning-rate multiplier."""

    def problems(self, key: str, context: BuildContext) -> Iterator[str]:
        if not embedding_tensors(context.model):
            allowed = f"a model with one table of token embeddings; {type(context.model).__name__} has none"
            yield problem(key, "embeddings", allowed, f"{key}=null")

    def build(self, context: BuildContext) -> Deltas:
        return Deltas(embedding_tensors(context.model), context)

    def parameter_count(self, context: BuildContext) -> int:
        return sum(context.model.get_parameter(path).numel() for path in embedding_tensors(context.model))


def embedding_tensors(model: PreTrainedModel) -> dict[str, list[str]]:
    """The embeddings' path, with those of the modules that read them: the table and, if tied to it, the output head."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding):
        return {}
    reading = [table, head] if getattr(head, "weight", None) is table.weight else [table]
    paths = {id(module): path for path, module in model.named_modules()}
    return {f"{paths[id(table)]}.weight": [paths[id(module)] for module in reading]}
