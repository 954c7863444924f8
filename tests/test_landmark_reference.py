"""Landmarks against slow float64 loops, written from the formulas and not from the code.

Parameters are perturbed, so that no term is zero or uniform, and one text is left-padded, so that a token's index in
the batch is not its position. The mixtures by position are in test_adapter_reference.py.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from adapters import adapt, perturb, tiny, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from hylo.adapters.component import ComponentConfig
from hylo.adapters.landmarks.attention import AttentionConfig, Softmax
from hylo.adapters.landmarks.original import OriginalConfig, Pooling
from hylo.adapters.landmarks.per_layer import Choice, PerLayerConfig, Share
from hylo.adapters.model import AdaptedModel

LENGTH, PADDING, K = 10, (0, 4), 3
IDS = tokens(2, LENGTH)
MASK = torch.tensor([[t >= padding for t in range(LENGTH)] for padding in PADDING]).long()
REAL = [(row, t) for row, padding in enumerate(PADDING) for t in range(padding, LENGTH)]
"""Row and index of every token that is not padding."""
FFN = {"gpt2": "transformer.h.{}.mlp", "llama": "model.layers.{}.mlp"}
ATTENTION = {"gpt2": "transformer.h.{}.attn", "llama": "model.layers.{}.self_attn"}
KEYS_OF_LLAMA, WIDTH_OF_LLAMA, WIDTH_OF_GPT2 = 2, 16, 12


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def _perturbed(base: PreTrainedModel, config: ComponentConfig) -> tuple[AdaptedModel, dict[str, np.ndarray]]:
    """The model with only the landmark, and the landmark's tensors."""
    model = adapt(base, {"landmark": config})
    for seed in range(4):
        perturb(model, seed=seed)
    return model, {name: _array(tensor) for name, tensor in model.tensors()["landmark"].items()}


@torch.no_grad()
def _pass(model: nn.Module) -> None:
    model(input_ids=IDS, attention_mask=MASK, position_ids=(MASK.cumsum(-1) - 1).clamp(min=0))


def _softmax(scores: list[float]) -> list[float]:
    exponents = [math.exp(score) for score in scores]
    return [exponent / sum(exponents) for exponent in exponents]


