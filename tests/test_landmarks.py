"""Specifics of landmark designs: sums kept in the cache, declared leaks, attention functions."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import (
    CONFIGS,
    CONTEXT,
    VOCABULARY,
    adapt,
    assert_same_state,
    causal_loss,
    logits,
    method,
    perturb,
    perturbed,
    snapshot,
    tiny,
    tokens,
    trained,
)
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPTJConfig,
    GptOssConfig,
    PreTrainedModel,
    StaticCache,
)

from hylo.adapters.component import AtStart, BuildContext, normal
from hylo.adapters.landmarks.attention import AttentionConfig, Softmax
from hylo.adapters.landmarks.original import OriginalConfig, Pooling
from hylo.adapters.landmarks.per_layer import PerLayerConfig, Share
from hylo.adapters.low_rank import LowRankConfig
from hylo.adapters.model import AdaptedModel, Method
from hylo.core.errors import ConfigError
from hylo.models.architecture import attention_modules, decoder_layers, ffn_modules

IDS = tokens(3, 10)
LANDMARKS = ["landmark_original", "landmark_per_layer", "landmark_attention", "landmark_attention_zero"]
OPTIONS = ["landmark_per_layer method.landmark.share=layers"]
"""Settings of designs that no file in conf/method/ selects."""


def _strong(base: PreTrainedModel, components: Method) -> AdaptedModel:
    """Landmarks perturbed enough that sums of another text or length are noticeable."""
    model = perturbed(base, components)
    for seed in range(5):
        perturb(model, seed=seed)
    return model


@pytest.fixture
def original() -> AdaptedModel:
    return _strong(tiny("llama"), {"landmark": OriginalConfig()})


def _filled(model: AdaptedModel, ids: Tensor, **kwargs: Any) -> Any:
    """The cache after a forward pass."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=True, **kwargs).past_key_values


def test_a_pass_of_several_tokens_goes_on_from_the_cache(original: AdaptedModel):
    cache = _filled(original, IDS[:, :4])
    _filled(original, IDS[:, 4:7], past_key_values=cache)
    rest = logits(original, IDS[:, 7:], past_key_values=cache)
    torch.testing.assert_close(rest, logits(original, IDS)[:, 7:], rtol=0, atol=1e-4)


