"""Methods of the `peft` library under this project's protocol: the same functions as in the library, and no more.

test_contract.py covers conf/method/peft_*.yaml like any other method; this file covers the types without a file there,
the comparison with the library's own model class, and what is refused.
"""

import copy
import re
import subprocess
import sys
import warnings
from typing import Any

import peft
import pytest
import torch
from adapters import (
    ARCHITECTURES,
    CONTEXT,
    adapt,
    assert_same_state,
    causal_loss,
    context,
    logits,
    method,
    perturb,
    perturbed,
    snapshot,
    tiny,
    tokens,
    trained,
    values,
)
from launch import ROOT, composed
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hylo.adapters.component import AtStart
from hylo.adapters.model import AdaptedModel
from hylo.adapters.peft.library import REFUSED, make_config, types_known
from hylo.adapters.peft.method import PeftConfig
from hylo.core.errors import ConfigError
from hylo.models.targets import default_targets, target_layers
from hylo.training.config import TrainerConfig
from hylo.training.loop import prepare_for_training
from hylo.training.optimizers.adamw import AdamWConfig
from hylo.training.step import make_optimizer

IDS = tokens(2, 12)
PROMPTS = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "CARTRIDGE")
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 5, "num_frozen_tokens": 0},
    "LORA": {"r": 4, "use_rslora": True},
    "MISS": {"r": 8},
    "OFT": {"oft_block_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 5},
    "PROMPT_TUNING": {"num_virtual_tokens": 5},
    "P_TUNING": {"num_virtual_tokens": 5},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [1, 12, 58]},
    "VBLORA": {"vector_length": 16, "num_vectors": 20},
    "VERA": {"r": 16},
    "WAVEFT": {"n_frequency": 100},
}
"""Settings that a type requires, or requires for layers as small as these."""
ELSEWHERE = {"ADAMSS": "needs scikit-learn", "BOFT": "tries to compile a CUDA extension into the user's cache"}
NOT_ON_GPT2 = {"GLORA": "not a plain torch.nn.Linear"}
TYPES = [kind for kind in types_known() if kind not in ELSEWHERE]


def _config(kind: str, **kwargs: Any) -> dict[str, PeftConfig]:
    return {"peft": PeftConfig(peft_type=kind, kwargs=SETTINGS.get(kind, {}) | kwargs)}


def _with_linear_layers(base: PreTrainedModel) -> PreTrainedModel:
    """A copy with nn.Linear for every Conv1D: a reference for types that the library only has for nn.Linear."""
    base = copy.deepcopy(base)
    for path, module in list(base.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.weight.shape[0], module.weight.shape[1])
            linear.weight, linear.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
            base.set_submodule(path, linear)
    return base


def _library(base: PreTrainedModel, config: PeftConfig) -> nn.Module:
    """The same method with the library's own model class, on a copy of the base model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's warnings about transformers
        for linear in (False, True):
            model: Any = _with_linear_layers(base) if linear else copy.deepcopy(base)
            transposed = base.config.model_type == "gpt2" and not linear
            try:
                settings = make_config(config.peft_type, config.kwargs, base, transposed=transposed)
                wrapped: Any = peft.get_peft_model(model, settings)
            except (TypeError, ValueError, NotImplementedError):
                continue
            if any(parameter.requires_grad for parameter in wrapped.parameters()):
                return wrapped
    raise AssertionError("the library cannot do it")


def _pairs(ours: AdaptedModel, theirs: nn.Module) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    """Our name, our tensor and the library's, for all tensors that either trains."""
    others = {
        name.replace(".default", "").replace("base_model.model.", "layers.").replace("base_model.", "shared."): p
        for name, p in theirs.named_parameters(remove_duplicate=False)
        if p.requires_grad
    }
    mine = {name.removeprefix("peft.").replace("encoder.", "prompt_encoder."): p for name, p in trained(ours).items()}
    pairs = [(name, tensor, others[name]) for name, tensor in mine.items()]
    assert {id(other) for _, _, other in pairs} == set(map(id, others.values()))
    return pairs


