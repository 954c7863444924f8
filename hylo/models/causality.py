"""Whether a model reads later tokens, as those trained to fill in masked words do."""

from contextlib import suppress
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

TOKENS = 4
"""Tokens of the text that is tried."""
ROUNDING = 1e-3
"""Difference of logits, in their standard deviations, that passes as rounding."""

_TRIED: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()
"""Cached so that the cells of a sweep try their base model only once."""


def reads_later_tokens(model: PreTrainedModel) -> bool:
    """Whether another last token changes the logits of those before it. Leaves the model as it is.

    False on the meta device, and where the model fails on so short a text.
    """
    if model not in _TRIED:
        _TRIED[model] = model.device.type != "meta" and _tried(model)
    return _TRIED[model]


@torch.no_grad()
def _tried(model: PreTrainedModel) -> bool:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with suppress(Exception):
            middle = model.config.get_text_config().vocab_size // 2  # special tokens stand at a vocabulary's ends
            ids = torch.arange(middle, middle + TOKENS, device=model.device).unsqueeze(0)
            changed = ids.clone()
            changed[:, -1] = middle
            one, other = (model(input_ids=each, use_cache=False).logits[:, :-1].float() for each in (ids, changed))
            return bool((one - other).abs().max() > ROUNDING * one.std())
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
