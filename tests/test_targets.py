"""Default targets, the share of a model that they are, and causality, on tiny models of other families."""

import pytest
import torch
from adapters import adapt, logits, perturbed, tiny, tokens
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn

from benchmarks.families.tiny import families, tiny_model
from hylo import HyLoRADAConfig, HyLoRADAModel
from hylo.adapters.low_rank import LowRankConfig
from hylo.adapters.position_bias import PositionBiasConfig
from hylo.audit import Audit, Status, untouched_logits
from hylo.audit.finding import Finding
from hylo.core.errors import ConfigError
from hylo.kernels.head import OutputHead
from hylo.models.causality import reads_later_tokens
from hylo.models.targets import ALL_LINEAR, coverage, default_targets, target_layers

IDS = tokens(2, 12)
TARGETS = {
    "phi": ["q_proj", "k_proj", "v_proj", "dense"],
    "bloom": ["query_key_value", "dense"],
    "falcon": ["query_key_value", "dense"],
    "mpt": ["Wqkv", "out_proj"],
    "gptj": ["k_proj", "v_proj", "q_proj", "out_proj"],
    "gpt_bigcode": ["c_attn", "attn.c_proj"],  # the FFN has a c_proj too
    "biogpt": ["k_proj", "v_proj", "q_proj", "out_proj"],
    "bart": ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"],
    "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "rwkv": ["attention.key", "attention.value", "attention.receptance", "output"],
}


@pytest.mark.filterwarnings("ignore")  # of models that transformers itself deprecates
@pytest.mark.parametrize("family", TARGETS)
def test_default_targets(family: str):
    model = tiny_model(family)
    assert default_targets(model) == TARGETS[family]
    paths = target_layers(model, None)
    assert paths == target_layers(model, TARGETS[family])
    assert all("attn" in path or "attention" in path for path in paths)


@pytest.mark.filterwarnings("ignore")  # of models that transformers itself deprecates
@pytest.mark.parametrize("family", sorted(PEFT_TARGETS.keys() & set(families())))
def test_default_targets_hold_those_of_peft_in_attention(family: str):
    """For every family that the library has targets for: by default it leaves out some of query, key, value, output."""
    model = tiny_model(family)
    theirs = target_layers(model, PEFT_TARGETS[family]) if isinstance(PEFT_TARGETS[family], list) else {}
    ours = target_layers(model, None)
    attention = {path for path in theirs if "attn" in path.lower() or "attention" in path.lower()}
    assert {path for path in attention if "encoder_attn" not in path} <= ours.keys()
    assert ours


def test_a_model_without_attention_and_without_targets_is_refused():
    with pytest.raises(
        ConfigError, match=r"no default targets; its linear layers are dt_proj, in_proj(.|\n)*all-linear"
    ):
        adapt(tiny_model("mamba"), {"low_rank": LowRankConfig(rank=2)})


def test_layers_whose_weights_a_model_multiplies_itself_are_found():
    """Mamba multiplies by the weight of dt_proj: the model runs, and the audit says which updates have no effect."""
    base = tiny_model("mamba")
    plain = untouched_logits(base, IDS)
    model = adapt(base, {"low_rank": LowRankConfig(rank=2, target_modules=[ALL_LINEAR])})
    (failed,) = (each for each in Audit(model, IDS, plain, seed=0).before_training() if each.status is Status.failed)
    assert failed.check == "dead_tensors"
    assert {name.split(".")[-2] for name in failed.names} == {"dt_proj"}


def test_all_linear_leaves_out_what_scores_experts():
    """Their few outputs would limit the rank of all."""
    model = tiny_model("qwen2_moe")
    scores = {
        path for path, module in model.named_modules() if "gate" in path.split(".")[-1] and hasattr(module, "weight")
    }
    scores -= {path for path in scores if path.endswith("gate_proj")}
    assert any(path.endswith("shared_expert_gate") for path in scores)
    chosen = target_layers(model, [ALL_LINEAR])
    assert scores & chosen.keys() == set()
    assert any(path.endswith("shared_expert.gate_proj") for path in chosen)