@pytest.mark.filterwarnings("ignore::UserWarning")  # the library's warnings about limits of single types
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", TYPES)
def test_outputs_and_gradients_are_those_of_the_library(kind: str, architecture: str):
    """Perturbed: at step 0 most types equal the base model, and any would pass."""
    base, components = tiny(architecture), _config(kind)
    if architecture == "gpt2" and kind in NOT_ON_GPT2:
        with pytest.raises(ConfigError, match=NOT_ON_GPT2[kind]):
            adapt(base, components)
        return
    theirs = _library(base, components["peft"]).train(False)
    ours = perturbed(base, components, fused=False)  # the library is unfused: both round alike
    pairs = _pairs(ours, theirs)
    with torch.no_grad():
        for _, mine, other in pairs:
            other.copy_(mine)
    outputs = [ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits[:, -IDS.shape[1] :]]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=2e-5)
    for output in outputs:
        causal_loss(output, IDS).backward()
    for name, mine, other in pairs:
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_keeps_the_contract(kind: str):
    """For types without a file in conf/: start as declared, counts, complete saved state, restored base model."""
    base, components = tiny("llama"), _config(kind)
    untuned, before, modules = logits(base, IDS), snapshot(base), list(map(type, base.modules()))
    model = adapt(base, components, fused=False)
    distance = float((logits(model, IDS) - untuned).abs().max())
    bounds = {AtStart.same: (0, 1e-6), AtStart.near: (0, 1e-2), AtStart.apart: (1e-3, 1e3)}
    low, high = bounds[components["peft"].at_start]
    assert low <= distance <= high
    assert model.parameter_counts()["trainable"] == components["peft"].parameter_count(context("llama")) > 0
    assert {tensor.dtype for tensor in trained(model).values()} == {torch.float32}
    perturb(model)
    expected, tensors = logits(model, IDS), values(model)
    model.detach()
    assert_same_state(base, before)
    assert list(map(type, base.modules())) == modules
    assert torch.equal(logits(base, IDS), untuned)
    again = adapt(base, components, seed=9, fused=False)
    with torch.no_grad():
        for name, tensor in trained(again).items():
            tensor.copy_(tensors[name])
    assert torch.equal(logits(again, IDS), expected), "something frozen depends on the seed and is not saved"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("own", ["lora", "dora"])
