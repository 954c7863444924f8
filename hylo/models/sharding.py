"""A frozen base model divided among processes: each holds its share of every decoder layer (FSDP, arXiv 2304.11277).

A layer's weights are gathered before its forward and its backward pass and given up after it, so a process holds 1/n of
the layers, one whole layer, and what lies outside them (embeddings, final norm, output head). Adapters are whole in
every process: they and their optimizer's state are a hundredth of the weights. torch's fully_shard does the work.
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.models.architecture import decoder_layers


def shared_copy(base: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model's modules with the same weights in memory: replacing tensors of the copy leaves the model."""
    return copy.deepcopy(base, {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())})


def shard(base: PreTrainedModel, device: torch.device, *, whole: Collection[Tensor]) -> None:
    """Divide the decoder layers of a model among all processes, each on its device. Every process calls this.

    Args:
        base: the model on the CPU, with its adapters attached; a `shared_copy`, because this cannot be undone.
        device: this process's device.
        whole: the trained tensors, which every process keeps.
    """
    # Loaded here because it takes as long as a second, and few runs need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    kept = {id(tensor) for tensor in whole}
    own = {parameter for parameter in base.parameters() if id(parameter) in kept}
    layers = decoder_layers(base)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=own)
    # As their root: a layer without one would keep its weights after its forward pass.
    divided = {parameter for layer in layers for parameter in layer.parameters()}
    fully_shard(base, mesh=mesh, ignored_params={each for each in base.parameters() if each not in divided} | own)


def held(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself if it is not divided."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_names(model: nn.Module) -> list[str]:
    """Names of the parameters that are divided among processes."""
    from torch.distributed.tensor import DTensor

    return [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
