"""Tiny models of several architectures, methods composed from conf/, and helpers for the adapter tests."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import initialize_config_dir
from launch import one_loader
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from hylo.adapters.component import BuildContext, ComponentConfig
from hylo.adapters.model import AdaptedModel, Method
from hylo.cli.main import compose

CONF = Path(__file__).resolve().parent.parent / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
CONTEXT, VOCABULARY = 32, 97

_PLAIN: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2 * CONTEXT,
}
_SIZES: dict[str, Any] = _PLAIN | {
    "intermediate_size": 112,
    "num_key_value_heads": 2,
    "head_dim": 16,  # q, o: 48 to 64, k, v: 48 to 32; no weight is square, so a transposed one is noticed
}
_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_TOKENS_OF_OPT: dict[str, Any] = _TOKENS | {"pad_token_id": 1}  # required by OPT
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES, **_TOKENS, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_SIZES, **_TOKENS, tie_word_embeddings=False),  # biased q, k, v
    "gpt2": GPT2Config(n_embd=48, n_inner=112, n_layer=2, n_head=4, n_positions=2 * CONTEXT, **_TOKENS),  # Conv1D
    "gpt_neox": GPTNeoXConfig(intermediate_size=112, **_PLAIN, **_TOKENS),  # one projection for q, k, v
    "opt": OPTConfig(ffn_dim=112, word_embed_proj_dim=48, **_PLAIN, **_TOKENS_OF_OPT),
    "gemma": GemmaConfig(**_SIZES, **_TOKENS, tie_word_embeddings=True),
    "mistral": MistralConfig(**_SIZES, **_TOKENS, tie_word_embeddings=False, sliding_window=8),
}
ARCHITECTURES = sorted(CONFIGS)


def tiny(architecture: str, *, seed: int = 0) -> PreTrainedModel:
    """A two-layer model in which every tensor counts.

    Freshly initialised biases are zero, norm weights one, and attention is nearly uniform, which would hide a bias
    scaled by DoRA, or a mask. So all are perturbed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[architecture], dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> dict[str, ComponentConfig]:
    with one_loader, initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config, _ = compose([f"method={name}", "model=tiny_llama", "tracking=none", *overrides])
    return config.components


def method(name: str, *overrides: str) -> dict[str, ComponentConfig]:
    """The components of conf/method/<name>.yaml, composed and typed as in a run."""
    return dict(_composed(name, overrides))


TRAINED = [name for name in METHODS if name != "none"]
"""All methods except those that train nothing."""
EVERY_METHOD_ON = ["llama", "gpt2"]
"""Two architectures that differ in what adapters touch: nn.Linear, RoPE, RMSNorm, a gated FFN, fewer keys than
queries and tied weights, or Conv1D, learned positions, LayerNorm, biases and one projection for q, k, v."""
ON_EVERY_ARCHITECTURE = ["dora", "landmark_attention", "hylorada", "peft_prefix"]
"""Four methods that touch an architecture in different places: weights and norms of layers, attention functions and
masks, positions and hidden states (on top of LoRA), the cache; the last one is from the peft library."""


def _redundancy(architecture: str, name: str) -> list[pytest.MarkDecorator]:
    if architecture in EVERY_METHOD_ON or name in ON_EVERY_ARCHITECTURE:
        return []
    others = [each for each in ARCHITECTURES if each not in EVERY_METHOD_ON]
    its_turn = METHODS.index(name) % len(others) == others.index(architecture)
    return [pytest.mark.slow if its_turn else pytest.mark.exhaustive]


def matrix(*names: str) -> Any:
    """Parametrizes a test by (architecture, name), by default over all methods, and marks redundant combinations.

    A method's code rarely depends on the architecture: what differs is in hylo.models.architecture, which the four
    methods exercise on every one. Of the rest, CI runs each method on one more architecture; all run in test-all.
    """
    return pytest.mark.parametrize(
        ("architecture", "name"),
        [
            pytest.param(
                architecture,
                name,
                marks=_redundancy(architecture, name),
                id=f"{architecture}-{name}",
            )
            for architecture in ARCHITECTURES
            for name in names or METHODS
        ],
        scope="module",
    )


def trains_base(components: Method) -> bool:
    """Whether the method trains the base model's own weights instead of adding tensors."""
    return any(config.trains_base for config in components.values())


def declared_dead(model: AdaptedModel) -> list[str]:
    """Trainable tensors that get no gradient because of a published behaviour that a component chose."""
    slots = {slot for slot, config in model.method.items() if "dead_tensors" in config.breaks}
    return [name for name in trained(model) if name.partition(".")[0] in slots]


def adapt(base: PreTrainedModel, components: Method, *, seed: int = 0, fused: bool = True) -> AdaptedModel:
    """The method on the model at step 0, in evaluation mode."""
    return AdaptedModel(base, components, context_length=CONTEXT, seed=seed, fused=fused).eval()


def context(architecture: str) -> BuildContext:
    """A build context, for methods of component configs."""
    return BuildContext(tiny(architecture), CONTEXT, seed=0)


def trained(model: AdaptedModel) -> dict[str, torch.nn.Parameter]:
    """Trainable tensors as the adapter names them, `slot.name`."""
    return model.adapter_state_dict()


def values(model: AdaptedModel) -> dict[str, Tensor]:
    """A copy of the trainable tensors."""
    return {name: tensor.detach().clone() for name, tensor in trained(model).items()}


@torch.no_grad()
def perturb(model: AdaptedModel, *, seed: int = 1) -> None:
    """Perturbs every trainable tensor: at step 0 most are zero, which hides everything computed from them."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in trained(model).values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)


def perturbed(base: PreTrainedModel, components: Method, *, fused: bool = True) -> AdaptedModel:
    """The method on the model, with all trainable tensors perturbed."""
    model = adapt(base, components, fused=fused)
    perturb(model)
    return model


def tokens(*shape: int, seed: int = 2) -> Tensor:
    """Random token ids."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor, **kwargs: Any) -> Tensor:
    """Logits of a full forward pass."""
    return model(input_ids=ids, **kwargs).logits


def causal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of each token given those before it, by torch; -100 is ignored."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state_dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: torch.nn.Module, before: dict[str, Tensor]) -> None:
    """Asserts that the model's state equals the copy, in names and bits."""
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name, tensor in after.items() if not torch.equal(tensor, before[name])] == []
