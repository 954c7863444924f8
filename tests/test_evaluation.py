"""Evaluation: token losses against a float64 loop, and every metric as a sum over tokens."""

import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hylo.adapters.model import AdaptedModel
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.data.windows import Windows
from hylo.evaluation.perplexity import BINS, THIRDS, Evaluation, evaluate, position_sums, token_nll
from hylo.kernels.head import token_losses
from hylo.models.tiny import TinyArchitecture, TinyModelConfig

LENGTH = 24


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return accelerator_for(Device.cpu, Precision.float32)


def random_windows(count: int, length: int = LENGTH) -> Windows:
    rng = np.random.default_rng(3)
    ids, sizes = rng.integers(0, 257, (count, length)), rng.integers(0, 5, (count, length - 1))
    first = np.arange(count) * length
    places = np.full(count, "document", dtype=object), first, np.full(count, length)
    return Windows(ids.astype(np.int32), sizes, *places, words=sizes % 2)


def sharp(architecture: TinyArchitecture) -> PreTrainedModel:
    """A tiny model whose losses differ between tokens: freshly initialised, all are close to ln 257."""
    model = TinyModelConfig(name="tiny", architecture=architecture).load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


@pytest.fixture(scope="module", params=list(TinyArchitecture), ids=lambda each: each.name)
def model(request: pytest.FixtureRequest) -> Iterator[AdaptedModel]:
    adapted = AdaptedModel(sharp(request.param), {}, context_length=LENGTH, seed=0)
    yield adapted
    adapted.detach()


