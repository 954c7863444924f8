"""Windows: cut consecutively from each document, sampled, batched evenly, and kept by the session."""

import dataclasses
import weakref
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import composed
from transformers import PreTrainedModel

from hylo.core.devices import checksum
from hylo.core.errors import ConfigError
from hylo.data.base import Split
from hylo.data.packing import pack
from hylo.data.tokens import TokenizedDocument
from hylo.data.windows import Windows, batches, cut_windows, sample
from hylo.models.tiny import TinyArchitecture, TinyModelConfig
from hylo.runs.shared import Session, weights_checksum

anything = settings(deadline=None)
CPU = torch.device("cpu")


def tokenized(lengths: list[int], seed: int = 0) -> list[TokenizedDocument]:
    """Documents in which every token has a unique id, and 0 to 4 bytes."""
    rng, ids = np.random.default_rng(seed), iter(range(10**6))
    return [
        TokenizedDocument(
            f"document {index}",
            np.array(list(islice(ids, length)), dtype=np.int32),
            np.cumsum(rng.integers(0, 5, length), dtype=np.int64),
            np.cumsum(rng.integers(0, 2, length), dtype=np.int64),
        )
        for index, length in enumerate(lengths)
    ]


def numbered(count: int) -> Windows:
    """Windows whose ids are the window's number."""
    number = np.arange(count, dtype=np.int32)
    return Windows(
        np.stack([number] * 3, axis=1), np.ones((count, 2), np.int64), number.astype(object), number, np.full(count, 3)
    )


@anything
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), length=st.integers(2, 12))
def test_windows_are_the_cuts_of_a_loop(lengths: list[int], length: int):
    """Consecutive from token 0, never across documents, the remainder dropped; cutting the concatenation would pass
    with a single document."""
    documents = tokenized(lengths)
    expected = [
        (document.name, first, document.ids[first : first + length].tolist(), document)
        for document in documents
        for first in range(0, len(document.ids) - length + 1, length)
    ]
    if not expected:
        with pytest.raises(ConfigError):
            cut_windows(documents, length)
        return
    windows = cut_windows(documents, length)
    assert len(windows) == len(expected)
    cuts = zip(windows.document, windows.first_token, windows.ids.tolist(), strict=True)
    assert list(cuts) == [(name, first, ids) for name, first, ids, _ in expected]
    assert windows.bytes.shape == (len(expected), length - 1)
    for sizes, (_, first, _, document) in zip(windows.bytes, expected, strict=True):
        ends = document.byte_ends
        assert sizes.tolist() == [ends[token] - ends[token - 1] for token in range(first + 1, first + length)]


@anything
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_document_and_first_token_find_a_window_again(lengths: list[int], count: int, seed: int):
    """From the record's table, after any selection and reordering."""
    documents = tokenized([*lengths, 20])
    windows = sample(cut_windows(documents, 5), count)
    windows = windows.take(np.random.default_rng(seed).permutation(len(windows)))
    ids = {document.name: document.ids for document in documents}
    table = windows.table()
    assert table.columns.tolist() == ["window", "document", "first_token", "length"]
    assert table["window"].tolist() == list(range(len(windows)))
    for window, document, first, size in table.itertuples(index=False):
        np.testing.assert_array_equal(ids[document][first : first + size], windows.ids[window])


def test_a_beginning_of_text_token_comes_first_in_every_window():
    """Then every token of the text is predicted, and windows advance by one token less."""
    documents = tokenized([10, 3, 7])
    windows = cut_windows(documents, 4, bos=99)
    assert windows.ids[:, 0].tolist() == [99] * 6
    assert windows.ids[:, 1:].flatten().tolist() == [
        *documents[0].ids[:9].tolist(),
        *documents[1].ids.tolist(),
        *documents[2].ids[:6].tolist(),
    ]
    assert windows.first_token.tolist() == [0, 3, 6, 0, 0, 3]
    ends = [documents[0].byte_ends[8], documents[1].byte_ends[2], documents[2].byte_ends[5]]
    assert windows.bytes.sum() == sum(ends)