def _head_input(base: PreTrainedModel, model: nn.Module) -> np.ndarray:
    """The input of the output head in a forward pass."""
    seen: list[Tensor] = []
    head = base.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    _pass(model)
    handle.remove()
    return _array(seen[0])


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_original(architecture: str, pooling: Pooling):
    """out = h + a (w L), w = softmax(G mean of h over the real tokens so far, or over all)."""
    base = tiny(architecture)
    h = _head_input(base, base)
    model, landmark = _perturbed(base, OriginalConfig(num_landmarks=K, pooling=pooling))
    out = _head_input(base, model)
    for row, t in REAL:
        last = t if pooling is Pooling.causal else LENGTH - 1
        pooled = [h[row, s] for s in range(PADDING[row], last + 1)]
        mean = sum(pooled) / len(pooled)
        w = _softmax([float(landmark["G"][k] @ mean) for k in range(K)])
        expected = h[row, t] + landmark["a"] * sum(w[k] * landmark["L"][k] for k in range(K))
        np.testing.assert_allclose(out[row, t], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", Share)
@pytest.mark.parametrize("pooling", Choice)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_per_layer(architecture: str, pooling: Choice, share: Share):
    """out = h + a (w L), w = softmax(h L^T / sqrt(d)), at the output of each FFN; as published h in w is the mean."""
    base = tiny(architecture)
    seen: dict[tuple[str, int], np.ndarray] = {}

    def watch(when: str) -> None:
        for layer in range(2):
            ffn = base.get_submodule(FFN[architecture].format(layer))
            ffn.register_forward_hook(lambda m, args, output, key=(when, layer): seen.update({key: _array(output)}))

    watch("before")
    model, landmark = _perturbed(base, PerLayerConfig(num_landmarks=K, pooling=pooling, share=share))
    watch("after")
    _pass(model)
    for layer in range(2):
        L, a = landmark["L" if share is Share.layers else f"layers.{layer}.L"], landmark[f"layers.{layer}.a"]
        for row, t in REAL:
            h = seen["before", layer][row, t]
            text = [seen["before", layer][row, u] for other, u in REAL if other == row]
            chooses = h if pooling is Choice.token else sum(text) / len(text)
            w = _softmax([float(chooses @ L[k]) / math.sqrt(48) for k in range(K)])
            expected = h + a * sum(w[k] * L[k] for k in range(K))
            np.testing.assert_allclose(seen["after", layer][row, t], expected, rtol=1e-5, atol=1e-5)


def _rotate(x: np.ndarray, position: int) -> np.ndarray:
    """Rotary embedding: the pair (i, i + D/2) turns by position / 10000^(2 i / D)."""
    half = len(x) // 2
    out = np.zeros_like(x)
    for i in range(half):
        angle = position / 10000 ** (2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def _llama_heads(attention: Any, x: np.ndarray, position: int) -> tuple[list[np.ndarray], ...]:
    """Queries, keys and values of a token by head: four queries share two keys and values."""
    q, k, v = (_array(projection.weight) @ x for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
    queries, keys = (
        [_rotate(part, position) for part in np.split(both, len(both) // WIDTH_OF_LLAMA)] for both in (q, k)
    )
    return queries, keys, np.split(v, KEYS_OF_LLAMA)


def _gpt2_heads(attention: Any, x: np.ndarray, position: int) -> tuple[list[np.ndarray], ...]:
    fused = x @ _array(attention.c_attn.weight) + _array(attention.c_attn.bias)
    queries, keys, values = (np.split(part, len(part) // WIDTH_OF_GPT2) for part in np.split(fused, 3))
    return queries, keys, values


def _projected(attention: Any, joined: np.ndarray) -> np.ndarray:
    if hasattr(attention, "o_proj"):
        return _array(attention.o_proj.weight) @ joined
    return joined @ _array(attention.c_proj.weight) + _array(attention.c_proj.bias)


def _attended(query: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray]) -> np.ndarray:
    w = _softmax([float(query @ key) / math.sqrt(len(query)) for key in keys])
    return np.sum([weight * value for weight, value in zip(w, values, strict=True)], axis=0)


@pytest.mark.parametrize("softmax", Softmax)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_attention(architecture: str, implementation: str, softmax: Softmax, monkeypatch: pytest.MonkeyPatch):
    """Each query sees the landmarks of its key/value head and the real tokens up to its own, in one softmax or two."""
    base = tiny(architecture)
    monkeypatch.setattr(base.config, "_attn_implementation", implementation)
    model, landmark = _perturbed(base, AttentionConfig(num_landmarks=K, softmax=softmax))
    layer = 1
    attention = base.get_submodule(ATTENTION[architecture].format(layer))
    seen: list[np.ndarray] = []

    def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.extend([_array(kwargs["hidden_states"] if not args else args[0]), _array(output[0])])

    attention.register_forward_hook(watch, with_kwargs=True)
    _pass(model)
    x, out = seen
    heads = _llama_heads if architecture == "llama" else _gpt2_heads
    keys_L, values_L, a = (landmark[f"layers.{layer}.{name}"] for name in ("keys", "values", "scale"))
    for row, t in REAL:
        tokens_seen = [heads(attention, x[row, s], s - PADDING[row]) for s in range(PADDING[row], t + 1)]
        queries = tokens_seen[-1][0]
        joined = []
        for head, query in enumerate(queries):
            group = head * len(keys_L) // len(queries)
            keys, values = ([token[part][group] for token in tokens_seen] for part in (1, 2))
            if softmax is Softmax.joint:
                joined.append(_attended(query, [*keys_L[group], *keys], [*(a * values_L[group]), *values]))
            else:
                landmarks = _attended(query, list(keys_L[group]), list(values_L[group]))
                joined.append(_attended(query, keys, values) + a * landmarks)
        np.testing.assert_allclose(out[row, t], _projected(attention, np.concatenate(joined)), rtol=1e-4, atol=1e-5)
