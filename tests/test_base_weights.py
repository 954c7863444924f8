"""Base models in bfloat16 and float16, and with quantized weights: loaded, adapted, merged and exported."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import CONFIGS, adapt, assert_same_state, logits, method, perturbed, snapshot, tiny, tokens
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hylo.adapters.component import BuildContext
from hylo.adapters.model import method_problems
from hylo.adapters.peft.format import export_peft
from hylo.core.errors import MergeRefused
from hylo.models.architecture import layer_shape, weight_OI
from hylo.models.folder import FolderModelConfig
from hylo.models.targets import linear_layers
from hylo.models.tiny import TinyArchitecture, TinyModelConfig
from hylo.models.weights import Dtype, Quantization, dequantized, scalars, uses_dequantized
from hylo.runs.shared import Session, weights_checksum
from hylo.training.memory import dequantized_bytes, kept_bytes

ARCHITECTURES = ["llama", "qwen2", "gpt2"]
"""Tied weights; an untied head, and biases; Conv1D."""
NARROW = [Dtype.bfloat16, Dtype.float16]
QUANTIZED = [Quantization.int8, Quantization.nf4]


@pytest.fixture
def library() -> Any:
    """The library that quantizes, which is an extra."""
    return pytest.importorskip("bitsandbytes")


def loaded(base: PreTrainedModel, folder: Path, quantization: Quantization, **options: Any) -> PreTrainedModel:
    base.save_pretrained(folder, **options)
    dtype = options.get("dtype", Dtype.float32)
    return FolderModelConfig(name="model", folder=str(folder), dtype=dtype, quantization=quantization).load()


def distance(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).square().mean().sqrt() / other.std())


# --- what is loaded ---


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("architecture", list(TinyArchitecture))
def test_weights_are_held_in_their_dtype(architecture: TinyArchitecture, dtype: Dtype):
    """Rounded once, from the same float32 weights; the identity, and the fingerprint with it, says so."""
    whole, narrow = (TinyModelConfig(name="x", architecture=architecture, dtype=d) for d in (Dtype.float32, dtype))
    found = narrow.load().state_dict()
    for name, tensor in whole.load().state_dict().items():
        assert torch.equal(found[name], tensor.to(dtype.torch)), name
    session = Session()
    assert session.identity(whole) == whole.identity(), "as in older records"
    assert session.identity(narrow) == f"{whole.identity()}, {dtype.name}"
    assert session.skeleton(narrow).dtype == dtype.torch


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "50KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_linear_layers_are_quantized_and_nothing_else(
    architecture: str, options: dict[str, Any], tmp_path: Path, library: Any
):
    base = tiny(architecture)
    model = loaded(base, tmp_path, Quantization.nf4, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(options)
    layers, before = linear_layers(model), linear_layers(base)
    assert {path: layer_shape(layer) for path, layer in layers.items()} == {
        path: layer_shape(layer) for path, layer in before.items()
    }
    assert all(uses_dequantized(layer) for layer in layers.values())
    packed = {f"{path}.weight" for path in layers}
    for name, parameter in base.named_parameters():
        if name not in packed:
            assert torch.equal(parameter, model.get_parameter(name)), name
    assert sum(scalars(p) for p in model.parameters()) == sum(p.numel() for p in base.parameters())
    head: Any = model.get_output_embeddings()
    tied: Any = model.get_input_embeddings()
    assert type(head) is nn.Linear
    assert (head.weight is tied.weight) == base.config.tie_word_embeddings


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_the_file_is_let_go(quantization: Quantization, tmp_path: Path, library: Any):
    """Its pages would stay in memory beside the quantized weights."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of mapped files on this system")
    kept = loaded(tiny("llama"), tmp_path, Quantization.none)
    assert str(tmp_path) in maps.read_text(), "the test proves nothing"
    del kept
    model = loaded(tiny("llama"), tmp_path, quantization)
    assert str(tmp_path) not in maps.read_text()
    head: Any = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("layer", ["c_fc", "c_proj"])
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_weights_against_their_definition(quantization: Quantization, layer: str, tmp_path: Path, library: Any):
    """In a slow loop: the nearest of 16 levels in each block of 64, or of 255 in each row. Rows are no whole number of
    blocks, or one that is."""
    base = tiny("gpt2")
    model = loaded(base, tmp_path, quantization)
    path = f"transformer.h.1.mlp.{layer}"
    W_OI, found_OI = weight_OI(base.get_submodule(path)).detach(), dequantized(model.get_submodule(path))
    if quantization is Quantization.nf4:
        levels = library.functional.get_4bit_type("nf4", device="cpu")
        blocks = W_OI.reshape(-1, 64)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        nearest = (blocks / largest).unsqueeze(-1).sub(levels).abs().argmin(dim=-1)
        expected = (levels[nearest] * largest).view_as(W_OI)
    else:
        step = W_OI.half().float().abs().amax(dim=1, keepdim=True) / 127
        expected = (found_OI / step).round() * step
        assert float(((found_OI - W_OI).abs() / step).max()) < 0.57, "not the nearest level, up to 127 / 2^11 of a step"
    assert torch.allclose(found_OI, expected, atol=1e-6 * float(W_OI.abs().max()))
    assert 0 < float((found_OI - W_OI).norm() / W_OI.norm()) < (0.12 if quantization is Quantization.nf4 else 0.02)


