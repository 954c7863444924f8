"""The training loop: schedule, accumulation, clipping, non-finite losses, resuming, determinism."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import causal_loss, values
from launch import composed
from trained import SESSION, train_once

from hylo.adapters.model import adapted
from hylo.core.busy import Busy
from hylo.core.devices import accelerator_for
from hylo.core.errors import ConfigError, TrainingDiverged
from hylo.data.base import Split
from hylo.data.windows import Windows, batches
from hylo.runs.config import Config
from hylo.training.config import LRScheduler, TrainerConfig, learning_rate_factor
from hylo.training.step import StepBatches, accumulate, make_optimizer


@pytest.fixture
def config(tiny: tuple[str, ...]) -> Config:
    return composed(*tiny, "method=hylorada_dora", "method.low_rank.dropout=0.1", "trainer.steps=6")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lr_scheduler", LRScheduler)
def test_learning_rate(lr_scheduler: LRScheduler) -> None:
    """Rises linearly, reaches the peak once, decays, and is never zero."""
    config = TrainerConfig(steps=10, warmup_steps=3, lr_scheduler=lr_scheduler)
    factors = [learning_rate_factor(step, config) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    left = [(10 - step) / 7 for step in range(3, 10)]
    expected = {
        LRScheduler.linear: left,
        LRScheduler.cosine: [math.sin(math.pi / 2 * share) ** 2 for share in left],
        LRScheduler.constant: [1.0] * 7,
    }
    assert factors[3:] == pytest.approx(expected[lr_scheduler])
    assert min(factors) > 0


def test_the_loss_falls(config: Config, tmp_path: Path) -> None:
    config.trainer = replace(config.trainer, steps=30, learning_rate=0.01)
    section, _ = train_once(config, tmp_path)
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.05
    assert section["final_loss"] == curve[-1]
    assert section["max_loss_jump"] == pytest.approx(max(np.diff(curve)))
    assert section["tokens"] == 30 * 2 * 32


def test_an_interrupted_run_ends_bit_equal(config: Config, tmp_path: Path) -> None:
    """Optimizer state, window order and dropout all resume. Restoring only weights would pass a loose check."""
    whole, expected = train_once(config, tmp_path / "whole")
    config.trainer = replace(config.trainer, checkpoint_seconds=1e-9)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        train_once(config, tmp_path / "parts", on_step=stop)
    assert len(losses(tmp_path / "parts")) == 4
    torch.manual_seed(2)
    steps: list[int] = []
    section, tensors = train_once(config, tmp_path / "parts", on_step=lambda line: steps.append(line["step"]))
    assert steps == [4, 5, 6], "the state after step 3 was the last on disk"
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    timing = {"seconds", "tokens_per_second", "utilization"}
    assert {k: v for k, v in section.items() if k not in timing} == {k: v for k, v in whole.items() if k not in timing}


def test_random_numbers_of_the_caller_are_left_alone(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train_once(config, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_accumulated_gradients_are_those_of_one_batch(config: Config) -> None:
    accelerator = accelerator_for(config.trainer.device, config.trainer.precision)
    base = SESSION.base(config.model, accelerator.device)
    windows = SESSION.windows(config.data, config.model, Split.train).take(np.arange(4))
    ids = torch.from_numpy(windows.ids).long()
    with adapted(base, config.components, context_length=32, seed=0) as model:
        model.eval()  # dropout would differ
        tensors = [tensor for tensors in model.tensors().values() for tensor in tensors.values()]
        gradients = []
        for parts in ([windows], [windows.take(np.array(rows)) for rows in ([0, 1], [2, 3])]):
            loss = accumulate(model, StepBatches(parts), accelerator)
            gradients.append([tensor.grad.clone() for tensor in tensors if tensor.grad is not None])
            model.zero_grad(set_to_none=True)
            expected = causal_loss(model(input_ids=ids).logits, ids)
            assert loss == pytest.approx(float(expected.detach()))
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_gradient_checkpointing_changes_no_loss(config: Config, tmp_path: Path) -> None:
    train_once(config, tmp_path / "plain")
    config.trainer = replace(config.trainer, gradient_checkpointing=True)
    train_once(config, tmp_path / "recomputed")
    assert losses(tmp_path / "recomputed") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)


def test_gradients_are_clipped(config: Config, tmp_path: Path) -> None:
    """After one step of AdamW, only the moments show how large the gradient was."""
    norms: list[float] = []
    config.trainer = replace(config.trainer, steps=2, max_grad_norm=1e-3)
    _, clipped = train_once(config, tmp_path / "a", on_step=lambda line: norms.append(line["grad_norm"]))
    config.trainer = replace(config.trainer, max_grad_norm=1e9)
    _, free = train_once(config, tmp_path / "b")
    assert norms[0] > 1e-3, "the recorded norm is the one before clipping"
    assert any(not torch.equal(clipped[name], free[name]) for name in clipped)


def test_vectors_have_no_weight_decay_and_components_their_own_rate(config: Config) -> None:
    config.trainer.optimizer.weight_decay = 0.1
    landmark = config.components["landmark"]
    landmark.learning_rate_multiplier = 3.0
    base = SESSION.base(config.model, torch.device("cpu"))
    with adapted(base, config.components, context_length=32, seed=0) as model:
        groups = make_optimizer(model, config.trainer).param_groups
        own = {id(tensor) for tensor in model.tensors()["landmark"].values()}
        assert sum(len(group["params"]) for group in groups) == len(values(model))
        for group in groups:
            for tensor in group["params"]:
                assert group["weight_decay"] == (0.1 if tensor.dim() > 1 else 0.0)
                assert group["peak"] == config.trainer.learning_rate * (3 if id(tensor) in own else 1)


def test_losses_that_are_not_finite_are_counted_and_stopped_on(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The first step moves B, and from the second on, 1e19 B A x overflows in attention."""
    config = composed(*tiny, "method=lora", "method.low_rank.alpha=1e19", "trainer.learning_rate=10")
    with pytest.raises(TrainingDiverged, match=r"loss nan.*3 steps .*at most 2 are allowed .*trainer\.learning_rate"):
        train_once(config, tmp_path)
    curve = losses(tmp_path)
    assert curve[0] is not None
    assert curve[1:] == [None, None, None], "a loss that is not finite is recorded as null, never as a number"


