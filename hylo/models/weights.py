"""How a base model's weights are held: their dtype, and the quantization of its linear layers.

Quantized weights are those of bitsandbytes: nf4 (arXiv 2305.14314, section 3: 4 bits a weight, and one number for each
block of 64) or int8 (arXiv 2208.07339, section 2.1: 8 bits a weight, and one number for each row). Embeddings, norms,
biases and the output head keep the model's dtype.

The layers' own products depend on more than weights and input: in evaluation, those of int8 round their inputs, each as
far as its largest value or the text beside it says, and on some processors those of nf4 compute in bfloat16. Layers of
a model that is loaded here compute y = W x + b with the dequantized W instead, in training and in evaluation. It is
dequantized again in the backward pass, so that no dense weight outlives a product. docs/base-weights.md compares them.

Shapes: N rows, I in features, O out features.
"""

from copy import copy
from enum import Enum
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.core import extras
from hylo.core.devices import compute_dtype

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

LIBRARY = "bitsandbytes"
"""The package that quantizes: the extra `quantization` in pyproject.toml."""
_PACKED = ("Params4bit", "Int8Params")
"""Classes of the library's quantized parameters."""


class Dtype(Enum):
    """Dtype of a base model's weights and hidden states. Users type the member names."""

    float32 = "4 bytes a weight"
    bfloat16 = "2 bytes: 8 bits of precision, the range of float32"
    float16 = "2 bytes: 11 bits of precision, up to 65,504"

    @property
    def torch(self) -> torch.dtype:
        """As torch names it."""
        return getattr(torch, self.name)


class Quantization(Enum):
    """Storage of the weights of linear layers. Users type the member names."""

    none = "as they are"
    int8 = "8 bits a weight"
    nf4 = "4 bits a weight"


def library_version() -> str:
    """The version of the library that quantizes.

    Raises:
        MissingDependency: it is not installed.
    """
    extras.need(LIBRARY, "model.quantization", "quantization", "model.quantization=none")
    return version(LIBRARY)


def loading_options(dtype: Dtype, quantization: Quantization) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights held like this, on the CPU.

    Raises:
        MissingDependency: the library that quantizes is not installed.
    """
    if quantization is Quantization.none:
        return {"dtype": dtype.torch}
    settings = _settings(dtype, quantization)
    return {"dtype": dtype.torch, "quantization_config": settings, "device_map": {"": "cpu"}}


def outlined(skeleton: PreTrainedModel, dtype: Dtype, quantization: Quantization) -> PreTrainedModel:
    """A model on the meta device, with the layers and the dtype that it will have when loaded. Changes it in place."""
    torch.nn.Module.to(skeleton, dtype.torch)
    if quantization is not Quantization.none:
        from transformers.quantizers.auto import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(_settings(dtype, quantization), pre_quantized=False)
        quantizer.preprocess_model(skeleton, device_map=None)
        use_dequantized(skeleton)
    return skeleton


def _settings(dtype: Dtype, quantization: Quantization) -> "BitsAndBytesConfig":
    library_version()
    from transformers import BitsAndBytesConfig

    if quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype.torch)


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer is linear and its weight quantized."""
    return isinstance(layer, nn.Linear) and type(layer.weight).__name__ in _PACKED