@torch.no_grad()
def reference(base: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """Token losses one window and one token at a time."""
    base.eval()
    rows = []
    for window in torch.from_numpy(ids.astype(np.int64)):
        probabilities = base(input_ids=window[None]).logits[0].double().softmax(-1)
        rows.append([-math.log(probabilities[t, window[t + 1]]) for t in range(len(window) - 1)])
    return np.array(rows)


def of(nll: np.ndarray, sizes: np.ndarray | None = None) -> Evaluation:
    """The evaluation of these token losses."""
    sizes = np.ones(nll.shape, dtype=np.int64) if sizes is None else sizes
    return Evaluation(position_sums(nll, sizes, BINS, "bin"), position_sums(nll, sizes, THIRDS, "third"))


# --- token losses ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_losses_are_the_log_softmax_of_the_target(dtype: torch.dtype):
    """Large logits, also in half precision: log of a softmax, or a softmax in bfloat16, would be far off."""
    generator = torch.Generator().manual_seed(0)
    logits = (40 * torch.randn(3, 9, 50, generator=generator)).to(dtype)
    ids = torch.randint(50, (3, 9), generator=generator)
    nll = token_losses(logits, ids)
    assert (nll.shape, nll.dtype) == ((3, 9), torch.float32)
    for row in range(3):
        for t in range(9):
            scores = logits[row, t].double()
            largest = scores.max()
            log_sum = largest + (scores - largest).exp().sum().log()
            assert nll[row, t].item() == pytest.approx((log_sum - scores[ids[row, t]]).item(), rel=1e-5, abs=1e-5)


def test_token_nll_against_a_loop(model: AdaptedModel, accelerator: Accelerator):
    ids = random_windows(7).ids
    expected = reference(model.base, ids)
    assert expected.std() > 0.5
    found = token_nll(model, ids, accelerator, batch_size=4, label="test")
    assert (found.shape, found.dtype) == ((7, LENGTH - 1), np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_batch_size_changes_nothing(model: AdaptedModel, accelerator: Accelerator):
    """Seven windows: the last batch is short, or the only one. A mean of batch means would overweight its windows."""
    windows = random_windows(7)
    by_size = [evaluate(model, windows, accelerator, batch_size=size, label="test") for size in (1, 3, 7, 8)]
    for other in by_size[1:]:
        for name in ("bins", "thirds"):
            pd.testing.assert_frame_equal(getattr(by_size[0], name), getattr(other, name), rtol=1e-6)
        assert other.metrics() == pytest.approx(by_size[0].metrics(), rel=1e-6)


def test_evaluation_is_without_dropout_and_gradients(model: AdaptedModel, accelerator: Accelerator):
    """Training leaves the model in training mode, in which the tiny GPT-2 drops a tenth of its activations."""
    windows = random_windows(3)
    expected = evaluate(model, windows, accelerator, batch_size=3, label="test")
    model.train()
    again = evaluate(model, windows, accelerator, batch_size=3, label="test")
    pd.testing.assert_frame_equal(expected.bins, again.bins, check_exact=True)
    assert all(parameter.grad is None for parameter in model.parameters())


PROCESS = """
import sys
import numpy as np
from test_evaluation import LENGTH, TinyArchitecture, random_windows, sharp
from hylo.adapters.model import AdaptedModel
from hylo.evaluation.perplexity import token_nll
from hylo.core.devices import Device, Precision, accelerator_for

accelerator = accelerator_for(Device.cpu, Precision.float32)
assert accelerator.num_processes == 2
model = AdaptedModel(sharp(TinyArchitecture.llama), {}, context_length=LENGTH, seed=0)
nll = token_nll(model, random_windows(7).ids, accelerator, batch_size=4, label="test")
np.save(f"{sys.argv[1]}/{accelerator.process_index}.npy", nll)
accelerator.end_training()  # a process group that Python's end finds open now and then aborts the process
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path, accelerator: Accelerator):
    """Seven windows in batches of four: the last three are padded for two processes, and the padding is dropped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent
    shared["PYTHONPATH"] = os.pathsep.join([str(root), str(root.parent)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:  # if one fails, the other keeps waiting for it
        for process in processes:
            process.kill()
    alone = AdaptedModel(sharp(TinyArchitecture.llama), {}, context_length=LENGTH, seed=0)
    expected = token_nll(alone, random_windows(7).ids, accelerator, batch_size=4, label="test")
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{rank}.npy"), expected, rtol=1e-5)


# --- sums and measures ---


@pytest.mark.parametrize("groups", [BINS, THIRDS])
@pytest.mark.parametrize("length", [3, 7, 10, 31, 255, 256])
def test_position_sums_against_a_loop(length: int, groups: int):
    """Also with fewer positions than groups, some of which are then empty."""
    rng = np.random.default_rng(length)
    nll, sizes = rng.exponential(3, (4, length)), rng.integers(0, 5, (4, length))
    expected = {(window, group): [0.0, 0, 0] for window in range(4) for group in range(groups)}
    for window in range(4):
        for t in range(length):
            sums = expected[window, math.floor(groups * t / length)]
            sums[0] += nll[window, t]
            sums[1] += 1
            sums[2] += sizes[window, t]
    table = position_sums(nll, sizes, groups, "group")
    assert table.columns.tolist() == ["window", "group", "nll_sum", "tokens", "bytes"]
    assert list(zip(table["window"], table["group"], strict=True)) == list(expected)
    np.testing.assert_allclose(table[["nll_sum", "tokens", "bytes"]], list(expected.values()), rtol=1e-12)
    assert pd.api.types.is_integer_dtype(table["bytes"])


def test_255_predictions_in_thirds_and_bins():
    """The sizes for the default window of 256 tokens, counted by hand: 255 is 3 times 85."""
    ones = np.ones((1, 255), dtype=np.int64)
    assert position_sums(ones, ones, THIRDS, "third")["tokens"].tolist() == [85, 85, 85]
    assert position_sums(ones, ones, BINS, "bin")["tokens"].tolist() == [26, 25, 26, 25, 26, 25, 26, 25, 26, 25]


def test_a_loss_that_is_not_finite_stays_in_its_own_group():
    """In a matrix product, 0 times infinity would make every group of the window NaN."""
    nll = np.ones((2, 30))
    nll[0, 17] = np.inf
    table = position_sums(nll, np.ones((2, 30), dtype=np.int64), THIRDS, "third")
    assert table["nll_sum"].tolist() == [10, np.inf, 10, 10, 10, 10]


def test_ppl_is_the_exponential_of_the_mean_token_loss():
    """The mean of per-window perplexities, the published error, would be 75.6 instead of 20.1."""
    nll = np.stack([np.full(255, 1.0), np.full(255, 5.0)])
    metrics = of(nll).metrics()
    assert metrics["ppl"] == pytest.approx(math.exp(3.0))
    assert metrics["nll_nats_per_token"] == pytest.approx(3.0)
    assert metrics["eval_tokens"] == 2 * 255


def test_lim_ppl_is_of_the_middle_third():
    """Positions 85 to 169 of 255. Moving a loss one position out of the middle excludes it."""
    nll = np.zeros((2, 255))
    nll[:, 85:170] = 2.0
    metrics = of(nll).metrics()
    assert (metrics["head_ppl"], metrics["tail_ppl"]) == (1.0, 1.0)
    assert metrics["lim_ppl"] == pytest.approx(math.exp(2.0))
    moved = of(np.roll(nll, 1, axis=1)).metrics()
    assert moved["lim_ppl"] == pytest.approx(math.exp(2.0 * 84 / 85))
    assert moved["tail_ppl"] == pytest.approx(math.exp(2.0 / 85))


def test_bits_per_byte():
    """ln 2 nats are one bit. A mean of per-token ratios would divide by zero for tokens without bytes."""
    nll = np.full((1, 30), math.log(2))
    sizes = np.tile([0, 4, 8], 10)[None]
    assert of(nll, sizes).metrics()["bits_per_byte"] == pytest.approx(30 / 120)


def test_metrics_of_real_losses(model: AdaptedModel, accelerator: Accelerator):
    windows = random_windows(5)
    nll = reference(model.base, windows.ids)
    metrics = evaluate(model, windows, accelerator, batch_size=2, label="test").metrics()
    third = (LENGTH - 1) / 3
    position = np.arange(LENGTH - 1)
    parts = [nll[:, (position >= part * third) & (position < (part + 1) * third)] for part in range(3)]
    expected = {
        "ppl": math.exp(nll.sum() / nll.size),
        "lim_ppl": math.exp(parts[1].mean()),
        "head_ppl": math.exp(parts[0].mean()),
        "tail_ppl": math.exp(parts[2].mean()),
        "mean_window_ppl": np.mean([math.exp(row.mean()) for row in nll]),
        "nll_nats_per_token": nll.mean(),
        "bits_per_byte": nll.sum() / math.log(2) / windows.bytes.sum(),
        "word_ppl": math.exp(nll.sum() / (windows.bytes % 2).sum()),
        "eval_tokens": 5 * (LENGTH - 1),
    }
    assert metrics == pytest.approx(expected, rel=1e-5)
