"""Parameter counts: the published numbers for real shapes, and the formulas against the tensors built.

Real shapes are on the meta device, so they need no weights and no time.
"""

import math
from functools import cache
from typing import Any

import pytest
from adapters import CONTEXT, context, matrix, method, tiny, trains_base
from transformers import GPT2Config, LlamaConfig, PreTrainedModel

from hylo.adapters.component import BuildContext
from hylo.adapters.model import AdaptedModel
from hylo.models.base import skeleton_from_config

SMOLLM2_135M: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
LORA_R8, DORA, POSITION_BIAS, LANDMARK_K8, LEARNABLE_K8 = 811_008, 46_080, 64, 12_545, 12_576
ORIGINAL_K4, PER_LAYER_K4, ATTENTION_K4 = 6_145, 36_876, 73_740
SHARED_K4 = 4 * 768 + 12
GPT2_SMALL = [
    ("none", 0),
    ("lora", LORA_R8),
    ("rslora", LORA_R8),
    ("dora", LORA_R8 + DORA),
    ("rslora_dora", LORA_R8 + DORA),
    ("rslora_dora_pb", LORA_R8 + DORA + POSITION_BIAS),
    ("landmark_original", LORA_R8 + ORIGINAL_K4),
    ("landmark_original method.low_rank=null method.landmark.pooling=sequence", ORIGINAL_K4),
    ("landmark_per_layer", LORA_R8 + PER_LAYER_K4),
    ("landmark_per_layer method.low_rank=null", PER_LAYER_K4),
    ("landmark_per_layer method.landmark.share=layers", LORA_R8 + SHARED_K4),
    ("landmark_per_layer method.low_rank=null method.landmark.share=layers", SHARED_K4),
    ("landmark_attention", LORA_R8 + ATTENTION_K4),
    ("landmark_attention method.low_rank=null", ATTENTION_K4),
    ("landmark_attention_zero", LORA_R8 + ATTENTION_K4),
    ("landmark_pa", LORA_R8 + LANDMARK_K8),
    ("landmark_learnable", LORA_R8 + LEARNABLE_K8),
    ("hylorada", 823_617),
    ("hylorada method.landmark=null", LORA_R8 + POSITION_BIAS),
    ("hylorada method.low_rank=null method.position_bias=null", LANDMARK_K8),
    ("landmark_pa method.low_rank=null method.landmark.num_landmarks=4", 6_273),
    ("hylorada_dora", 823_617 + DORA),
    ("hylorada_dora_learnable", LORA_R8 + DORA + POSITION_BIAS + LEARNABLE_K8),
    ("bitfit", DORA),
    ("bitfit method.bias.target_modules=[all-linear]", DORA + 12 * 4 * 768),
    ("full", 124_439_808),
    ("norms", 25 * 2 * 768),
    ("embeddings", 50_257 * 768),
    ("longlora", LORA_R8 + 25 * 2 * 768 + 50_257 * 768),
]


@cache
def gpt2_small() -> PreTrainedModel:
    return skeleton_from_config(GPT2Config())


@pytest.mark.parametrize(("composed", "expected"), GPT2_SMALL, ids=[name for name, _ in GPT2_SMALL])
def test_gpt2_small(composed: str, expected: int):
    """d = 768, 12 layers, c_attn and both c_proj."""
    components = method(*composed.split())
    context = BuildContext(gpt2_small(), context_length=1024, seed=0)
    assert sum(config.parameter_count(context) for config in components.values()) == expected
    model = AdaptedModel(context.model, components, context_length=1024, seed=0)
    assert model.parameter_counts()["trainable"] == expected
    model.detach()


def test_hylorada_holds_the_tensors_of_its_formulas():
    """Every shape by hand: in the published count, two errors could cancel."""
    d, rank, landmarks, buckets = 768, 8, 8, 32
    layer = [(rank, d), (3 * d, rank), (rank, d), (d, rank), (rank, 4 * d), (d, rank)]  # A, B of c_attn and both c_proj
    others = [(landmarks, d), (landmarks, d), (buckets, landmarks), (), (64,)]  # L, C, P, a; the position bias
    model = AdaptedModel(gpt2_small(), method("hylorada"), context_length=1024, seed=0)
    shapes = [tuple(tensor.shape) for tensor in model.adapter_state_dict().values()]
    model.detach()
    assert sorted(shapes) == sorted([*12 * layer, *others])
    assert sum(map(math.prod, shapes)) == 823_617


def test_smollm2_135m_with_all_linear_layers():
    skeleton = skeleton_from_config(LlamaConfig(**SMOLLM2_135M))
    assert skeleton.num_parameters() == 134_515_008
    (config,) = method("lora", "method.low_rank.target_modules=[all-linear]").values()
    assert config.parameter_count(BuildContext(skeleton, context_length=256, seed=0)) == 2_442_240
    (config,) = method("bitfit", "method.bias.target_modules=[all-linear]").values()
    assert config.parameter_count(BuildContext(skeleton, context_length=256, seed=0)) == 30 * (
        3 * 576 + 2 * 192 + 2 * 1536
    )


@matrix()
def test_formula_counts_the_tensors_that_are_built(name: str, architecture: str):
    base = tiny(architecture)
    frozen = 0 if trains_base(method(name)) else base.num_parameters()
    formula = {slot: config.parameter_count(context(architecture)) for slot, config in method(name).items()}
    model = AdaptedModel(base, method(name), context_length=CONTEXT, seed=0)
    counts = model.parameter_counts()
    assert counts["by_component"] == formula
    assert counts["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(formula.values())
    assert counts["total"] == frozen + counts["trainable"]
