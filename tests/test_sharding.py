"""A base model divided among processes: the same numbers as one process, from a share of the weights."""

import json
import os
from pathlib import Path

import program
import pytest
import torch
from adapters import CONTEXT, method, perturbed, tokens
from adapters import tiny as tiny_model
from launch import ROOT, composed, train, train_process

from hylo.runs.store import read_study
from hylo.training.config import sharding_problems


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "name", "kernels"),
    [
        ("llama", "hylorada_dora", "fused"),
        pytest.param("llama", "hylorada_dora", "reference", marks=pytest.mark.exhaustive),
        pytest.param("gpt2", "landmark_per_layer", "fused", marks=pytest.mark.exhaustive),
        ("gemma", "landmark_attention", "fused"),
    ],
)
def test_a_share_of_the_weights_computes_the_same(architecture: str, name: str, kernels: str):
    command = [str(ROOT / "tests" / "sharded.py"), architecture, name, kernels]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = program.run(*command, cwd=ROOT, env=settings, processes=2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])

    model = perturbed(tiny_model(architecture), method(name), fused=kernels == "fused")
    losses = model(input_ids=tokens(2, CONTEXT), targets=tokens(2, CONTEXT, seed=5))
    losses.sum().backward()
    for key in ("losses", "again"):
        torch.testing.assert_close(torch.tensor(found[key]), losses.detach(), rtol=1e-5, atol=1e-5)
    gradients = {key: each.grad for key, each in model.adapter_state_dict().items() if each.grad is not None}
    assert found["gradients"].keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(torch.tensor(found["gradients"][key]), gradient, rtol=1e-4, atol=1e-5)
    before, after = found["held"]
    assert before == after, "weights were kept after a pass"
    assert 0.5 <= before / found["whole"] < 0.52, "half of the layers, up to what cannot be halved"
    assert found["base"], "the shared base model was changed"


@pytest.mark.slow
def test_a_run_on_two_processes_with_a_divided_base_is_that_of_one(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Perplexities and audit, of the base model as well, with layers that are gathered again for recomputation."""
    cell = [*tiny, "method=hylorada_dora", "trainer.steps=6", "trainer.device=cpu", "cell=both"]
    cell.append("trainer.gradient_checkpointing=true")
    done = train_process(*cell, "trainer.sharded=true", "outputs=two", cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("18 tensors of the base model are divided among 2 processes") == 2, "of both cells"
    assert train(*cell, f"outputs={tmp_path / 'one'}") == 0
    for name in ("both", "none,trainer.device=cpu"):
        one, two = (read_study(tmp_path / folder / "runs").cells[name][0] for folder in ("one", "two"))
        assert two.result["environment"]["processes"] == 2
        assert two.result["fingerprint"] == one.result["fingerprint"]
        assert two.result["audit"] == one.result["audit"] == {"failed": []}
        assert two.result["params"] == one.result["params"]
        assert two.result["metrics"]["ppl"] == pytest.approx(one.result["metrics"]["ppl"], rel=1e-5)


@pytest.mark.slow
def test_a_method_that_trains_everything_leaves_nothing_to_divide(tiny: tuple[str, ...], tmp_path: Path) -> None:
    cell = [*tiny, "method=full", "trainer.device=cpu", "trainer.sharded=true"]
    done = train_process(*cell, cwd=tmp_path, processes=2)
    assert done.returncode != 0
    assert "false with a method that trains all weights of the layers" in done.stderr


def test_what_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config = composed("model=tiny_llama", "trainer.sharded=true", "trainer.kernels=compiled").trainer
    texts = list(sharding_problems(config, quantized=True, probed=True))
    assert len(texts) == 4
    assert "accelerate launch" in texts[0]
    assert "trainer.kernels=auto" in texts[1]
    assert "model.quantization=none" in texts[2]
    assert "probe=none" in texts[3]
    monkeypatch.setenv("WORLD_SIZE", "2")
    fine = composed("model=tiny_llama", "trainer.sharded=true").trainer
    assert not list(sharding_problems(fine, quantized=False, probed=False))
    assert not list(sharding_problems(composed("model=tiny_llama").trainer, quantized=True, probed=True))