def test_a_step_whose_gradient_is_not_finite_is_skipped(config: Config, tmp_path: Path) -> None:
    config.components["low_rank"].alpha = 1e36  # pyright: ignore[reportAttributeAccessIssue]
    config.trainer = replace(config.trainer, max_nonfinite_steps=100)
    norms: list[float | None] = []
    section, tensors = train_once(config, tmp_path, on_step=lambda line: norms.append(line["grad_norm"]))
    assert norms == [None] * 6
    assert section["nonfinite_steps"] == 6
    base = SESSION.base(config.model, torch.device("cpu"))
    with adapted(base, config.components, context_length=32, seed=config.seed) as model:
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in values(model).items())


def test_batches_that_cannot_be_made(config: Config, tmp_path: Path) -> None:
    config.trainer = replace(config.trainer, batch_size=100_000)
    with pytest.raises(ConfigError, match=r"trainer\.batch_size = 100000\s+allowed: at most \d+"):
        train_once(config, tmp_path)


def test_every_window_comes_once_an_epoch() -> None:
    ids = np.arange(10, dtype=np.int32)[:, None]
    windows = Windows(ids, ids, np.array(["a"] * 10, dtype=object), np.arange(10), np.ones(10, int))
    source = batches(windows, 4, np.random.default_rng(0))
    drawn = np.concatenate([next(source).ids for _ in range(5)]).ravel()
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:]), "epochs differ in their order"


def test_utilization_is_the_share_of_time_in_which_the_device_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU processor time over threads; on a GPU what its driver says, and unknown if that says nothing."""
    busy = Busy(torch.device("cpu"), 1.0)
    ticks = iter([10.0, 11.5])
    monkeypatch.setattr("hylo.core.busy.time.process_time", lambda: next(ticks))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    busy.begin()
    busy.end(3.0)
    assert busy.seconds == 1.0 + 0.75
    monkeypatch.setattr("hylo.core.busy.time.process_time", lambda: 0.0)
    gpu = Busy(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 50)
    gpu.begin()
    gpu.end(4.0)
    assert gpu.seconds == 2.0

    def unknown(device: torch.device) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", unknown)
    gpu.end(4.0)
    assert gpu.seconds is None
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 50)
    gpu.end(4.0)
    assert gpu.seconds is None, "a sum with an unknown part is unknown"