def test_layers_that_compute_something_else_are_no_targets():
    class InGroups(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    model = tiny("llama")
    model.model.layers[0].self_attn.q_proj = InGroups(48, 64, bias=False)
    assert set(target_layers(model, ["q_proj"])) == {"model.layers.1.self_attn.q_proj"}


def _share(family: str, targets: list[str] | None = None) -> Finding:
    base = tiny_model(family)
    plain = untouched_logits(base, IDS)
    model = adapt(base, {"low_rank": LowRankConfig(rank=2, target_modules=targets)})
    found = {each.check: each for each in Audit(model, IDS, plain, seed=0).before_training()}
    return found["adapted_share"]


def test_the_audit_says_which_share_is_adapted():
    assert _share("llama").status is Status.passed
    assert _share("llama").detail.startswith("2 of 2 layers, ")
    hybrid = _share("jamba")
    assert hybrid.status is Status.noted
    assert "1 of 4 layers" in hybrid.detail
    assert "nothing in 3 of class JambaMambaDecoderLayer" in hybrid.detail
    experts = _share("mixtral", [ALL_LINEAR])
    assert experts.status is Status.noted
    assert "nothing in experts, which hold" in experts.detail


def test_the_share_is_that_of_the_weights():
    model = tiny("llama")
    layers = target_layers(model, ["q_proj"])
    whole = sum(p.numel() for p in model.model.layers.parameters())
    some, nothing = coverage(model, layers.values()), coverage(model, [])
    assert some is not None
    assert nothing is not None
    assert some.weight_share == 2 * 48 * 64 / whole
    assert nothing.missed == ("LlamaDecoderLayer", "LlamaDecoderLayer")


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm"])
def test_bidirectional_models_are_refused(family: str):
    base = tiny_model(family)
    base.train()
    with pytest.raises(ValueError, match="reads later tokens"):
        HyLoRADAModel(base, HyLoRADAConfig(landmark_enabled=False))
    assert base.training
    assert not reads_later_tokens(tiny("gpt2"))


def test_a_gate_refuses_rows_that_are_no_tokens():
    """An expert reads the tokens that were sent to it, in an order of its own."""
    base = tiny("llama")
    base.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1),))
    base.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output.view(*IDS.shape, -1))
    method = {"low_rank": LowRankConfig(rank=2, target_modules=["up_proj"]), "position_bias": PositionBiasConfig()}
    for fused in (True, False):
        model = adapt(base, method, fused=fused)
        with pytest.raises(ConfigError, match=r"layer that reads \[24, 48\](.|\n)*position_bias=null"):
            logits(model, IDS)
        model.detach()


def test_fused_forms_that_cannot_be_tried_end_no_run():
    class GatedNorm(type(tiny("llama").model.norm)):
        def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) * gate

    base = tiny("llama")
    norm = base.model.norm
    norm.__class__ = GatedNorm
    norm.register_forward_pre_hook(lambda module, args: (*args, torch.ones(1)))
    expected = logits(base, IDS)
    assert torch.equal(logits(adapt(base, {}, fused=False), IDS), expected)
    base.register_forward_pre_hook(_at_least_five_tokens, with_kwargs=True)
    assert OutputHead(base).declined == "LlamaForCausalLM fails on a text of four tokens (ValueError)"


def _at_least_five_tokens(module: nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
    if kwargs["input_ids"].shape[1] < 5:
        raise ValueError("too short")


@torch.no_grad()
def test_latent_attention_decodes_a_left_padded_batch_as_each_text_alone():
    """Its keys come from the cache, so the gate needs the positions of keys, and padding counts for none."""
    base = tiny_model("deepseek_v3")
    method = {"low_rank": LowRankConfig(rank=2), "position_bias": PositionBiasConfig(num_buckets=8)}
    for fused in (True, False):
        model = perturbed(base, method, fused=fused)
        short, long = tokens(1, 5, seed=3), tokens(1, 9, seed=4)
        ids = torch.cat([nn.functional.pad(short, (4, 0)), long])
        mask = (torch.arange(9) >= torch.tensor([[4], [0]])).long()
        cache, steps = None, []
        for t in range(9):
            given = {"attention_mask": mask[:, : t + 1], "past_key_values": cache, "use_cache": True}
            output = model(input_ids=ids[:, t : t + 1], **given)
            cache = output.past_key_values
            steps.append(output.logits)
        together = torch.cat(steps, dim=1)
        torch.testing.assert_close(together[:1, 4:], logits(model, short), rtol=0, atol=2e-4)
        torch.testing.assert_close(together[1:], logits(model, long), rtol=0, atol=2e-4)
        model.detach()
