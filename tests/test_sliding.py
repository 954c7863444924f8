"""Sliding windows: every token is predicted once, with the context that the stride gives it; words are counted."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from launch import composed, train

from benchmarks.families.tiny import VOCABULARY, tiny_model
from hylo.adapters.model import AdaptedModel
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.data.base import data_problems
from hylo.data.tokens import TokenizedDocument
from hylo.data.windows import cut_windows
from hylo.evaluation.metrics import metric_named
from hylo.evaluation.perplexity import BINS, evaluate, position_sums
from hylo.runs.store import read_study

LENGTH, BOS = 12, 96


def document(size: int, name: str = "a") -> TokenizedDocument:
    rng = np.random.default_rng(size)
    ids = rng.integers(0, VOCABULARY - 1, size).astype(np.int32)
    return TokenizedDocument(name, ids, np.cumsum(rng.integers(0, 5, size)), np.cumsum(rng.integers(0, 2, size)))


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("stride", [1, 5, LENGTH - 1])
def test_every_token_is_predicted_once(stride: int, bos: int | None):
    """By a loop over the tokens of each document: the first window predicts all of its own, each later one the next
    `stride`. A document as long as a window has one, a shorter one none."""
    taken = LENGTH if bos is None else LENGTH - 1
    documents = [document(40), document(taken, "b"), document(taken - 1, "c")]
    windows = cut_windows(documents, LENGTH, bos=bos, stride=stride)
    assert windows.context is not None
    assert windows.words is not None
    assert set(windows.document) == {"a", "b"}
    for text in documents[:2]:
        rows = np.flatnonzero(windows.document == text.name)
        predicted, sizes, words = [], [], []
        for row in rows:
            first, context = windows.first_token[row], windows.context[row]
            read = ([] if bos is None else [bos]) + text.ids[first : first + taken].tolist()
            assert windows.ids[row].tolist() == read
            assert first % stride == 0
            assert LENGTH - context == (LENGTH - 1 if first == 0 else stride)
            predicted += [first + t - (bos is not None) for t in range(context, LENGTH)]
            sizes += windows.bytes[row, context - 1 :].tolist()
            words += windows.words[row, context - 1 :].tolist()
        start = 1 if bos is None else 0
        assert predicted == list(range(start, predicted[-1] + 1))
        assert len(text.ids) - predicted[-1] <= stride, "no further window would have fit"
        assert sizes == np.diff(text.byte_ends, prepend=0)[start : predicted[-1] + 1].tolist()
        assert words == np.diff(text.word_ends, prepend=0)[start : predicted[-1] + 1].tolist()


def test_a_stride_of_all_but_the_first_token_is_no_overlap_of_predictions():
    """With a first token in front, these are the windows without a stride."""
    plain, sliding = (cut_windows([document(60)], LENGTH, bos=BOS, stride=stride) for stride in (None, LENGTH - 1))
    assert sliding.context is not None
    assert plain.context is None
    assert sliding.context.tolist() == [1] * len(sliding)
    pd.testing.assert_frame_equal(sliding.table().drop(columns="context"), plain.table())
    np.testing.assert_array_equal(sliding.ids, plain.ids)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_perplexity_against_a_loop_over_tokens(family: str):
    """Each token of the document from its own context in float64, and the same sums by words and bytes."""
    text, stride = document(33), 5
    model = AdaptedModel(tiny_model(family), {}, context_length=LENGTH, seed=0)
    windows = cut_windows([text], LENGTH, stride=stride)
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    found = evaluate(model, windows, accelerator, batch_size=3, label="test").metrics()
    slow, total, last = tiny_model(family).double(), 0.0, (len(text.ids) - LENGTH) // stride * stride + LENGTH
    for t in range(1, last):
        begin = 0 if t < LENGTH else math.ceil((t - LENGTH + 1) / stride) * stride
        logits = slow(input_ids=torch.from_numpy(text.ids[begin:t].astype(np.int64))[None]).logits[0, -1]
        total -= float(logits.log_softmax(-1)[text.ids[t]])
    words, size = (int(ends[last - 1] - ends[0]) for ends in (text.word_ends, text.byte_ends))
    assert found["eval_tokens"] == last - 1
    assert found["ppl"] == pytest.approx(math.exp(total / (last - 1)), rel=1e-6)
    assert found["word_ppl"] == pytest.approx(math.exp(total / words), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)


def test_position_groups_keep_their_places():
    """Predictions that do not count leave their groups empty instead of shifting the others."""
    nll, sizes = np.arange(40.0).reshape(2, 20), np.ones((2, 20), dtype=int)
    whole: Any = position_sums(nll, sizes, BINS, "bin", words=sizes)
    late: Any = position_sums(nll, sizes, BINS, "bin", skipped=np.array([0, 13]), words=2 * sizes)
    pd.testing.assert_frame_equal(late[:BINS].drop(columns="words"), whole[:BINS].drop(columns="words"))
    assert late["tokens"][BINS:].tolist() == [0] * 6 + [1] + [2] * 3
    assert late["words"][BINS:].tolist() == [0] * 6 + [2] + [4] * 3
    assert late["nll_sum"][BINS:].tolist() == [0] * 6 + [33.0, 34 + 35.0, 36 + 37.0, 38 + 39.0]


def test_records_without_words_have_no_word_perplexity():
    bins = position_sums(np.ones((2, 20)), np.ones((2, 20), dtype=int), BINS, "bin")
    assert metric_named("word_ppl").window_sums(bins, bins)["weight"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("data.stride=32", "1 to 31, less than data.context_length"),
        ("data.protocol=lines", "no stretches of a document"),
    ],
)
def test_strides_that_make_no_sliding_windows(tiny: tuple[str, ...], override: str, allowed: str):
    (said,) = data_problems(composed(*tiny, "data.stride=8", override).data)
    assert "data.stride = " in said
    assert allowed in said


def test_a_run_with_sliding_windows(tiny: tuple[str, ...], tmp_path: Any):
    """Only evaluation slides, and the record says which tokens were read but not predicted."""
    options = ("method=lora", "method.low_rank.rank=2", f"outputs={tmp_path}")
    assert train(*tiny, *options) == 0
    assert train(*tiny, *options, "data.stride=8") == 0
    runs = [run for found in read_study(tmp_path / "runs").cells.values() for run in found]
    assert {run.result["data"]["stride"] for run in runs} == {8}
    for run in runs:
        assert set(run.windows["context"]) <= {1, 24}
        counts: Any = run.eval.groupby("window")[["tokens", "words"]].sum()
        assert counts["tokens"].tolist() == (32 - run.windows["context"]).tolist()
        assert run.result["metrics"]["word_ppl"] > run.result["metrics"]["ppl"]
    folders = [path for path in (tmp_path / "runs").glob("lora*") if (path / "curve.jsonl").exists()]
    columns = [pd.read_json(folder / "curve.jsonl", lines=True)["loss"].tolist() for folder in folders]
    assert len(columns) == 2
    assert columns[0] == columns[1], "the same training windows"