def test_the_sums_follow_whatever_happens_to_the_cache(original: AdaptedModel):
    """State kept outside the cache, by its identity, could belong to other texts or later tokens, or be missing."""
    cache = _filled(original, IDS[:, :8])
    copied = copy.deepcopy(cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.crop(-2)
    mixed = torch.cat([IDS[[2, 0, 0], :6], IDS[:, 6:]], dim=1)
    torch.testing.assert_close(
        logits(original, mixed[:, 6:], past_key_values=cache), logits(original, mixed)[:, 6:], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        logits(original, IDS[:, 8:], past_key_values=copied), logits(original, IDS)[:, 8:], rtol=0, atol=1e-4
    )
    copied.reset()
    torch.testing.assert_close(logits(original, IDS, past_key_values=copied), logits(original, IDS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LANDMARKS)
def test_beam_search_is_the_same_with_and_without_a_cache(name: str):
    """Beams are reordered in the cache after every token."""
    model = _strong(tiny("llama"), method(name, "method.low_rank=null"))
    generate: Any = model.base.generate
    settings = {"max_new_tokens": 8, "num_beams": 4, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    cached, recomputed = (generate(IDS, attention_mask=mask, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, recomputed)


@pytest.mark.parametrize("name", LANDMARKS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_cache_of_fixed_size_gives_the_same(architecture: str, name: str):
    """Its keys are longer than the text, and its first mask is None."""
    model = _strong(tiny(architecture), method(name, "method.low_rank=null"))
    cache = StaticCache(config=model.base.config, max_cache_len=16)
    first = logits(model, IDS[:, :6], past_key_values=cache)
    rest = torch.cat([logits(model, IDS[:, t : t + 1], past_key_values=cache) for t in range(6, 10)], dim=1)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), logits(model, IDS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", LANDMARKS)
def test_generating_with_a_cache_of_fixed_size(name: str, implementation: str, monkeypatch: pytest.MonkeyPatch):
    """`generate` then makes four-dimensional masks, in which padding is harder to detect."""
    base = tiny("llama")
    monkeypatch.setattr(base.config, "_attn_implementation", implementation)
    model = _strong(base, method(name, "method.low_rank=null"))
    mask = torch.ones_like(IDS)
    mask[0, :6] = 0
    generate: Any = model.base.generate

    def generated(ids: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
        settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "disable_compile": True}
        output = {"return_dict_in_generate": True, "output_logits": True}
        return torch.stack(generate(ids, attention_mask=mask, **settings, **output, **kwargs).logits)

    fixed = generated(IDS, mask, cache_implementation="static")
    torch.testing.assert_close(fixed, generated(IDS, mask, use_cache=False), rtol=0, atol=1e-4)
    torch.testing.assert_close(fixed[:, :1], generated(IDS[:1, 6:], mask[:1, 6:]), rtol=0, atol=1e-4)


def test_a_cache_filled_without_the_landmarks_is_refused(original: AdaptedModel):
    cache = DynamicCache(config=original.base.config)
    _filled(original, IDS[:, :4], past_key_values=cache)
    cache.layers.pop()
    with pytest.raises(ValueError, match="filled without these landmarks"):
        _filled(original, IDS[:, 4:], past_key_values=cache)


@pytest.mark.parametrize("pooling", Pooling)
def test_the_published_pooling_leaks_and_says_so(pooling: Pooling):
    config = OriginalConfig(pooling=pooling)
    model = perturbed(tiny("llama"), {"landmark": config})
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    difference = (logits(model, changed) - logits(model, IDS))[:, 0].abs().max()
    assert ("causality" in config.breaks) == (difference > 1e-6)


@pytest.mark.parametrize("composed", [*LANDMARKS, *OPTIONS])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_landmarks_alone_on_every_architecture(architecture: str, composed: str):
    """Perturbed, and without a low-rank update."""
    base = tiny(architecture)
    ids, mask = tokens(1, 10), torch.tensor([[0] * 3 + [1] * 7])
    before = logits(base, ids)
    model = _strong(base, method(*composed.split(), "method.low_rank=null"))
    after = logits(model, ids)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(model, ids[:, :6]), after[:, :6], rtol=0, atol=1e-5)
    alone = logits(model, ids[:, 3:])
    torch.testing.assert_close(logits(model, ids, attention_mask=mask)[:, 3:], alone, rtol=0, atol=1e-4)
    cache = _filled(model, ids[:, :5])
    torch.testing.assert_close(logits(model, ids[:, 5:], past_key_values=cache), after[:, 5:], rtol=0, atol=1e-4)
    assert torch.equal(logits(model.detach(), ids), before)


def test_the_order_of_slots_makes_no_difference():
    """OPT's FFN ends in fc2, which LoRA may replace: a hook set before that would see the output without the update. On
    models with a module for the FFN, or if fc2 is not a target, the order does not matter anyway."""
    components: Method = {
        "low_rank": LowRankConfig(target_modules=["fc2"]),
        "landmark": PerLayerConfig(),
    }
    base = tiny("opt")
    before = [(name, id(module), len(module._forward_hooks)) for name, module in base.named_modules()]
    outputs = []
    for slots in (["low_rank", "landmark"], ["landmark", "low_rank"]):
        model = adapt(base, {slot: components[slot] for slot in slots})
        for seed, (_, tensor) in enumerate(sorted(trained(model).items())):  # the same values in either order
            torch.nn.init.normal_(tensor, generator=torch.Generator().manual_seed(seed))
        outputs.append(logits(model, IDS))
        model.detach()
        assert [(name, id(module), len(module._forward_hooks)) for name, module in base.named_modules()] == before
    assert torch.equal(*outputs)


def test_an_ffn_that_returns_more_than_its_output():
    """A mixture of experts also returns router scores, to which landmarks must not be added."""
    settings: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 1, "head_dim": 16}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    base = AutoModelForCausalLM.from_config(GptOssConfig(vocab_size=VOCABULARY, pad_token_id=None, **settings)).eval()
    ffn: Any = ffn_modules(base)[0]
    torch.nn.init.normal_(dict(ffn.named_parameters())["router.weight"])
    h = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone, scores = ffn(h)
        before = logits(base, IDS)
        model = _strong(base, {"landmark": PerLayerConfig()})
        landmarks = model.components["landmark"].get_submodule("layers.0")
        output, same_scores = ffn(h)
        assert torch.equal(output, landmarks(alone))
        assert torch.equal(same_scores, scores)
    assert (logits(model, IDS) - before).abs().max() > 1e-2
    assert torch.equal(logits(model.detach(), IDS), before)


def test_layers_that_share_their_vectors_train_one_tensor(tmp_path: Path):
    """Its gradient is the sum over layers: a tensor read by only the first layer would train, too."""
    shared = perturbed(tiny("gpt2"), {"landmark": PerLayerConfig(share=Share.layers)})
    names = list(trained(shared))
    assert names == ["landmark.L", "landmark.layers.0.a", "landmark.layers.1.a"]
    apart = adapt(tiny("gpt2"), {"landmark": PerLayerConfig()})
    vectors = [name for name in trained(apart) if name.endswith(".L")]
    assert len(vectors) == 2
    with torch.no_grad():
        for name, tensor in trained(apart).items():
            tensor.copy_(trained(shared)["landmark.L" if name in vectors else name])
    outputs = [model(input_ids=IDS).logits for model in (shared, apart)]
    assert torch.equal(*outputs)
    for output in outputs:
        causal_loss(output, IDS).backward()
    gradients = [grad for name in vectors if (grad := trained(apart)[name].grad) is not None]
    assert len(gradients) == 2
    torch.testing.assert_close(trained(shared)["landmark.L"].grad, gradients[0] + gradients[1], rtol=1e-5, atol=1e-7)
    shared.save(tmp_path)
    assert torch.equal(logits(AdaptedModel.restore(tiny("gpt2"), tmp_path), IDS), outputs[0].detach())


def test_sharing_nothing_is_what_it_was():
    """Existing records depend on these names and draws."""
    model = adapt(tiny("llama"), method("landmark_per_layer", "method.low_rank=null"))
    names = [f"landmark.layers.{index}.{name}" for index in range(2) for name in ("L", "a")]
    assert list(trained(model)) == names
    context = BuildContext(tiny("llama"), CONTEXT, seed=0)
    assert torch.equal(trained(model)[names[2]], context.parameter(names[2], (4, 48), normal(0.02)))


def test_attention_landmarks_leave_the_config_alone_even_while_attached():
    """The tiny models of an architecture share one config: landmarks must not be selected in it for other models."""
    base, other = tiny("llama"), tiny("llama", seed=1)
    assert base.config is other.config
    before, config, expected = dict(vars(base.config)), base.config, logits(other, IDS)
    model = perturbed(base, {"landmark": AttentionConfig()})
    assert vars(base.config) == before
    assert torch.equal(logits(other, IDS), expected)
    second = perturbed(other, {"landmark": AttentionConfig()})
    model.detach()
    assert not torch.equal(logits(second, IDS), expected)
    assert base.config is config
    assert all(module.config is config for module in attention_modules(base))
    assert vars(config) == before


STARTS = [
    (Softmax.joint, 0.0, AtStart.apart),
    (Softmax.joint, 0.1, AtStart.apart),
    (Softmax.separate, 0.0, AtStart.same),
    (Softmax.separate, 0.1, AtStart.near),
    (Softmax.separate, 1.0, AtStart.apart),
]


@pytest.mark.parametrize(("softmax", "scale", "declared"), STARTS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_attention_landmarks_start_as_they_declare(
    architecture: str,
    implementation: str,
    softmax: Softmax,
    scale: float,
    declared: AtStart,
    monkeypatch: pytest.MonkeyPatch,
):
    """A scale of zero is not enough: in a joint softmax the keys still take attention from the text."""
    base = tiny(architecture)
    monkeypatch.setattr(base.config, "_attn_implementation", implementation)
    config = AttentionConfig(softmax=softmax, initial_scale=scale)
    assert config.at_start is declared
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    for given in ({}, {"attention_mask": mask}):
        real = given.get("attention_mask", torch.ones_like(IDS)).bool()
        untuned = adapt(base, {}, fused=False)  # counts positions from the first real token, as with landmarks
        before = logits(untuned, IDS, **given)[real]
        untuned.detach()
        model = adapt(base, {"landmark": config}, fused=False)
        after = logits(model, IDS, **given)[real]
        model.detach()
        p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
        kl = float((p.exp() * (p - q)).sum(-1).mean())
        assert torch.equal(after, before) == (declared is AtStart.same)
        assert (kl > 1e-5) == (declared is AtStart.apart)


@pytest.mark.parametrize("softmax", Softmax)
@pytest.mark.parametrize("first", ["sdpa", "eager"])
def test_masks_of_either_kind_are_read(first: str, softmax: Softmax, monkeypatch: pytest.MonkeyPatch):
    """The model makes masks for its current attention; the landmarks call the one set when they were attached."""
    base = tiny("llama")
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    monkeypatch.setattr(base.config, "_attn_implementation", first)
    model = perturbed(base, {"landmark": AttentionConfig(softmax=softmax)})
    for given in ({}, {"attention_mask": mask}):
        results = []
        for now in ("sdpa", "eager"):
            monkeypatch.setattr(base.config, "_attn_implementation", now)
            results.append(logits(model, IDS, **given)[given.get("attention_mask", torch.ones_like(IDS)).bool()])
        torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_attention_landmarks_refuse_what_they_cannot_enter(monkeypatch: pytest.MonkeyPatch):
    own = AutoModelForCausalLM.from_config(GPTJConfig(n_embd=48, n_layer=1, n_head=4, rotary_dim=4, vocab_size=9))
    base = tiny("llama")
    before = snapshot(base)
    with pytest.raises(ConfigError, match="GPTJForCausalLM does not call the attention functions"):
        adapt(own, {"landmark": AttentionConfig()})
    monkeypatch.setattr(base.config, "_attn_implementation", "flex_attention")
    with pytest.raises(ConfigError, match=r"sdpa or eager, not flex_attention(.|\n)*set_attn_implementation"):
        adapt(base, {"landmark": AttentionConfig()})
    assert_same_state(base, before)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_layer_has_one_attention_and_one_ffn(architecture: str):
    base: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[architecture])
    layers = [set(layer.modules()) for layer in decoder_layers(base)]
    for found in (attention_modules(base), ffn_modules(base)):
        assert len(layers) == len(found) == len(set(found)) == 2
        assert all(module in layer for module, layer in zip(found, layers, strict=True))


def test_the_same_positions_in_two_passes_are_two_passes() -> None:
    """A loop may pass one tensor of position ids again and again; the final norm is still used once in each."""
    model = perturbed(tiny("llama"), method("landmark_pa"))
    ids, positions = tokens(1, 6), torch.arange(6)[None]
    first = logits(model, ids, position_ids=positions)
    assert torch.equal(logits(model, ids, position_ids=positions), first)
