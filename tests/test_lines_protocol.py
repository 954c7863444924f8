"""The published protocol, one padded line of text per sample: cutting, masks, loss and sums, against loops."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from adapters import TRAINED, VOCABULARY, adapt, matrix, method, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from hylo.adapters.model import AdaptedModel
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.core.errors import ConfigError, TrainingDiverged
from hylo.data.base import Bos, Document, Protocol
from hylo.data.lines import cut_lines, split_lines
from hylo.data.sources.text_files import TextFilesConfig
from hylo.data.windows import IGNORED, Windows, model_inputs, next_tokens
from hylo.evaluation.perplexity import BINS, THIRDS, Evaluation, position_sums, token_nll
from hylo.kernels.head import token_losses
from hylo.models.tiny import END_OF_TEXT, byte_tokenizer
from hylo.training.step import StepBatches, accumulate

CPU = torch.device("cpu")
ACCELERATOR = accelerator_for(Device.cpu, Precision.float32)
PAD = 256  # the byte tokenizer's only token that is not a byte


def lines_config(length: int, *, keep_blank_lines: bool = False) -> TextFilesConfig:
    return TextFilesConfig(
        name="text", context_length=length, protocol=Protocol.lines, keep_blank_lines=keep_blank_lines
    )


def padded(lengths: list[int], length: int = 24, vocabulary: int = 200) -> Windows:
    """Windows of random tokens with these lengths, padded with the last id of the vocabulary."""
    rng, count = np.random.default_rng(5), len(lengths)
    real = np.arange(length) < np.array(lengths)[:, None]
    ids = np.where(real, rng.integers(0, vocabulary - 1, (count, length)), vocabulary - 1).astype(np.int32)
    sizes = rng.integers(0, 5, (count, length - 1)) * real[:, 1:]
    return Windows(ids, sizes, np.full(count, "text", dtype=object), np.arange(count) * length, np.array(lengths))


# --- cutting ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n b \n", ["a", "", " b "]),
        ("a\r\nb", ["a", "b"]),
        ("", [""]),
        ("\n", [""]),
        ("a\n\n", ["a", ""]),
        ("a\x0bb\u2028c\x85d\re", ["a\x0bb\u2028c\x85d\re"]),  # str.splitlines would make five lines of this
    ],
)
def test_lines_are_the_texts_own(text: str, expected: list[str]):
    assert split_lines(text) == expected


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.lists(st.text("ab é", max_size=12), max_size=5).map("\n".join), min_size=1, max_size=4),
    length=st.integers(4, 9),
    blank=st.booleans(),
)
def test_windows_are_the_lines_of_a_loop(texts: list[str], length: int, blank: bool):
    """Each line on its own, truncated or padded; document and first token locate it again."""
    documents = [Document(f"document {index}", text) for index, text in enumerate(texts)]
    expected, joined = [], {}
    for document in documents:
        tokens: list[int] = []
        for line in document.text.removesuffix("\n").split("\n"):
            ids = byte_tokenizer()(line, add_special_tokens=False)["input_ids"]
            kept = ids[:length]
            if len(ids) > 1 or blank:
                expected.append((document.name, len(tokens), len(kept), kept + [PAD] * (length - len(kept)), line))
            tokens += ids
        joined[document.name] = tokens
    config = lines_config(length, keep_blank_lines=blank)
    if not any(size > 1 for _, _, size, _, _ in expected):
        with pytest.raises(ConfigError, match=r"data\.protocol = 'lines'\n.*a line of two tokens; text has none"):
            cut_lines(documents, byte_tokenizer(), config)
        return
    windows = cut_lines(documents, byte_tokenizer(), config)
    table = windows.table()[["document", "first_token", "length"]]
    found = [(*row, ids) for row, ids in zip(table.itertuples(index=False), windows.ids.tolist(), strict=True)]
    assert [(name, first, size, ids) for name, first, size, ids in found] == [row[:4] for row in expected]
    for (name, first, size, ids), predicted, (*_, line) in zip(found, windows.bytes, expected, strict=True):
        assert joined[name][first : first + size] == ids[:size]
        boundaries = np.cumsum([len(letter.encode()) for letter in line])
        ends = [min(end for end in boundaries if end > t) for t in range(size)]  # tokens are bytes here
        assert predicted[: max(size - 1, 0)].tolist() == np.diff(ends).tolist()
        assert predicted[max(size - 1, 0) :].sum() == 0, "padding has no bytes"


def test_lines_begin_with_the_beginning_of_text_token():
    """A line of one token then predicts that one; places in the document do not count the token in front."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = END_OF_TEXT
    config = dataclasses.replace(lines_config(5), bos=Bos.always)
    windows = cut_lines([Document("a", "x\n\nlonger\nab")], tokenizer, config)
    (x,), longer, ab = (tokenizer(text)["input_ids"] for text in ("x", "longer", "ab"))
    assert windows.ids.tolist() == [[PAD, x, PAD, PAD, PAD], [PAD, *longer[:4]], [PAD, *ab, PAD, PAD]]
    assert windows.lengths.tolist() == [2, 5, 3]
    assert windows.bytes.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert windows.first_token.tolist() == [0, 1, 7]