@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_model_computes_with_the_dequantized_weights(
    architecture: str, quantization: Quantization, tmp_path: Path, library: Any
):
    """The same function in training and in evaluation, whatever stands beside a text: outputs and gradients are those
    of a plain model with the dequantized weights. The library's own int8 layers round their inputs in evaluation."""
    base = tiny(architecture)
    model = loaded(base, tmp_path, quantization)
    for path, layer in linear_layers(model).items():
        weight_OI(base.get_submodule(path)).data.copy_(dequantized(layer))
    ids = tokens(2, 9)
    embedding: Any = base.get_input_embeddings()
    start = embedding(ids).detach()
    found = []
    for each in (model, base):
        each.requires_grad_(False).train()
        x = start.clone().requires_grad_()
        output = each(inputs_embeds=x).logits
        output.float().square().sum().backward()
        evaluated = each.eval()(inputs_embeds=start).logits
        assert distance(evaluated, output) < 1e-6
        assert x.grad is not None
        found.append((evaluated, x.grad))
    for ours, expected in zip(*found, strict=True):
        assert distance(ours, expected) < 1e-6


# --- adapters on quantized weights ---


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize(("architecture", "name"), [("llama", "hylorada_dora"), ("qwen2", "dora"), ("gpt2", "dora")])
def test_methods_are_those_on_the_dequantized_weights(
    architecture: str, name: str, quantization: Quantization, fused: bool, tmp_path: Path, library: Any
):
    """Losses and gradients, including the row norms of DoRA, against the plain model; the base is bit-equal after."""
    base = tiny(architecture)
    model = loaded(base, tmp_path, quantization)
    before, sums = snapshot(model), weights_checksum(model)
    for path, layer in linear_layers(model).items():
        weight_OI(base.get_submodule(path)).data.copy_(dequantized(layer))
    everywhere = method(name, "method.low_rank.target_modules=[all-linear]")
    quantized, plain = (perturbed(each, everywhere, fused=fused) for each in (model, base))
    assert quantized.parameter_counts() == plain.parameter_counts()
    assert quantized.coverage == plain.coverage
    ids = tokens(2, 9)
    losses = [each(input_ids=ids, targets=ids.roll(-1, 1)) for each in (quantized, plain)]
    for each in losses:
        each.sum().backward()
    assert torch.allclose(*losses, rtol=1e-5)
    expected = plain.adapter_state_dict()
    for key, tensor in quantized.adapter_state_dict().items():
        ours, theirs = tensor.grad, expected[key].grad
        assert ours is not None
        assert theirs is not None
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max())), key
    with pytest.raises(MergeRefused, match=r"quantized.*without quantization"):
        quantized.merge()
    quantized.detach()
    assert_same_state(model, before)
    assert weights_checksum(model) == sums


