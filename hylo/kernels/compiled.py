"""torch.compile as a switch: compiles each decoder layer for the duration of a block.

Layers share their code, so torch reuses what it compiled for the first one. On a CPU it needs a C++ compiler.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hylo.models.architecture import decoder_layers


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Context manager that compiles the model's layers and restores them on exit."""
    layers = decoder_layers(model)
    for layer in layers:
        _compile(layer)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        torch.compiler.reset()


def _compile(layer: nn.Module) -> None:
    """Like layer.compile(), except that calls with a key/value cache are not compiled.

    Code compiled for those is specific to one layer and one state of its cache, and torch stops compiling a function,
    for all layers and calls, after eight recompilations.
    """
    compiled = torch.compile(layer._call_impl)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (compiled if kwargs.get("past_key_values") is None else layer._call_impl)(*args, **kwargs)

    layer._compiled_call_impl = call


def can_compile() -> bool:
    """Whether torch.compile's output can be built here: by a GPU's own compiler, or a C++ compiler."""
    named = os.environ.get("CXX", "")
    return torch.cuda.is_available() or any(shutil.which(name) for name in (named, "g++", "clang++") if name)
