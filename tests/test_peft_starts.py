"""LoRA initialized from the weights (PiSSA, OLoRA): against numpy and the library, and what it leaves untouched."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters import (
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
    values,
)
from launch import train
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import hylo.runs.run
import hylo.training.loop
from hylo.adapters.component import AtStart
from hylo.adapters.model import AdaptedModel
from hylo.adapters.peft.format import export_peft, import_peft
from hylo.adapters.peft.library import make_config
from hylo.adapters.peft.method import PeftConfig
from hylo.adapters.start import START, load_start, save_start
from hylo.core.errors import ConfigError, RecordError
from hylo.models.architecture import weight_OI
from hylo.models.targets import default_targets, target_layers
from hylo.runs.layout import ADAPTER
from hylo.runs.store import read_study

IDS = tokens(2, 12)
METHODS = ["peft_pissa", "peft_olora"]
RANK = 5


def _config(name: str, **kwargs: Any) -> dict[str, PeftConfig]:
    (config,) = method(name).values()
    assert isinstance(config, PeftConfig)
    return {"peft": replace(config, kwargs=config.kwargs | kwargs)}


def _part(name: str, W: np.ndarray) -> np.ndarray:
    """s B0 A0 by its definition, in float64."""
    if name == "peft_pissa":
        U, S, Vh = np.linalg.svd(W)
        return sum(S[k] * np.outer(U[:, k], Vh[k]) for k in range(RANK))  # pyright: ignore[reportReturnType]
    Q, R = np.linalg.qr(W)
    return 7 / RANK * Q[:, :RANK] @ R[:RANK]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_layers_are_the_formula(architecture: str, name: str):
    """y = (W - s B0 A0) x + s B A x in float64, with A and B perturbed: at step 0 any A0 and B0 would pass."""
    base = tiny(architecture)
    components = _config(name, r=RANK, lora_alpha=7)
    untrained = adapt(base, components)
    start = values(untrained)
    untrained.detach()
    model = perturbed(base, components)
    tensors = values(model)
    weights = target_layers(tiny(architecture), None)
    assert len(weights) == len(tensors) / 2
    generator = torch.Generator().manual_seed(0)
    for path, layer in weights.items():
        W = weight_OI(layer).detach().double().numpy()
        A, B = (tensors[f"peft.layers.{path}.lora_{part}.weight"].double().numpy() for part in "AB")
        A0, B0 = (start[f"peft.layers.{path}.lora_{part}.weight"].double().numpy() for part in "AB")
        np.testing.assert_allclose(7 / RANK * B0 @ A0, _part(name, W), rtol=1e-4, atol=1e-5)
        x = torch.randn(W.shape[1], generator=generator)
        bias: Any = layer.bias
        expected = (W - _part(name, W) + 7 / RANK * B @ A) @ x.double().numpy()
        expected += 0 if bias is None else bias.detach().double().numpy()
        with torch.no_grad():
            y = model.base.get_submodule(path)(x[None, None])[0, 0]
        np.testing.assert_allclose(y.double().numpy(), expected, rtol=1e-4, atol=2e-5)


def _with_linear_layers(base: PreTrainedModel) -> PreTrainedModel:
    base = copy.deepcopy(base)
    for path, module in list(base.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.weight.shape[0], module.weight.shape[1])
            linear.weight, linear.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
            base.set_submodule(path, linear)
    return base


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_same_model_as_the_library_makes(architecture: str, name: str):
    """For OLoRA the library decomposes GPT-2's Conv1D as stored, which fits no layer, so it gets linear layers here."""
    base = tiny(architecture)
    components = _config(name)
    linear = architecture == "gpt2" and name == "peft_olora"
    theirs: Any = _with_linear_layers(base) if linear else copy.deepcopy(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's warnings about transformers
        config = components["peft"]
        transposed = architecture == "gpt2" and not linear
        settings = make_config(config.peft_type, config.kwargs, base, transposed=transposed)
        theirs = peft.get_peft_model(theirs, settings).eval()
    ours = adapt(base, components, fused=False)
    mine = {name.removeprefix("peft.layers."): tensor for name, tensor in trained(ours).items()}
    others = {
        name.removeprefix("base_model.model.").replace(".default", ""): tensor
        for name, tensor in theirs.named_parameters()
        if tensor.requires_grad
    }
    assert mine.keys() == others.keys()
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, others[key], rtol=1e-4, atol=1e-5)
    perturb(ours)
    with torch.no_grad():
        for key, tensor in mine.items():
            others[key].copy_(tensor)
    outputs = [each(input_ids=IDS).logits for each in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=2e-5)
    for output in outputs:
        causal_loss(output, IDS).backward()
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor.grad, others[key].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_the_shared_base_model_is_never_written(architecture: str, name: str):
    """OLoRA in the library subtracts in place. Here the base model's tensors keep their memory and every bit."""
    base = tiny(architecture)
    before, modules = snapshot(base), dict(base.named_modules())
    memory = {key: tensor.data_ptr() for key, tensor in base.state_dict().items()}
    parameters = dict(base.named_parameters())
    model = adapt(base, _config(name))
    assert [key for key, tensor in parameters.items() if not torch.equal(tensor, before[key])] == []
    perturb(model)
    causal_loss(model(input_ids=IDS).logits, IDS).backward()
    model.detach()
    assert_same_state(base, before)
    assert dict(base.named_modules()) == modules
    assert {key: tensor.data_ptr() for key, tensor in base.state_dict().items()} == memory


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_was_moved_while_it_was_attached_comes_back_in_one_type(name: str):
    """`float` and `to` do not reach the replaced layers."""
    base = tiny("llama").bfloat16()
    model = adapt(base, _config(name))
    assert {tensor.dtype for tensor in trained(model).values()} == {torch.float32}
    model.float()
    model.detach()
    assert {tensor.dtype for tensor in base.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", ["peft_lora", "peft_pissa"])
def test_building_leaves_the_type_of_a_base_model_that_is_still_trainable(name: str):
    base = tiny("llama").bfloat16()
    assert all(parameter.requires_grad for parameter in base.parameters())
    adapt(base, _config(name)).detach()
    assert {parameter.dtype for parameter in base.parameters()} == {torch.bfloat16}


def test_starts_are_declared():
    assert _config("peft_pissa")["peft"].at_start is AtStart.near
    assert _config("peft_lora")["peft"].at_start is AtStart.same


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decompositions that round differently, here enough to be noticed."""
    for name in ("svd", "qr"):
        function = getattr(torch.linalg, name)

        def rounded(W: Tensor, *args: Any, function: Any = function, **kwargs: Any) -> Any:
            return function(W + 1e-3 * torch.ones_like(W).cumsum(1), *args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, rounded)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_adapter_with_its_start_is_the_same_anywhere(
    architecture: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
):
    model = perturbed(tiny(architecture), _config(name))
    expected = logits(model, IDS)
    model.save(tmp_path)
    save_start(model, tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]
    assert torch.equal(logits(AdaptedModel.restore(tiny(architecture), tmp_path).eval(), IDS), expected)
    request.getfixturevalue("other_machine")
    base = tiny(architecture)
    before = snapshot(base)
    restored = AdaptedModel.restore(base, tmp_path).eval()
    assert not torch.allclose(logits(restored, IDS), expected, atol=1e-4)
    assert load_start(restored, tmp_path, untrained=False)
    assert torch.equal(logits(restored, IDS), expected)
    assert load_start(restored, tmp_path, untrained=True)
    start = {key: tensor for key, tensor in load_file(tmp_path / START).items() if key.endswith(".A")}
    for key, tensor in start.items():
        path = key.removeprefix("peft.").removesuffix(".A")
        assert torch.equal(trained(restored)[f"peft.layers.{path}.lora_A.weight"], tensor)
    restored.detach()
    assert_same_state(base, before)


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path):
    model = perturbed(tiny("llama"), _config("peft_pissa"))
    expected = logits(model, IDS)
    assert not load_start(model, tmp_path, untrained=False)
    save_start(model, tmp_path)
    tensors = load_file(tmp_path / START)
    first = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / START)
    with pytest.raises(RecordError, match="does not fit this method and model"):
        load_start(model, tmp_path, untrained=False)
    save_file(tensors | {first: torch.zeros(2, 2)}, tmp_path / START)
    with pytest.raises(RecordError, match="does not fit this method and model"):
        load_start(model, tmp_path, untrained=False)
    (tmp_path / START).write_bytes(b"damaged")
    with pytest.raises(RecordError, match="train the adapter again"):
        load_start(model, tmp_path, untrained=False)
    assert torch.equal(logits(model, IDS), expected)


def test_other_methods_keep_no_start(tmp_path: Path):
    save_start(adapt(tiny("llama"), method("peft_lora")), tmp_path)
    save_start(adapt(tiny("llama"), method("rslora")), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["peft_lora", "peft_dora", "peft_loraplus", *METHODS])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_merged_weights_are_the_untrained_ones_and_the_update(architecture: str, name: str):
    base = tiny(architecture)
    before = snapshot(base)
    model = perturbed(base, _config(name))
    tuned, modules = logits(model, IDS), {path: type(module) for path, module in tiny(architecture).named_modules()}
    assert model.merge() is base
    assert {path: type(module) for path, module in base.named_modules()} == modules
    torch.testing.assert_close(logits(base, IDS), tuned, rtol=0, atol=1e-5)
    moved = {key for key, tensor in base.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {f"{path}.weight" for path in target_layers(base, default_targets(base))}


@pytest.mark.parametrize("name", ["peft_lora", *METHODS])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_export_is_a_plain_lora_of_the_untouched_base_model(architecture: str, name: str, tmp_path: Path):
    """Twice the rank if A and B start from the weights: the second half subtracts their starting values."""
    for scaled in (False, True):
        folder = tmp_path / str(scaled)
        model = perturbed(tiny(architecture), _config(name, r=RANK, use_rslora=scaled))
        expected = logits(model, IDS)
        export_peft(model, folder)
        ours = import_peft(tiny(architecture), folder)
        torch.testing.assert_close(logits(ours, IDS), expected, rtol=0, atol=5e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.PeftModel.from_pretrained(tiny(architecture), str(folder)).eval()
        torch.testing.assert_close(logits(theirs, IDS), expected, rtol=0, atol=5e-5)
        (config,) = ours.method.values()
        assert config.rank == RANK * (1 if name == "peft_lora" else 2)  # pyright: ignore[reportAttributeAccessIssue]


def test_what_cannot_be_exported_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"kwargs\.use_dora = True(.|\n)*use_rslora alone"):
        export_peft(adapt(tiny("llama"), _config("peft_dora")), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_goes_on_from_what_it_began_with(
    name: str, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    """Its second half, on a machine that rounds differently, must not subtract a different part from the weights."""
    monkeypatch.chdir(tmp_path)
    overrides = (*tiny, f"method={name}", "trainer.steps=6", "trainer.checkpoint_seconds=0.000001")
    assert train(*overrides, "outputs=whole") == 0
    (whole,) = read_study(Path("whole", "runs")).cells[f"{name},trainer.steps=6"]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        step = kwargs["on_step"]

        def stop(line: dict[str, Any]) -> None:
            step(line)
            if line["step"] == 4:
                raise RuntimeError("the power is gone")

        return hylo.training.loop.train(*args, **kwargs | {"on_step": stop})

    with monkeypatch.context() as patch:
        patch.setattr(hylo.runs.run, "train", interrupted)
        assert train(*overrides, "outputs=parts") == 1
    request.getfixturevalue("other_machine")
    assert train(*overrides, "outputs=parts") == 0
    (parts,) = read_study(Path("parts", "runs")).cells[f"{name},trainer.steps=6"]
    assert parts.result["metrics"] == whole.result["metrics"]
    for file in (START, "adapter.safetensors"):
        one, other = (load_file(run.folder / ADAPTER / file) for run in (whole, parts))
        assert [key for key, tensor in one.items() if not torch.equal(tensor, other[key])] == []
    assert parts.result["audit"] == {"failed": []}


def test_the_layers_that_stand_aside_are_not_counted():
    counts = adapt(tiny("gpt2"), _config("peft_pissa")).parameter_counts()
    assert counts["total"] == tiny("gpt2").num_parameters() + counts["trainable"]