def test_the_memory_estimate_counts_a_dequantized_weight_and_keeps_none(tmp_path: Path, library: Any):
    """What a pass keeps for its backward pass is the same as without quantization: no dense weight is part of it."""
    base = tiny("llama")
    models = [adapt(each, method("dora")) for each in (base, loaded(base, tmp_path, Quantization.nf4))]
    plain, quantized = (kept_bytes(model, tokens(1, 8)) for model in models)
    assert quantized == plain
    assert [dequantized_bytes(model) for model in models] == [0, 4 * 48 * 112]


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_a_flipped_bit_of_a_packed_weight_changes_the_checksums(
    quantization: Quantization, tmp_path: Path, library: Any
):
    model = loaded(tiny("llama"), tmp_path, quantization)
    before = weights_checksum(model)
    layer: Any = model.get_submodule("model.layers.1.mlp.up_proj")
    layer.weight.data.view(torch.uint8)[-1, -1] ^= 1
    changed = {name for name, found in weights_checksum(model).items() if found != before[name]}
    assert changed == {"model.layers.1.mlp.up_proj.weight"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("name", ["rslora", "dora"])
def test_parity_with_peft_on_the_same_quantized_base(
    name: str, quantization: Quantization, tmp_path: Path, library: Any
):
    """An exported adapter, loaded by peft with its own quantized layers, gives the same logits and gradients.

    Rows are whole blocks here: of others the library takes the wrong blocks on CPUs with AVX-512.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = copy.deepcopy(CONFIGS["llama"])
    config.update(sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = loaded(AutoModelForCausalLM.from_config(config), tmp_path / "base", quantization)
    model = perturbed(base, method(name, "method.low_rank.target_modules=[all-linear]"), fused=False)
    ids = tokens(2, 9)
    ours = logits(model, ids)
    model(input_ids=ids, targets=ids).sum().backward()
    gradients = [tensor.grad for tensor in model.adapter_state_dict().values() if tensor.grad is not None]
    export_peft(model, tmp_path / "adapter")
    model.detach()
    library_model: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True)
    kind = "Linear4bit" if quantization is Quantization.nf4 else "Linear8bitLt"
    assert {type(m).__name__ for path, m in library_model.named_modules() if path.endswith("up_proj")} == {kind}
    assert distance(logits(library_model.eval(), ids), ours) < 1e-5
    theirs = library_model(input_ids=ids).logits
    nn.functional.cross_entropy(theirs.flatten(0, 1), ids.flatten(), reduction="sum").backward()
    norms = sorted(float(p.grad.norm()) for p in library_model.parameters() if p.grad is not None)
    assert norms == pytest.approx(sorted(float(each.norm()) for each in gradients), rel=1e-3)


@pytest.mark.parametrize("nested", [False, True])
def test_a_weight_that_the_library_reordered(nested: bool, library: Any):
    """As its forward does in evaluation on CPUs with AVX-512 bfloat16: the same weight to the rounding of bfloat16."""
    from bitsandbytes import functional

    W_OI = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    layer: Any = library.nn.Linear4bit(128, 32, quant_type="nf4", compress_statistics=nested)
    layer.weight = library.nn.Params4bit(
        W_OI, requires_grad=False, quant_type="nf4", compress_statistics=nested, module=layer
    )
    layer.to("cpu")
    before = dequantized(layer)
    assert distance(before, W_OI) < 0.2
    layer.weight.data, _ = functional._convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    assert layer.weight.quant_state.packing_format_for_cpu
    for _ in range(2):
        assert distance(dequantized(layer), before) < 5e-3
    assert layer.weight.quant_state.packing_format_for_cpu, "reading the weight changes nothing"


def test_methods_of_the_peft_library_on_quantized_weights(library: Any):
    """Checked on the model without values, before anything is loaded."""
    config = TinyModelConfig(name="x", quantization=Quantization.nf4)
    context = BuildContext(Session().skeleton(config), 32, 0)
    assert [*method_problems(method("peft_lora"), context)] == []
    assert [*method_problems(method("peft_dora"), context)] == []
    for name in ("full", "peft_pissa"):
        (refused,) = method_problems(method(name), context)
        assert "model.quantization=none" in refused
