"""Locates the parts of a transformers causal language model: layers, attention, FFN, final norm, sizes.

Works by structure, on the meta device too; architectures that deviate have an entry in a table here.
"""

import inspect
from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.models.weights import PackedWeight, dequantized, is_quantized

_FINAL_NORMS = (
    "norm",
    "ln_f",
    "norm_f",
    "final_norm",
    "final_layer_norm",
    "final_layernorm",
    "layer_norm",
    "layernorm",
    "embedding_norm",  # of LFM2, which names it after what it is tied to
)
_FFNS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")  # OPT has no FFN module: its last layer is used
_CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "n_ctx")


def decoder(model: PreTrainedModel) -> nn.Module:
    """The stack of layers under the output head: the module that holds their list, or the body of the model."""
    return next((parent for parent, _ in _layer_lists(model)), model.base_model)


def _layer_lists(model: PreTrainedModel) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    """Lists with the number of layers in the config, with the modules that hold them; those of a decoder first."""
    count = layer_count(model)
    found = [
        (name, parent, child)
        for name, parent in model.named_modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    for _, parent, child in sorted(found, key=lambda item: ("decoder" not in item[0].split("."), item[0].count("."))):
        yield parent, child


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm whose output is the input of the output head.

    Raises:
        ValueError: the model has none under a known name.
    """
    body = decoder(model)
    for name in _FINAL_NORMS:
        if isinstance(norm := getattr(body, name, None), nn.Module):
            return norm
    raise ValueError(f"{type(model).__name__} has no final norm under the names {', '.join(_FINAL_NORMS)}")


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of the stack, in order.

    Raises:
        ValueError: the model has no list with the number of layers in its config.
    """
    for _, layers in _layer_lists(model):
        return list(layers)
    raise ValueError(f"{type(model).__name__} has no list of {layer_count(model)} layers")


def layer_count(model: PreTrainedModel) -> int:
    """The number of decoder layers that the model's config names."""
    return model.config.get_text_config().num_hidden_layers


def ffn_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The FFN module of each layer: its output is the FFN's before the residual is added.

    Raises:
        ValueError: a layer has none under a known name, or it adds the residual itself (Bloom).
    """
    found = [
        next((ffn for name in _FFNS if (ffn := getattr(layer, name, None))), None) for layer in decoder_layers(model)
    ]
    if None in found:
        raise ValueError(
            f"layer {found.index(None)} of {type(model).__name__} has no FFN under the names {', '.join(_FFNS)}"
        )
    ffns = [ffn for ffn in found if ffn is not None]
    if "residual" in inspect.signature(ffns[0].forward).parameters:
        raise ValueError(f"the FFN of {type(model).__name__} adds the residual itself")
    return ffns


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The self-attention of each layer: the module that calls an attention function of transformers' registry.

    Raises:
        ValueError: the architecture does not use the registry, or a layer does not have exactly one such module.
    """
    name = type(model).__name__
    if not model._supports_attention_backend:
        raise ValueError(f"{name} does not call the attention functions of transformers' registry")
    found: list[nn.Module] = []
    for index, layer in enumerate(decoder_layers(model)):
        inside = [m for m in layer.modules() if m is not layer and hasattr(m, "is_causal") and hasattr(m, "layer_idx")]
        if len(inside) != 1:
            raise ValueError(f"layer {index} of {name} has {len(inside)} attention modules, expected 1")
        found += inside
    return found


def key_value_shape(model: PreTrainedModel) -> tuple[int, int]:
    """(number of key/value heads, head width) of a layer's keys and values.

    Raises:
        ValueError: they differ between layers.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    try:
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        grouped = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None)
    except (AttributeError, RuntimeError) as error:  # transformers has no one value for all layers
        raise ValueError(f"the heads of {type(model).__name__} differ between layers") from error
    return grouped or heads, width


def hidden_size(model: PreTrainedModel) -> int:
    """Width d of the last hidden state."""
    return model.config.get_text_config().hidden_size


def model_context_length(model: PreTrainedModel) -> int | None:
    """The model's longest context, in tokens; None: its config names none (ALiBi, recurrent layers).

    Configs with dynamically scaled rotary positions name the unscaled one.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    factor = rope["factor"] if rope.get("rope_type") == "dynamic" else 1
    lengths = (getattr(config, name, None) for name in _CONTEXT_LENGTHS)
    return next((int(factor * length) for length in lengths if isinstance(length, int)), None)


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(in features, out features) of a Linear or Conv1D layer."""
    if isinstance(layer, nn.Linear):  # a quantized weight has another shape
        return layer.in_features, layer.out_features
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return (weight.shape[0], weight.shape[1]) if isinstance(layer, Conv1D) else (weight.shape[1], weight.shape[0])


def weight_OI(layer: nn.Module) -> Tensor:
    """The weight as [out, in], which Conv1D stores transposed. A quantized one is dequantized, into a new tensor."""
    if is_quantized(layer):
        return dequantized(layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def frozen_weight(layer: nn.Module) -> Tensor | PackedWeight:
    """The weight as [out, in] for products that compute no gradient of it."""
    return PackedWeight(layer) if is_quantized(layer) else weight_OI(layer).detach()