def test_lines_that_are_cut_off_are_counted_and_said(capsys: pytest.CaptureFixture[str]):
    cut_lines([Document("a", "long line\nlonger still\nfits")], byte_tokenizer(), lines_config(8))
    assert capsys.readouterr().out == "data=text: 2 of 3 lines are cut off at 8 tokens\n"
    cut_lines([Document("a", "12345678")], byte_tokenizer(), lines_config(8))
    assert not capsys.readouterr().out


def test_a_tokenizer_without_an_end_of_text_token():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(
        ConfigError, match=r"data\.protocol = 'lines'\n.*no end-of-text token.*\n.*data\.protocol=packed"
    ):
        cut_lines([Document("a", "a line")], tokenizer, lines_config(8))


def test_labels_targets_and_mask_against_a_loop():
    windows = padded([5, 0, 8, 1], length=8)
    for on_padding in (False, True):
        labels = windows.labels(on_padding=on_padding)
        targets = 0
        for row, size in enumerate(windows.lengths):
            for t in range(8):
                counts = t < size or on_padding
                assert labels[row, t] == (windows.ids[row, t] if counts else IGNORED)
                targets += counts and t > 0
        assert windows.targets(on_padding=on_padding) == targets == (labels[:, 1:] != IGNORED).sum()
    assert windows.tokens == 14
    mask = model_inputs(windows.ids, windows.lengths, CPU)["attention_mask"]
    assert mask.sum(dim=1).tolist() == [5, 1, 8, 1], "attention over nothing is undefined, so one token is seen"
    assert (mask.diff(dim=1) <= 0).all(), "padding is on the right"
    assert model_inputs(windows.ids[2:3], windows.lengths[2:3], CPU).keys() == {"input_ids"}, "full windows need none"


# --- loss ---


def test_loss_is_the_mean_over_targets_that_count():
    """A mean over all positions, with zero loss on padding, would be smaller by the share of padding."""
    windows = padded([5, 0, 8, 1], length=8, vocabulary=50)
    logits = torch.randn(4, 8, 50, generator=torch.Generator().manual_seed(0))
    log = logits.double().log_softmax(-1)
    for on_padding in (False, True):
        losses = [
            -log[row, t - 1, windows.ids[row, t]].item()
            for row, size in enumerate(windows.lengths)
            for t in range(1, 8 if on_padding else size)
        ]
        targets = next_tokens(windows.labels(on_padding=on_padding), torch.device("cpu"))
        counted = windows.targets(on_padding=on_padding)
        assert int((targets >= 0).sum()) == counted == len(losses)
        loss = token_losses(logits, targets).sum() / counted
        assert loss.item() == pytest.approx(np.mean(losses), rel=1e-6)


def gradients(
    model: AdaptedModel, step: list[Windows], loss_on_padding: bool = False
) -> tuple[float, list[torch.Tensor]]:
    loss = accumulate(model, StepBatches(step, loss_on_padding), ACCELERATOR)
    found = [t.grad.clone() for ts in model.tensors().values() for t in ts.values() if t.grad is not None]
    model.zero_grad(set_to_none=True)
    return loss, found


@pytest.mark.parametrize("on_padding", [False, True])
def test_every_target_of_a_step_weighs_the_same(on_padding: bool):
    """However the step is divided into passes. A mean of per-pass means, correct for packed windows, would give the
    seven targets of the first pass as much weight as the 32 of the second."""
    windows = padded([5, 4, 24, 10, 0, 1], vocabulary=VOCABULARY)
    model = adapt(tiny("llama"), method("lora"))
    loss, whole = gradients(model, [windows], loss_on_padding=on_padding)
    parts = [windows.take(np.array(rows)) for rows in ([0, 1], [2, 3], [4, 5])]
    divided, sums = gradients(model, parts, loss_on_padding=on_padding)
    assert divided == pytest.approx(loss, rel=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in whole)
    for one, two in zip(whole, sums, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)
    if not on_padding:
        means = [accumulate(model, StepBatches([part]), ACCELERATOR) for part in parts[:2]]
        assert abs(np.mean(means) - loss) > 1e-3, "the test could not tell the two means apart"


