"""The project's own components against slow float64 loops, written from the formulas and not from the code.

Parameters are perturbed, so that no term is zero or one, and texts are left-padded, so that a token's index in the
batch is not its position.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapters import adapt, method, perturb, perturbed, tiny, tokens, values
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.landmarks.learnable import LearnableConfig
from hylo.adapters.landmarks.mixture import MixtureConfig
from hylo.adapters.landmarks.position_adaptive import PositionAdaptiveConfig
from hylo.adapters.low_rank import LowRankConfig, LowRankLayer, Scaling
from hylo.adapters.position_bias import PositionBiasConfig

LENGTH, PADDING = 12, (0, 5)
IDS = tokens(2, LENGTH)
MASK = torch.tensor([[t >= padding for t in range(LENGTH)] for padding in PADDING]).long()
REAL = [(row, t, t - padding) for row, padding in enumerate(PADDING) for t in range(padding, LENGTH)]
"""Row, index and true position of every token that is not padding."""
LAYERS = {  # in, out: a biased Conv1D in both orientations, and grouped-query attention
    "gpt2": {"transformer.h.1.attn.c_attn": (48, 144), "transformer.h.1.mlp.c_proj": (112, 48)},
    "llama": {"model.layers.1.self_attn.v_proj": (48, 32), "model.layers.1.self_attn.o_proj": (64, 48)},
}
N, P_MAX = 4, 8  # boundaries at 8^(1/4), 8^(2/4), 8^(3/4): 2, 3, 5; the last positions lie beyond P_max
STARTS = (0, 2, 3, 5)
"""First position of each bucket."""


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def _bucket(position: int) -> int:
    return max(index for index, start in enumerate(STARTS) if position >= start)


def _layer_output(layer: LowRankLayer, config: LowRankConfig, x: np.ndarray, gate: float) -> np.ndarray:
    """y = m (W x + g s B A x) / n + bias, n = row norms of W + s B A, s = alpha / sqrt(r); without m: no n either."""
    A, B, W = _array(layer.A), _array(layer.B), _array(layer.base.weight)
    bias = layer.base.bias
    s = config.alpha / math.sqrt(config.rank)
    W = W.T if bias is not None else W  # here the biased layers are Conv1D, which stores [in, out]
    y = np.zeros(W.shape[0])
    for o in range(W.shape[0]):
        update = sum(B[o, r] * float(A[r] @ x) for r in range(config.rank))
        y[o] = W[o] @ x + gate * s * update
        if layer.magnitude is not None:
            row = [W[o, i] + s * sum(B[o, r] * A[r, i] for r in range(config.rank)) for i in range(W.shape[1])]
            y[o] *= float(layer.magnitude[o].detach()) / math.sqrt(sum(entry**2 for entry in row))
        y[o] += 0.0 if bias is None else float(bias[o])
    return y


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("architecture", LAYERS)
def test_position_gate_on_low_rank_updates(architecture: str, magnitude: bool):
    base = tiny(architecture)
    low_rank = LowRankConfig(
        rank=3,
        alpha=5.0,
        scaling=Scaling.rank_stabilized,
        magnitude=magnitude,
        target_modules=list(LAYERS[architecture]),
    )
    model = perturbed(
        base, {"low_rank": low_rank, "position_bias": PositionBiasConfig(num_buckets=N, max_position=P_MAX)}
    )
    with torch.no_grad():
        model.tensors()["position_bias"]["b"].mul_(5)  # makes the gates differ clearly
    b = _array(model.tensors()["position_bias"]["b"])

    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for path in LAYERS[architecture]:
        layer = base.get_submodule(path)
        layer.register_forward_hook(lambda layer, args, output, path=path: seen.update({path: (args[0], output)}))
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    for path, shape in LAYERS[architecture].items():
        layer, (x, y) = base.get_submodule(path), seen[path]
        assert isinstance(layer, LowRankLayer)
        assert (x.shape[-1], y.shape[-1]) == shape
        for row, t, position in REAL[::3]:
            gate = 1 + math.tanh(b[_bucket(position)])
            expected = _layer_output(layer, low_rank, _array(x[row, t]), gate)
            np.testing.assert_allclose(_array(y[row, t]), expected, rtol=1e-5, atol=1e-5)


def _hard(position: int, landmark: dict[str, np.ndarray], tau: float) -> np.ndarray:
    """Bucket weights of fixed buckets."""
    return np.eye(N)[_bucket(position)]


def _soft(position: int, landmark: dict[str, np.ndarray], tau: float) -> np.ndarray:
    """m_i = s_i - s_(i+1), s_i = sigmoid((p / P_max - beta_i) / tau); from P_max on as at P_max."""
    fraction = min(position / P_MAX, 1.0)
    s = [1.0, *(1 / (1 + math.exp(-(fraction - beta) / tau)) for beta in sorted(landmark["beta"])), 0.0]
    return np.array([s[i] - s[i + 1] for i in range(N)])


def _head_input(base: PreTrainedModel, model: torch.nn.Module) -> Tensor:
    """The input of the output head in a forward pass."""
    seen: list[Tensor] = []
    head = base.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK, position_ids=(MASK.cumsum(-1) - 1).clamp(min=0))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("config", "bucket_weights"),
    [
        (PositionAdaptiveConfig(num_landmarks=3, num_buckets=N, max_position=P_MAX), _hard),
        (LearnableConfig(num_landmarks=3, num_buckets=N, max_position=P_MAX, temperature=0.1), _soft),
    ],
    ids=["position_adaptive", "learnable"],
)
def test_landmarks(architecture: str, config: MixtureConfig, bucket_weights: Any):
    """out = h + a (w L), w = softmax(m(p) P + C h), after the final norm."""
    base = tiny(architecture)
    h = _array(_head_input(base, base))
    model = adapt(base, {"landmark": config})
    perturb(model)
    perturb(model, seed=2)
    out = _array(_head_input(base, model))
    landmark = {name: _array(tensor) for name, tensor in model.tensors()["landmark"].items()}
    L, C, P, a = (landmark[name] for name in "LCPa")
    for row, t, position in REAL:
        m = bucket_weights(position, landmark, getattr(config, "temperature", 0.0))
        scores = [sum(m[n] * P[n, k] for n in range(N)) + C[k] @ h[row, t] for k in range(3)]
        total = sum(math.exp(score) for score in scores)
        mixture = sum(math.exp(score) / total * L[k] for k, score in enumerate(scores))
        np.testing.assert_allclose(out[row, t], h[row, t] + a * mixture, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_landmark_starts_within_a_few_thousandths_of_h(architecture: str):
    base = tiny(architecture)
    h = _head_input(base, base)
    model = adapt(base, method("hylorada", "method.low_rank=null", "method.position_bias=null"))
    out = _head_input(base, model)
    distance = (out - h).norm(dim=-1) / h.norm(dim=-1)
    assert 0 < distance.max() < 5e-3


def test_starts():
    """L ~ N(0, 0.02^2), a = 0.1, and zero for everything that must have no effect yet."""
    start = values(adapt(tiny("llama"), method("hylorada", "method.landmark.num_landmarks=32")))
    assert start["landmark.L"].std() == pytest.approx(0.02, rel=0.1)
    assert abs(start["landmark.L"].mean()) < 0.002
    assert start["landmark.a"] == pytest.approx(0.1)
    assert not any(start[name].any() for name in ("landmark.C", "landmark.P", "position_bias.b"))


def test_dropout_takes_inputs_of_the_update_alone_and_only_in_training():
    base = tiny("llama")
    config = LowRankConfig(dropout=0.5, target_modules=["v_proj"])
    model = perturbed(base, {"low_rank": config})
    layer = base.get_submodule("model.layers.0.self_attn.v_proj")
    assert isinstance(layer, LowRankLayer)
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))

    def update(inputs: Tensor) -> Tensor:
        return layer.base(x) + config.scale * F.linear(F.linear(inputs, layer.A), layer.B)

    torch.testing.assert_close(layer(x), update(x))
    model.train()
    torch.manual_seed(5)
    trained = layer(x)
    torch.manual_seed(5)
    torch.testing.assert_close(trained, update(F.dropout(x, 0.5)))
    assert not torch.equal(layer(x), trained)