def scalars(parameter: Tensor) -> int:
    """The number of weights in a parameter, packed or not."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def without_values(parameter: nn.Parameter) -> nn.Parameter:
    """A frozen parameter of the same class, shape and dtype on the meta device."""
    data = parameter.data.to("meta")
    if type(parameter).__name__ not in _PACKED:
        return nn.Parameter(data, requires_grad=False)
    values = ("quant_state", "module", "CB", "SCB")
    settings: dict[str, Any] = {name: value for name, value in vars(parameter).items() if name not in values}
    return type(parameter)(data, requires_grad=False, **settings)


def dequantized(layer: Any) -> Tensor:
    """The weight of a quantized layer, [O, I], in a floating-point dtype; a new tensor at each call."""
    from bitsandbytes import functional

    weight: Any = layer.weight
    if (state := getattr(weight, "quant_state", None)) is not None:
        data, state = _as_quantized(weight.data, state)
        shape = state.shape
        if shape[-1] % state.blocksize:
            # On CPUs with AVX-512, version 0.50.2 takes the wrong blocks for rows that are no whole number of them.
            # In one long row it finds them.
            state = copy(state)
            state.shape = torch.Size([1, shape.numel()])
        return functional.dequantize_4bit(data, state).view(shape)
    scale_O: Any = weight.SCB if weight.SCB is not None else layer.state.SCB  # the layer's own forward moves it
    return functional.int8_vectorwise_dequant(weight.data, scale_O)


def _as_quantized(data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A 4-bit weight in the order in which it was quantized. On CPUs with AVX-512 bfloat16 the library's own forward
    reorders it for good in the first evaluation, and rounds the numbers of the blocks to bfloat16."""
    if not getattr(state, "packing_format_for_cpu", False):
        return data, state
    from bitsandbytes import functional

    state = copy(state)
    blocks, state.original_nested = state.absmax, False
    data, state = functional._convert_weight_packed_for_cpu_inverse(data, state)
    state.absmax = blocks.T.reshape(-1).float()
    return data, state


def update_refusal(path: str, layer: Any) -> str | None:
    """Why an update cannot be added to the weight of a layer at a path; None: it can."""
    if is_quantized(layer):
        return f"the weight of {path} is quantized, and would be rounded again; load the model without quantization"
    if (dtype := layer.weight.dtype).itemsize < 4:
        return f"the weight of {path} is {dtype}, which would round the update; convert the model with .float()"
    return None


class PackedWeight:
    """The weight [O, I] of a quantized layer, which is dequantized whenever it is read."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def to(self, dtype: torch.dtype) -> Tensor:
        """[O, I] in a dtype."""
        return dequantized(self._layer).to(dtype)


def use_dequantized(model: PreTrainedModel) -> None:
    """Let every quantized layer of a model compute with its dequantized weight."""
    for module in model.modules():
        if is_quantized(module) and not uses_dequantized(module):
            module.__class__ = _with_dequantized(type(module))


def let_go_of_files(model: PreTrainedModel) -> None:
    """Copy the parameters that still lie in a mapped file: one of them keeps the pages of all that were read."""
    for parameter in model.parameters():
        if type(parameter).__name__ not in _PACKED:
            parameter.data = parameter.data.clone()


def uses_dequantized(layer: nn.Module) -> bool:
    """Whether a layer is a quantized one that computes with its dequantized weight."""
    return getattr(layer, "_hylo_dequantizes", False)


@cache
def _with_dequantized(cls: type[nn.Module]) -> type[nn.Module]:
    """The library's class with another forward; the same name and bases, by which peft recognizes it."""
    return type(cls.__name__, (cls,), {"forward": _forward, "_hylo_dequantizes": True, "__module__": cls.__module__})


def _forward(self: Any, x: Tensor) -> Tensor:
    """What such a layer computes: y [..., O] for x [..., I]."""
    x = x.to(compute_dtype(x))
    y: Any = _Product.apply(x.flatten(0, -2), PackedWeight(self), self.bias)
    return y.unflatten(0, x.shape[:-1])


class _Product(torch.autograd.Function):
    """W x + b with a frozen weight and bias."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight: PackedWeight, bias_O: Tensor | None) -> Tensor:
        ctx.weight, bias_O = weight, None if bias_O is None else bias_O.to(x_NI.dtype)
        with torch.autocast(x_NI.device.type, enabled=False):
            return nn.functional.linear(x_NI, weight.to(x_NI.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor, None, None]:
        return dy_NO @ ctx.weight.to(dy_NO.dtype), None, None