def test_bytes_add_up():
    """Each window predicts all bytes of its text except those of its first token."""
    (document,) = tokenized([64])
    windows = cut_windows([document], 16)
    firsts = np.diff(document.byte_ends, prepend=0)[::16]
    assert firsts.sum() > 0
    assert windows.bytes.sum() == document.byte_ends[-1] - firsts.sum()


@anything
@given(data=st.data(), count=st.integers(1, 300))
def test_a_sample_is_in_order_and_part_of_every_larger_one(data: st.DataObject, count: int):
    few = data.draw(st.integers(1, count))
    more = data.draw(st.integers(few, count))
    small, large = (sample(numbered(count), wanted).first_token for wanted in (few, more))
    assert (len(small), len(large)) == (few, more)
    assert (np.diff(large) > 0).all(), "in the order of the text, none twice"
    assert set(small) <= set(large)


def test_the_sample_is_always_the_same_and_no_grid():
    """Recorded numbers depend on these windows: another draw, say with a new NumPy, would change all of them."""
    chosen = sample(numbered(724), 8).first_token.tolist()
    assert chosen == [2, 165, 209, 389, 405, 482, 580, 635]
    assert len(set(np.diff(chosen))) > 2


def test_every_part_of_the_text_is_sampled():
    """Each tenth of the text gets its share, within four standard deviations, unlike taking the first windows, say."""
    tenths = np.bincount(sample(numbered(2000), 400).first_token // 200, minlength=10)
    assert (abs(tenths - 40) < 22).all()


@pytest.mark.parametrize("wanted", [None, 7, 8, 1000])
def test_a_sample_of_too_few_windows_takes_them_all(wanted: int | None):
    assert sample(numbered(7), wanted).first_token.tolist() == list(range(7))


def test_a_choice_of_windows_takes_every_field():
    documents = tokenized([20, 20])
    every, chosen = pack(cut_windows(documents, 4)), np.array([7, 0, 3])  # packed windows say what is counted
    every = dataclasses.replace(every, words=every.bytes, context=np.arange(len(every)))
    for field in dataclasses.fields(Windows):
        np.testing.assert_array_equal(
            getattr(every.take(chosen), field.name), getattr(every, field.name)[chosen], err_msg=field.name
        )


@anything
@given(count=st.integers(1, 20), size=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_window_once_an_epoch(count: int, size: int, seed: int):
    """Also across batch boundaries: dropping an epoch's last incomplete batch would skip windows, and drawing each
    batch independently would repeat some."""
    epochs = 3
    taken = list(islice(batches(numbered(count), size, np.random.default_rng(seed)), -(-epochs * count // size)))
    assert all(batch.ids.shape == (size, 3) for batch in taken)
    order = np.concatenate([batch.ids for batch in taken])[: epochs * count, 0].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(count), (epochs, 1)))


def test_order_depends_on_the_seed_alone():
    def order(seed: int, size: int = 4) -> list[int]:
        stream = batches(numbered(20), size, np.random.default_rng(seed))
        return np.concatenate([batch.ids for batch in islice(stream, 40 // size)])[:, 0].tolist()

    assert order(0) == order(0) != order(1)
    assert order(0) == order(0, size=5), "the batch size changes where the order is cut, not the order"
    assert order(0)[:20] != order(0)[20:], "each epoch in an order of its own"
    assert order(0)[:20] != list(range(20))


@pytest.mark.parametrize("lengths", [[37, 12], [0], []])
def test_a_context_longer_than_every_document(lengths: list[int]):
    longest = max(lengths, default=0)
    with pytest.raises(
        ConfigError, match=rf"data\.context_length = 38\n.*longest document \({longest} tokens\)\n.*fix:"
    ):
        cut_windows(tokenized(lengths), 38)


def test_a_document_of_exactly_one_window():
    assert cut_windows(tokenized([38, 37]), 38).table()[["document", "first_token"]].values.tolist() == [
        ["document 0", 0]
    ]


# --- the session, which makes each of these and the base model once ---


def test_documents_and_windows_are_made_once_for_each_setting(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HYLO_CACHE", str(tmp_path))
    session, config = Session(), composed(*tiny)
    data, model = config.data, config.model
    windows = session.windows(data, model, Split.test)
    assert session.windows(data, model, Split.test) is windows
    assert session.documents(data, Split.test) is session.documents(data, Split.test)
    assert session.documents_identity(data, Split.test) != session.documents_identity(data, Split.train)
    assert session.windows(data, model, Split.train).ids[0].tolist() != windows.ids[0].tolist()
    assert len(session.eval_windows(data, model)) == data.eval_windows == 6
    data.context_length, data.eval_split, data.eval_windows = 16, Split.train, None
    assert session.eval_windows(data, model).ids.shape == (len(session.documents(data, Split.train)[0].text) // 16, 16)


def test_the_base_is_loaded_once():
    session = Session()
    first = session.base(TinyModelConfig(name="one"), CPU)
    assert session.base(TinyModelConfig(name="one"), CPU) is first
    assert session.base(TinyModelConfig(name="one", weights_seed=1), CPU) is not first


def test_what_the_audit_compares_with_is_computed_once_for_each_model_and_data(tiny: tuple[str, ...]):
    """The base model's logits are the same for all cells, and are released with the model."""
    session, config = Session(), composed(*tiny)
    data, model = config.data, config.model
    ids, logits = session.audit_sample(data, model, CPU)
    assert session.audit_sample(data, model, CPU)[1] is logits
    longest = session.eval_windows(data, model).ids[:2, : ids.shape[1]]
    assert ids.tolist() == longest.tolist()
    assert torch.equal(logits, model.load()(input_ids=ids).logits)
    other = dataclasses.replace(data, eval_split=Split.train)
    assert session.audit_sample(other, model, CPU)[0].tolist() != ids.tolist()
    session.base(TinyModelConfig(name="other", weights_seed=1), CPU)
    assert session.audit_sample(data, model, CPU)[1] is not logits


def test_another_model_is_loaded_after_the_first_is_let_go(monkeypatch: pytest.MonkeyPatch):
    """Not afterwards, or memory would have to hold both."""
    session, alive = Session(), []
    load = TinyModelConfig.load

    def watched(config: TinyModelConfig) -> PreTrainedModel:
        alive.append(first() is not None)
        return load(config)

    first = weakref.ref(session.base(TinyModelConfig(name="llama"), CPU))
    monkeypatch.setattr(TinyModelConfig, "load", watched)
    session.base(TinyModelConfig(name="gpt2", architecture=TinyArchitecture.gpt2), CPU)
    assert alive == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_checksum_sees_every_bit_of_a_weight(dtype: torch.dtype):
    """Including the sign of zero and the payload of NaN, which comparing values would miss."""
    model: Any = TinyModelConfig(name="tiny").load()
    model.to(dtype)
    before = weights_checksum(model)
    assert weights_checksum(model) == before
    name, weight = next(
        (name, tensor) for name, tensor in model.state_dict().items() if name.endswith("up_proj.weight")
    )
    bits = weight.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    for value in (0.02, 0.0, float("nan")):
        weight[5, 7] = value
        expected = weights_checksum(model)
        for bit in range(8 * dtype.itemsize):
            flip = torch.ones((), dtype=bits.dtype) << bit
            bits[5, 7] ^= flip
            changed = {key for key, total in weights_checksum(model).items() if total != expected[key]}
            assert changed == {name}, f"bit {bit} of {value}"
            bits[5, 7] ^= flip
        assert weights_checksum(model) == expected


def test_the_checksum_is_that_of_the_content():
    """Not of the memory layout: tensors of a mapped file start anywhere. Scalars and odd trailing bytes count fully."""
    values = torch.arange(1.0, 36.0)
    for tensor in (values[1:], values[3], values.view(5, 7).T, values[:0], values.bfloat16()[1:]):
        assert checksum(tensor) == checksum(tensor.clone(memory_format=torch.contiguous_format))
    assert len({checksum(torch.tensor(value)) for value in (0.1, 0.099102, 0.1000001, -0.1, 0.0)}) == 5
    odd = values.clone()
    odd[-1] = -odd[-1]
    assert checksum(odd) != checksum(values)
