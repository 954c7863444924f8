"""Whether a model reads what it must not: later tokens, as those trained to fill in masked words do, or the other
samples of a window."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hylo.core.devices import trial

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


def mixes_samples(model: PreTrainedModel) -> bool:
    """Whether a text in front, with positions of its own, changes the logits of a text, so that several in one window
    would see each other. Leaves the model as it is.

    transformers hides them from each other where it makes the attention mask from the positions. True also where the
    model fails; False on the meta device.
    """
    if model.device.type == "meta":
        return False
    with _evaluating(model), trial():
        ids = _text(model)
        positions = torch.arange(TOKENS, device=model.device).unsqueeze(0)
        twice = {"input_ids": torch.cat([ids.flip(1), ids], 1), "position_ids": torch.cat([positions, positions], 1)}
        one = model(input_ids=ids, use_cache=False).logits.float()
        other = model(**twice, use_cache=False).logits[:, TOKENS:].float()
        return bool((one - other).abs().max() > ROUNDING * one.std())
    return True


def _tried(model: PreTrainedModel) -> bool:
    with _evaluating(model), trial():
        ids = _text(model)
        changed = ids.clone()
        changed[:, -1] = ids[:, 0]
        one, other = (model(input_ids=each, use_cache=False).logits[:, :-1].float() for each in (ids, changed))
        return bool((one - other).abs().max() > ROUNDING * one.std())
    return False


def _text(model: PreTrainedModel) -> Tensor:
    """Tokens [1, TOKENS] from the middle of the vocabulary: special ones stand at its ends."""
    middle = model.config.get_text_config().vocab_size // 2
    return torch.arange(middle, middle + TOKENS, device=model.device).unsqueeze(0)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; training modes are restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
