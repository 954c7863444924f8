"""Locates the parts of a transformers causal language model: target layers, attention, FFN, final norm, sizes.

Works by structure, on the meta device too; architectures that deviate have an entry in a table here.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = "all-linear"
"""Stands for every linear layer of the decoder except the output head."""

_DEFAULT_TARGETS = {
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
_OTHERWISE = ["q_proj", "k_proj", "v_proj", "o_proj"]
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_FFNS = ("mlp", "feed_forward", "ffn", "fc2")  # OPT has no FFN module: its last layer is used instead


def default_targets(model: PreTrainedModel) -> list[str]:
    """Names of the layers that the published methods adapt.

    These are the query, key, value and output projections of attention; on GPT-2, the fused one and both c_proj.
    """
    return _DEFAULT_TARGETS.get(model.config.model_type, _OTHERWISE)


def decoder(model: PreTrainedModel) -> nn.Module:
    """The stack of layers under the output head."""
    body = model.base_model
    return getattr(body, "decoder", body)


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
        ValueError: the decoder has no list with the number of layers in its config.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in decoder(model).children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ValueError(f"{type(model).__name__} has no list of {count} layers")


def ffn_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The FFN module of each layer: its output is the FFN's before the residual is added.

    Raises:
        ValueError: a layer has none under a known name.
    """
    found = [
        next((ffn for name in _FFNS if (ffn := getattr(layer, name, None))), None) for layer in decoder_layers(model)
    ]
    if None in found:
        raise ValueError(
            f"layer {found.index(None)} of {type(model).__name__} has no FFN under the names {', '.join(_FFNS)}"
        )
    return [ffn for ffn in found if ffn is not None]


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
    """(number of key/value heads, head width) of a layer's keys and values."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width


def hidden_size(model: PreTrainedModel) -> int:
    """Width d of the last hidden state."""
    return model.config.get_text_config().hidden_size


def model_context_length(model: PreTrainedModel) -> int:
    """The model's longest context, in tokens."""
    return model.config.get_text_config().max_position_embeddings


def target_layers(model: PreTrainedModel, targets: list[str]) -> dict[str, nn.Module]:
    """Linear layers (nn.Linear or Conv1D) whose path equals or ends with one of the targets, by path.

    Raises:
        ValueError: a target matches no linear layer, or there are no targets; the message lists the names that match.
    """
    head = model.get_output_embeddings()
    linear: dict[str, nn.Module] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    if targets == [ALL_LINEAR]:
        return linear
    for target in targets or [""]:
        if not any(_matches(path, target) for path in linear):
            names = ", ".join(sorted({path.rpartition(".")[2] for path in linear}))
            raise ValueError(f"{target!r} matches no linear layer of {type(model).__name__}; it has {names}")
    return {path: module for path, module in linear.items() if any(_matches(path, target) for target in targets)}


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(in features, out features) of a Linear or Conv1D layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return (weight.shape[0], weight.shape[1]) if isinstance(layer, Conv1D) else (weight.shape[1], weight.shape[0])


def weight_OI(layer: nn.Module) -> Tensor:
    """The weight as [out, in], which Conv1D stores transposed."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight
