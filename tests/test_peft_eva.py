"""LoRA initialized from the inputs of its layers (EVA): against numpy, and what it leaves untouched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import adapt, assert_same_state, logits, method, snapshot, tiny, tokens, trained, values
from launch import train
from safetensors.torch import load_file
from torch import Tensor, nn

from hylo.adapters.model import AdaptedModel
from hylo.adapters.peft.format import export_peft, import_peft
from hylo.models.targets import default_targets, target_layers
from hylo.runs.layout import ADAPTER
from hylo.runs.store import read_study

IDS = tokens(4, 24)
ARCHITECTURES = ["gpt2", "llama"]


def _batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": IDS}]


def _started(architecture: str, **settings: Any) -> AdaptedModel:
    base = tiny(architecture)
    return AdaptedModel(base, method("peft_eva"), context_length=24, seed=0, first_batches=_batches, **settings).eval()


def _inputs(architecture: str) -> dict[str, np.ndarray]:
    """The inputs of each adapted layer of the base model, [tokens, in] in float64."""
    base, found = tiny(architecture), {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[path] = inputs[0].flatten(0, -2).double().numpy()

        return hook

    for path, layer in target_layers(base, default_targets(base)).items():
        layer.register_forward_pre_hook(keep(path))
    logits(base, IDS)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_starts_at_the_principal_directions_of_the_inputs(architecture: str):
    tensors = values(_started(architecture))
    inputs = _inputs(architecture)
    assert len(inputs) == len(tensors) / 2
    for path, X in inputs.items():
        _, _, Vh = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
        A = tensors[f"peft.layers.{path}.lora_A.weight"].double().numpy()
        cosines = np.abs(np.sum(A * Vh[: len(A)], axis=1))
        np.testing.assert_allclose(cosines, 1, atol=1e-3)  # the library stops when directions have converged
        np.testing.assert_allclose(A @ A.T, np.eye(len(A)), atol=1e-5)
        assert not tensors[f"peft.layers.{path}.lora_B.weight"].any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_step_0_is_the_base_model_which_comes_back_as_it_was(architecture: str):
    base = tiny(architecture)
    base.train()
    base.lm_head.eval()
    before, modes = snapshot(base), [module.training for module in base.modules()]
    expected = logits(tiny(architecture), IDS)
    model = AdaptedModel(base, method("peft_eva"), context_length=24, seed=0, fused=False, first_batches=_batches)
    base.eval()
    assert torch.equal(logits(model, IDS), expected)
    model.detach()
    assert_same_state(base, before)
    assert [module.training for module in base.modules()] == modes
    assert not [1 for module in base.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_the_start_depends_on_the_data_and_not_on_the_seed():
    one, other = (
        trained(AdaptedModel(tiny("llama"), method("peft_eva"), context_length=24, seed=seed, first_batches=_batches))
        for seed in (0, 1)
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    elsewhere = AdaptedModel(
        tiny("llama"),
        method("peft_eva"),
        context_length=24,
        seed=0,
        first_batches=lambda: [{"input_ids": tokens(4, 24, seed=5)}],
    )
    moved = [name for name, tensor in trained(elsewhere).items() if not torch.equal(tensor, one[name])]
    assert len(moved) == len(one) / 2


def test_without_data_it_is_a_lora_that_waits_for_its_tensors():
    model = adapt(tiny("llama"), method("peft_eva"), fused=False)
    assert torch.equal(logits(model, IDS), logits(tiny("llama"), IDS))
    assert model.parameter_counts()["trainable"] == _started("llama").parameter_counts()["trainable"]


def test_padding_is_not_read():
    ids = torch.cat([IDS, torch.full_like(IDS, 3)], dim=1)
    mask = torch.cat([torch.ones_like(IDS), torch.zeros_like(IDS)], dim=1)
    padded = AdaptedModel(
        tiny("llama"),
        method("peft_eva"),
        context_length=48,
        seed=0,
        first_batches=lambda: [{"input_ids": ids, "attention_mask": mask}],
    )
    expected = values(_started("llama"))
    for name, tensor in values(padded).items():
        torch.testing.assert_close(tensor.abs(), expected[name].abs(), rtol=0, atol=1e-3)


def test_fewer_tokens_than_directions_are_refused():
    with pytest.raises(ValueError, match="EVA needs batches of at least 8 tokens, the rank; one has 6"):
        AdaptedModel(
            tiny("llama"),
            method("peft_eva"),
            context_length=24,
            seed=0,
            first_batches=lambda: [{"input_ids": tokens(1, 6)}],
        )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+method.peft.kwargs.eva_config={rho: 2.0}", "ranks stay equal for all layers"),
        ("method.peft.kwargs.r=4096", "the smaller side of the weight of"),
        ("method.peft.kwargs.init_lora_weights=corda", "the others need data of their own"),
    ],
)
def test_settings_that_cannot_work(
    override: str, said: str, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: Any, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    assert train(*tiny, "method=peft_eva", override) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_export_is_a_plain_lora(architecture: str, tmp_path: Path):
    model = _started(architecture)
    with torch.no_grad():
        for name, tensor in trained(model).items():
            tensor.add_(0.05 if "lora_B" in name else 0.0)
    export_peft(model, tmp_path)
    expected = logits(model, IDS)
    torch.testing.assert_close(logits(import_peft(tiny(architecture), tmp_path), IDS), expected, rtol=0, atol=1e-5)


def test_a_run_starts_from_its_own_first_batches(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At a learning rate of 1e-30 nothing moves, so the saved A is the initial one."""
    monkeypatch.chdir(tmp_path)
    quiet = ("trainer.learning_rate=1e-30", "trainer.optimizer.weight_decay=0.0", "trainer.steps=2")
    saved = []
    for seed in (0, 1):
        assert train(*tiny, "method=peft_eva", f"seed={seed}", f"outputs={seed}", *quiet) == 0
        (run,) = read_study(Path(str(seed), "runs")).cells[",".join(["peft_eva", *quiet])]
        saved.append(load_file(run.folder / ADAPTER / "adapter.safetensors"))
    one, other = saved
    started = [name for name in one if name.endswith("lora_A.weight")]
    assert all(not torch.equal(one[name], other[name]) for name in started)
    for name in started:
        torch.testing.assert_close(one[name] @ one[name].T, torch.eye(len(one[name])), rtol=0, atol=1e-4)
