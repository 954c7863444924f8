"""Trained norms and embeddings: the same as training the base model's own tensors."""

import pytest
import torch
from adapters import ARCHITECTURES, adapt, causal_loss, logits, method, perturbed, tiny, tokens, trained
from transformers import PreTrainedModel

from hylo.adapters.embeddings import EmbeddingsConfig
from hylo.adapters.norms import NormsConfig

IDS = tokens(2, 12)
CONFIGS = {"norms": NormsConfig(), "embeddings": EmbeddingsConfig()}


def paths(model: PreTrainedModel, name: str) -> list[str]:
    return list(CONFIGS[name].tensors(model))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_as_training_the_tensors_themselves(architecture: str, name: str):
    """Logits, and gradients of a loss: with tied embeddings from both ends, as torch adds them up for one tensor."""
    base, own = tiny(architecture), tiny(architecture)
    model = perturbed(base, method(name))
    changes = {path: trained(model)[f"{name}.D.{path}"] for path in paths(base, name)}
    assert len(changes) == len(trained(model))
    with torch.no_grad():
        for path, delta in changes.items():
            own.get_parameter(path).add_(delta)
    outputs = [each(input_ids=IDS).logits for each in (model, own)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        causal_loss(output, IDS).backward()
    for path, delta in changes.items():
        torch.testing.assert_close(delta.grad, own.get_parameter(path).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen2", False), ("gpt2", True)])
def test_a_tied_head_changes_with_the_embeddings(architecture: str, tied: bool):
    (readers,) = EmbeddingsConfig().tensors(tiny(architecture)).values()
    assert len(readers) == 1 + tied
    assert ("lm_head" in readers) == tied


def test_norms_are_all_of_the_decoder():
    """Two per layer and the last one; GPT-2's have a shift, too."""
    assert len(paths(tiny("llama"), "norms")) == 2 * 2 + 1
    assert len(paths(tiny("gpt2"), "norms")) == 2 * (2 * 2 + 1)
    assert "model.norm.weight" in paths(tiny("llama"), "norms")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_in_half_precision(name: str):
    """Changes stay in float32 and the model's tensors in theirs; merging rounds no more than every pass does."""
    base = tiny("llama").bfloat16()
    model = perturbed(base, method(name))
    assert all(tensor.dtype == torch.float32 for tensor in trained(model).values())
    model.train()(input_ids=IDS, targets=IDS.roll(-1, dims=1)).mean().backward()
    expected = logits(model.eval(), IDS)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(logits(model.merge(), IDS), expected)


def test_nothing_stays_in_a_module_s_way():
    """Also after a pass that an error ends."""
    base = tiny("llama")
    model = adapt(base, method("embeddings"))
    logits(model, IDS)
    with pytest.raises(IndexError):
        logits(model, IDS + 1000)
    assert "weight" not in vars(base.get_input_embeddings())
    model.detach()
    assert base.get_input_embeddings().weight is base.get_parameter("model.embed_tokens.weight")
