"""torch.compile as a switch: each decoder layer through it, for the length of a block.

Layers share their code, so torch can serve the others with what it compiled for the first one. On a CPU it needs a C++
compiler. Whether it pays was not measured here.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from hylo.models.architecture import decoder_layers


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """The model's layers compiled, and as they were afterwards."""
    layers = decoder_layers(model)
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        torch.compiler.reset()


def can_compile() -> bool:
    """Whether what torch.compile writes can be built here: by a GPU's own compiler, or a C++ compiler."""
    named = os.environ.get("CXX", "")
    return torch.cuda.is_available() or any(shutil.which(name) for name in (named, "g++", "clang++") if name)
