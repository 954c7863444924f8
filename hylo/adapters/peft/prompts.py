"""Virtual tokens before every text: prefix tuning, prompt tuning and P-tuning with the encoders of the `peft` library.

    prefix tuning   the encoder gives the virtual tokens' keys and values in every layer       arXiv 2101.00190
    prompt tuning   the encoder gives their input embeddings, which the base model reads first  arXiv 2104.08691
    P-tuning        as prompt tuning, with embeddings made by a small network                   arXiv 2103.10385

The library puts P virtual tokens into the cache or before the input; the text then stands at positions P, P + 1, ...
Here they enter as a prefix of every attention (hylo/adapters/attention_prefix.py), which gives the same numbers: where
the encoder gives embeddings, the base model turns them into keys and values in a short pass of their own, which is all
that a text can see of them, since no virtual token sees the text. So logits, masks and caches belong to the text alone.

Two differences, both where the library would give a text other logits for the company it is in: positions of
left-padded texts are counted from their first real token (the library counts the padding), and dropout of the base
model, in training, falls on the virtual tokens once a batch instead of once a text.

Shapes: P virtual tokens, L layers, H key/value heads, D width of a head, d hidden size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel

from hylo.adapters.attention_prefix import AttentionPrefixes, prepend
from hylo.adapters.component import BuildContext, Component
from hylo.adapters.peft.library import make_config, rates_of, tuner_class
from hylo.models.architecture import decoder_layers, key_value_shape

KEYS_AND_VALUES = {"PREFIX_TUNING", "CARTRIDGE"}
"""Types whose encoder gives keys and values; the others' gives input embeddings."""


def make_encoder(peft_type: str, kwargs: dict[str, Any], model: PreTrainedModel) -> nn.Module:
    """The library's encoder for a model; `num_virtual_tokens` is its P.

    Raises:
        ValueError, TypeError, ...: whatever the library thinks of the settings; or they do not fit the attention.
    """
    from peft.utils.other import _prepare_prompt_learning_config as fill_in

    config: Any = fill_in(make_config(peft_type, kwargs, model, transposed=False), model.config)
    if not config.num_virtual_tokens or config.num_virtual_tokens < 1:
        raise ValueError(f"num_virtual_tokens is {config.num_virtual_tokens}, not a number of at least 1")
    config.num_transformer_submodules = 1
    heads, width = key_value_shape(model)
    expected = {"num_layers": len(decoder_layers(model)), "num_attention_heads": heads, "token_dim": heads * width}
    wrong = [name for name, value in expected.items() if getattr(config, name) != value]
    if peft_type in KEYS_AND_VALUES and wrong:
        raise ValueError(f"{wrong[0]} is {expected[wrong[0]]} for the keys and values of this model")
    table: Any = model.get_input_embeddings()
    if peft_type not in KEYS_AND_VALUES and config.token_dim != table.weight.shape[1]:
        raise ValueError(f"token_dim is {config.token_dim}, not {table.weight.shape[1]}, the width of the embeddings")
    embeddings = (table,) if peft_type == "PROMPT_TUNING" else ()
    encoder = tuner_class(peft_type)(config, *embeddings).to(model.device)
    encoder.num_virtual_tokens = config.num_virtual_tokens
    return encoder


class VirtualTokens(Component):
    """The encoder of the virtual tokens, and their keys and values in the pass under way.

    Arguments:
        rates: learning-rate multipliers by a part of a tensor's name.
    """

    def __init__(self, peft_type: str, encoder: nn.Module, context: BuildContext, rates: Mapping[str, float]) -> None:
        super().__init__()
        self._rates = rates
        self.encoder = encoder
        self.length: int = encoder.num_virtual_tokens  # pyright: ignore[reportAttributeAccessIssue]
        self._peft_type = peft_type
        self._positions = context.positions
        self._shape = key_value_shape(context.model)
        self._current: list[tuple[Tensor, Tensor]] | None = None
        self._prefixes = AttentionPrefixes(self._prefix(index) for index in range(len(decoder_layers(context.model))))
        self._handle: RemovableHandle | None = None

    def learning_rate_multipliers(self) -> dict[str, float]:
        return rates_of(self.tensors(), self._rates)

    def attach(self, model: PreTrainedModel) -> None:
        def before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._current = None  # the virtual tokens' own pass has no prefix
            self._current = self.keys_and_values(model)
            return args, kwargs | {"position_ids": self._positions.current + self.length}

        self._prefixes.attach(model)
        self._handle = model.register_forward_pre_hook(before_forward, with_kwargs=True)

    def detach(self, model: PreTrainedModel) -> None:
        assert self._handle is not None
        self._handle.remove()
        self._prefixes.detach(model)
        self._current = None

    def keys_and_values(self, model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the virtual tokens for each layer, [H, P, D] each."""
        positions_1P = torch.arange(self.length, device=model.device).unsqueeze(0)
        encoded: Tensor = self.encoder(positions_1P)
        if self._peft_type in KEYS_AND_VALUES:
            heads, width = self._shape
            flat_LHPD = encoded.view(self.length, -1, heads, width).permute(1, 2, 0, 3)
            return list(zip(flat_LHPD[::2], flat_LHPD[1::2], strict=True))
        cache = DynamicCache()
        with _activations_kept(model):
            inputs = {"inputs_embeds": encoded.to(model.dtype), "position_ids": positions_1P}
            model.base_model(**inputs, past_key_values=cache, use_cache=True)
        made: list[Any] = cache.layers
        return [(layer.keys[0], layer.values[0]) for layer in made]

    def _prefix(self, index: int) -> Any:
        def extend(key_BHSD: Tensor, value_BHSD: Tensor) -> tuple[Tensor, Tensor]:
            if self._current is None:
                return key_BHSD, value_BHSD
            keys_HPD, values_HPD = self._current[index]
            return prepend(keys_HPD, key_BHSD), prepend(values_HPD, value_BHSD)

        return extend


@contextmanager
def _activations_kept(model: PreTrainedModel) -> Iterator[None]:
    """No gradient checkpointing in the block: it turns the cache off, and recomputed layers would see the prefix."""
    layers: list[Any] = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True
