"""Memory of a forward pass that keeps nothing for a backward pass: what evaluation batches are sized by."""

from transformers import PreTrainedModel

from hylo.models.architecture import hidden_size, layer_shape
from hylo.models.targets import linear_layers

_FLOAT = 4
_WIDE, _NARROW = 5, 8
"""Tensors of the widest layer's output size, and of the hidden size, alive at once while a layer is computed."""
_LOGITS = 4
"""Copies of the logits alive at once where they are materialized, including a loss's gradient."""


def forward_bytes_per_token(base: PreTrainedModel, *, logits: bool) -> int:
    """Bytes per token of a forward pass without gradients; `logits`: whether those of every token are materialized."""
    widest = max(max(layer_shape(layer)) for layer in linear_layers(base).values())
    vocabulary = base.config.get_text_config().vocab_size
    return _FLOAT * (_WIDE * widest + _NARROW * hidden_size(base) + logits * _LOGITS * vocabulary)