@matrix(*TRAINED)
def test_blank_rows_give_no_nan(name: str, architecture: str):
    """Neither alone, with nothing to predict, nor among other rows, whose loss and gradient they do not change."""
    model = adapt(tiny(architecture), method(name))
    blank, real = padded([0, 1, 0], vocabulary=VOCABULARY), padded([9, 24], vocabulary=VOCABULARY)
    loss, found = gradients(model, [blank])
    assert math.isnan(loss), "no target, no loss"
    assert all((gradient == 0).all() for gradient in found)
    loss, found = gradients(model, [blank], loss_on_padding=True)
    assert math.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    loss, expected = gradients(model, [real])
    both, found = gradients(model, [blank, real])
    assert both == pytest.approx(loss, rel=1e-6)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


# --- evaluation ---


@matrix()
def test_padding_and_batch_mates_change_no_loss(name: str, architecture: str):
    """Each line alone and unpadded, against all in one padded batch."""
    model = adapt(tiny(architecture), method(name))
    with torch.no_grad():
        for tensors in model.tensors().values():
            for tensor in tensors.values():
                tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    windows = padded([2, 9, 24, 3], vocabulary=VOCABULARY)
    together = token_nll(model, windows.ids, ACCELERATOR, lengths=windows.lengths, batch_size=4, label="test")
    for row, size in enumerate(windows.lengths):
        alone = token_nll(model, windows.ids[row : row + 1, :size], ACCELERATOR, batch_size=1, label="test")
        np.testing.assert_allclose(together[row, : size - 1], alone[0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("groups", [BINS, THIRDS])
def test_sums_count_predicted_tokens_only(groups: int):
    """Groups are relative to each line's length: by padded length, a short line would only be in the first group."""
    rng, predicted = np.random.default_rng(0), np.array([1, 31, 7, 2, 10, 7])
    nll, sizes = rng.exponential(3, (6, 31)), rng.integers(0, 5, (6, 31))
    expected = {(window, group): [0.0, 0, 0] for window in range(6) for group in range(groups)}
    for window, n in enumerate(predicted):
        for t in range(n):
            sums = expected[window, math.floor(groups * t / n)]
            sums[0] += nll[window, t]
            sums[1] += 1
            sums[2] += sizes[window, t]
    table = position_sums(nll, sizes, groups, "group", predicted)
    assert list(zip(table["window"], table["group"], strict=True)) == list(expected)
    np.testing.assert_allclose(table[["nll_sum", "tokens", "bytes"]], list(expected.values()), rtol=1e-12)
    nll[2, 7:] = np.nan
    pd.testing.assert_frame_equal(table, position_sums(nll, sizes, groups, "group", predicted))


def of(nll: np.ndarray, predicted: list[int]) -> Evaluation:
    sizes, counts = np.ones(nll.shape, dtype=np.int64), np.array(predicted)
    return Evaluation(*(position_sums(nll, sizes, n, name, counts) for n, name in ((BINS, "bin"), (THIRDS, "third"))))


def test_the_published_measure_beside_the_weighted_one():
    """One line of two predictions at 6 nats, one of thirty at 3: the short one dominates the mean of perplexities."""
    nll = np.stack([np.full(30, 6.0), np.full(30, 3.0)])
    metrics = of(nll, [2, 30]).metrics()
    assert metrics["mean_window_ppl"] == pytest.approx((math.exp(6) + math.exp(3)) / 2)
    assert metrics["ppl"] == pytest.approx(math.exp((2 * 6 + 30 * 3) / 32))
    assert metrics["eval_tokens"] == 32


def test_a_perplexity_too_large_for_a_number_is_null():
    """At a mean NLL of 800 nats `math.exp` raises, after training is done, and JSON has no infinity."""
    metrics = of(np.stack([np.full(30, 800.0), np.full(30, 1.0)]), [30, 30]).metrics()
    assert metrics["mean_window_ppl"] is None
    assert metrics["ppl"] == pytest.approx(math.exp(400.5))
    nulls = {name for name, value in of(np.full((2, 30), 800.0), [30, 30]).metrics().items() if value is None}
    assert nulls == {"ppl", "lim_ppl", "head_ppl", "tail_ppl", "mean_window_ppl", "word_ppl"}
    json.dumps(metrics, allow_nan=False)


def test_a_third_without_tokens_has_no_perplexity():
    metrics = of(np.full((1, 30), 2.0), [2]).metrics()
    assert metrics["tail_ppl"] is None
    assert metrics["head_ppl"] == metrics["lim_ppl"] == pytest.approx(math.exp(2))


def test_a_loss_that_is_not_finite_is_named():
    nll = np.ones((3, 30))
    nll[1, 4] = np.nan
    with pytest.raises(TrainingDiverged, match="evaluation window 1 is not finite"):
        of(nll, [30] * 3).metrics()