def test_the_same_function_as_this_projects_own(own: str, architecture: str):
    """The same tensors give the same logits and gradients; the magnitude is perturbed, too."""
    ours = perturbed(tiny(architecture), method(own))
    theirs = adapt(tiny(architecture), method(f"peft_{own}"))
    names = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector.weight"}
    others = trained(theirs)
    pairs = []
    for name, tensor in trained(ours).items():
        path, _, kind = name.removeprefix("low_rank.").rpartition(".")
        pairs.append((tensor, others.pop(f"peft.{path}.{names[kind]}")))
    assert not others
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    outputs = [model(input_ids=IDS).logits for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        causal_loss(output, IDS).backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_virtual_tokens_leave_padding_and_decoding_alone(kind: str, architecture: str):
    """Of the prompt methods, conf/ only has prefix tuning. The library itself counts left padding as positions."""
    model = perturbed(tiny(architecture), _config(kind))
    text = tokens(1, 7)
    alone = logits(model, text)
    assert alone.shape[1] == 7
    mask = torch.tensor([[0] * 4 + [1] * 7])
    padded = torch.cat([tokens(1, 4, seed=5), text], dim=1)
    torch.testing.assert_close(logits(model, padded, attention_mask=mask)[:, 4:], alone, rtol=0, atol=1e-4)
    cache, steps = None, []
    for t in range(11):
        with torch.no_grad():
            output = model(input_ids=padded[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache)
        cache = output.past_key_values
        steps.append(output.logits)
    assert cache is not None
    assert cache.get_seq_length() == 11
    torch.testing.assert_close(torch.cat(steps[4:], dim=1), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_with_recomputed_activations(kind: str):
    """Gradient checkpointing disables the cache, through which virtual keys and values are passed."""
    model = perturbed(tiny("llama"), _config(kind)).train()
    causal_loss(model(input_ids=IDS).logits, IDS).backward()
    expected = {name: tensor.grad for name, tensor in trained(model).items()}
    model.zero_grad()
    prepare_for_training(model, TrainerConfig(gradient_checkpointing=True))
    causal_loss(model(input_ids=IDS).logits, IDS).backward()
    for name, tensor in trained(model).items():
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["LORA", "VERA"])
def test_layers_default_to_those_of_this_projects_methods(kind: str, architecture: str):
    base = tiny(architecture)
    expected = {f"peft.layers.{path}" for path in target_layers(base, default_targets(base))}
    names = trained(adapt(tiny(architecture), _config(kind)))
    assert {re.sub(r"\.(lora|vera)_.*", "", name) for name in names} == expected


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown type": ({"peft_type": "VEAR"}, ("method.peft.peft_type = 'VEAR'", "VERA", "PREFIX_TUNING")),
    "lower case": ({"peft_type": "vera"}, ("method.peft.peft_type = 'vera'", "VERA")),
    "unknown keyword": ({"kwargs": {"rank": 4}}, ("method.peft.kwargs.rank = 4", "lora_alpha", "use_dora")),
    "misspelled keyword": (
        {"kwargs": {"lora_alhpa": 4}},
        ("kwargs.lora_alhpa", "fix:     method.peft.kwargs.lora_alpha=..."),
    ),
    "wrong type": ({"kwargs": {"r": "four"}}, ("method.peft.kwargs.r = 'four'", "allowed: int")),
    "a fraction for a count": ({"kwargs": {"r": 2.5}}, ("method.peft.kwargs.r = 2.5", "allowed: int")),
    "a switch for a count": ({"kwargs": {"r": True}}, ("method.peft.kwargs.r = True", "allowed: int")),
    "wrong choice": ({"kwargs": {"bias": "some"}}, ("method.peft.kwargs.bias = 'some'", "lora_only")),
    "a list of numbers": ({"kwargs": {"target_modules": [1]}}, ("kwargs.target_modules = [1]", "list[str]")),
    "set by the project": ({"kwargs": {"task_type": "SEQ_CLS"}}, ("kwargs.task_type = 'SEQ_CLS'", "keywords of LORA")),
    "not finite": ({"kwargs": {"lora_dropout": float("nan")}}, ("kwargs.lora_dropout = nan", "finite")),
    "bad value": ({"kwargs": {"r": 0}}, ("method.peft.kwargs = {'r': 0}", "positive integer")),
    "no such layer": ({"kwargs": {"target_modules": ["wq"]}}, ("wq", "not found")),
    "a required setting": ({"peft_type": "PREFIX_TUNING"}, ("num_virtual_tokens is None",)),
    "no virtual token": (
        {"peft_type": "PROMPT_TUNING", "kwargs": {"num_virtual_tokens": 0}},
        ("num_virtual_tokens is 0",),
    ),
    "no room": (
        {"peft_type": "PROMPT_TUNING", "kwargs": {"num_virtual_tokens": CONTEXT + 1}},
        (f"num_virtual_tokens = {CONTEXT + 1}", f"at most {CONTEXT}"),  # of 2 * CONTEXT positions,
    ),
    "other layers": (
        {"peft_type": "PREFIX_TUNING", "kwargs": {"num_virtual_tokens": 4, "num_layers": 3}},
        ("num_layers is 2",),
    ),
    "the base model's own": ({"kwargs": {"bias": "all"}}, ("train the base model's own", "bias")),
    "a start from data": ({"kwargs": {"init_lora_weights": "corda"}}, ("'corda'", "gaussian")),
    "a rank that no weight has": (
        {"kwargs": {"init_lora_weights": "olora", "r": 33}},  # k and v are 32 wide
        ("r is 33, but the smaller side of the weight of model.layers.0.self_attn.k_proj is 32",),
    ),
    "a rate of no tensor": (
        {"tensor_learning_rate_multipliers": {"lora_C": 16.0}},
        ("tensor_learning_rate_multipliers.lora_C = 16.0", "lora_A, lora_B", "remove lora_C"),
    ),
    "a rate of a virtual token that has none": (
        {
            "peft_type": "PROMPT_TUNING",
            "kwargs": {"num_virtual_tokens": 4},
            "tensor_learning_rate_multipliers": {"lora_B": 16.0},
        },
        ("tensor_learning_rate_multipliers.lora_B = 16.0", "embedding"),
    ),
    "no rate": (
        {"tensor_learning_rate_multipliers": {"lora_B": 0.0}},
        ("tensor_learning_rate_multipliers.lora_B = 0.0", "a number > 0"),
    ),
    "a rate that is no number": (
        {"tensor_learning_rate_multipliers": {"lora_B": float("inf")}},
        ("tensor_learning_rate_multipliers.lora_B = inf", "finite"),
    ),
    "frozen and not saved": (
        {"peft_type": "CARTRIDGE", "kwargs": {"num_virtual_tokens": 4}},
        ("num_frozen_tokens = 1",),
    ),
    "a block that does not fit": ({"peft_type": "C3A", "kwargs": {"block_size": 100}}, ("C3A", "block_size")),
    **{kind: ({"peft_type": kind}, (f"method.peft.peft_type = '{kind}'", reason)) for kind, reason in REFUSED.items()},
}


@pytest.mark.parametrize("case", BAD)
def test_refused_with_value_allowed_and_fix(case: str):
    """Before anything is attached, and reported as one problem."""
    settings, expected = BAD[case]
    base = tiny("qwen2")  # has biases
    before, modules = snapshot(base), list(base.modules())
    with pytest.raises(ConfigError) as caught:
        adapt(base, {"peft": PeftConfig(**settings)})
    message = str(caught.value)
    assert [text for text in (*expected, "allowed: ", "fix: ") if text not in message] == [], message
    assert_same_state(base, before)
    assert list(base.modules()) == modules


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_loraplus_is_that_of_the_library(architecture: str):
    """Two AdamW steps from the same tensors give the same updates as the library's own LoRA+ optimizer."""
    from peft.optimizers import create_loraplus_optimizer

    base, (config,) = tiny(architecture), method("peft_loraplus").values()
    assert isinstance(config, PeftConfig)
    theirs = _library(base, config).train(False)
    ours = perturbed(base, {"peft": config}, fused=False)
    pairs = _pairs(ours, theirs)
    with torch.no_grad():
        for _, mine, other in pairs:
            other.copy_(mine)
    start, settings = values(ours), TrainerConfig(learning_rate=1e-3, optimizer=AdamWConfig())
    assert settings.optimizer.weight_decay == 0.0
    library: Any = theirs
    reference = create_loraplus_optimizer(library, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    for model, optimizer in ((ours, make_optimizer(ours, settings)), (theirs, reference)):
        for _ in range(2):
            optimizer.zero_grad()
            causal_loss(model(input_ids=IDS).logits, IDS).backward()
            optimizer.step()
    for name, mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
        moved = float((mine.detach() - start[f"peft.{name}"]).abs().mean())
        assert moved == pytest.approx(2e-3 * (16 if "lora_B" in name else 1), rel=0.3)


def test_a_tensor_takes_all_rates_whose_names_it_has():
    rates = {"lora_B": 4.0, "q_proj": 3.0}
    config = PeftConfig(tensor_learning_rate_multipliers=rates, learning_rate_multiplier=2.0)
    found = adapt(tiny("llama"), {"peft": config}).learning_rate_multipliers()["peft"]
    for name, rate in found.items():
        assert rate == 2.0 * (4.0 if "lora_B" in name else 1.0) * (3.0 if "q_proj" in name else 1.0)
    assert set(found.values()) == {2.0, 6.0, 8.0, 24.0}


def test_rates_need_no_plus():
    config = composed("method=peft_loraplus", "method.peft.tensor_learning_rate_multipliers.lora_A=0.5")
    rates = config.components["peft"].tensor_learning_rate_multipliers  # pyright: ignore[reportAttributeAccessIssue]
    assert rates == {"lora_A": 0.5, "lora_B": 16.0}


def test_only_as_the_whole_method():
    with pytest.raises(ConfigError, match="only as the whole method"):
        adapt(tiny("llama"), {**method("peft_vera"), **method("lora")})


def test_keywords_need_no_plus_and_are_merged():
    config = composed("method=peft_lora", "method.peft.kwargs.r=4", "method.peft.kwargs.use_dora=true")
    assert config.components["peft"] == PeftConfig(kwargs={"r": 4, "lora_alpha": 16, "use_dora": True})
    config = composed("method=peft", "method.peft.peft_type=ADALORA", "+method.peft.kwargs={total_step: 10}")
    assert config.components["peft"] == PeftConfig(peft_type="ADALORA", kwargs={"total_step": 10})


def test_the_slot_may_be_left_out():
    config = composed("method=peft", "method.peft_type=VERA", "method.kwargs.r=4")
    assert config.components["peft"] == PeftConfig(peft_type="VERA", kwargs={"r": 4})


def test_the_projections_of_vera_are_drawn_from_their_own_key():
    """They are not in the adapter file, so they must depend on the setting and not on the run's seed."""

    def start(seed: int, **kwargs: int) -> Tensor:
        model = adapt(tiny("llama"), _config("VERA", **kwargs), seed=seed)
        perturb(model)
        return logits(model, IDS)

    assert torch.equal(start(0), start(1))
    assert not torch.equal(start(0), start(0, projection_prng_key=1))


@pytest.mark.slow
def test_the_library_is_imported_on_first_use():
    """Importing it takes as long as torch, so composing a configuration or printing help must not wait for it."""
    code = "import sys, hylo.cli.main; sys.exit('peft' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
