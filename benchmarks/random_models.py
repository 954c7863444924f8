"""Models of usual sizes with random weights, made on the device: speed and memory do not depend on the values."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from hylo.models.architecture import weight_OI
from hylo.models.targets import linear_layers
from hylo.models.weights import use_dequantized

STAND_IN = "tiny_llama"
"""The choice of conf/model/ in a configuration of a random model: an untrained Llama as well."""
RANDOM: dict[str, PretrainedConfig] = {
    # The sizes of Llama 3.2 1B and of Llama 2 7B.
    "random_1b": LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "random_7b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32_000,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ),
    # For a quick check of the way that the others go.
    "random_tiny": LlamaConfig(
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=257,
        max_position_embeddings=512,
    ),
}


def random_model(name: str, device: torch.device, dtype: torch.dtype, *, quantized: bool = False) -> PreTrainedModel:
    """A model of RANDOM, in evaluation mode, with the linear layers of its decoder in nf4 if `quantized`."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(RANDOM[name], dtype=dtype).eval()
        if quantized:
            for path, layer in linear_layers(model).items():
                model.set_submodule(path, in_nf4(layer))
            use_dequantized(model)
    return model


def in_nf4(layer: nn.Module) -> nn.Module:
    """The same layer, without a bias, with quantized weights, on its device."""
    from bitsandbytes.nn.modules import LinearNF4

    weight = weight_OI(layer).detach()
    made = LinearNF4(weight.shape[1], weight.shape[0], bias=False, compute_dtype=weight.dtype, device="cpu")
    made.weight.data = weight.cpu()
    return made.requires_grad_(False).to(weight.device)
