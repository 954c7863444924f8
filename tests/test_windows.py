"""Windows: cut one after the other from each document's first token, sampled, and given out fairly."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hylo.data.tokens import TokenizedDocument
from hylo.data.windows import Windows, batches, cut_windows, sample
from hylo.errors import ConfigError

anything = settings(deadline=None)


def tokenized(lengths: list[int], seed: int = 0) -> list[TokenizedDocument]:
    """Documents in which every token has an id of its own, and 0 to 4 bytes."""
    rng, ids = np.random.default_rng(seed), iter(range(10**6))
    return [
        TokenizedDocument(
            f"document {index}",
            np.array(list(islice(ids, length)), dtype=np.int32),
            np.cumsum(rng.integers(0, 5, length), dtype=np.int64),
        )
        for index, length in enumerate(lengths)
    ]


def numbered(count: int) -> Windows:
    """Windows whose ids are their number."""
    number = np.arange(count, dtype=np.int32)
    return Windows(np.stack([number] * 3, axis=1), np.ones((count, 2), np.int64), number.astype(object), number)


@anything
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), length=st.integers(2, 12))
def test_windows_are_the_cuts_of_a_loop(lengths: list[int], length: int):
    """Consecutive from token 0, none across documents, the remainder dropped; cutting all documents in one row would
    pass with a single document."""
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
    """From the table of the record, after any choice and reordering."""
    documents = tokenized([*lengths, 20])
    windows = sample(cut_windows(documents, 5), count)
    windows = windows.take(np.random.default_rng(seed).permutation(len(windows)))
    ids = {document.name: document.ids for document in documents}
    table = windows.table()
    assert table.columns.tolist() == ["window", "document", "first_token", "length"]
    assert table["window"].tolist() == list(range(len(windows)))
    for window, document, first, size in table.itertuples(index=False):
        np.testing.assert_array_equal(ids[document][first : first + size], windows.ids[window])


def test_bytes_add_up():
    """Each window predicts all of its text but its first token's bytes."""
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
    """Recorded numbers rest on these very windows: another draw, by a new NumPy for example, would move them all."""
    chosen = sample(numbered(724), 8).first_token.tolist()
    assert chosen == [2, 165, 209, 389, 405, 482, 580, 635]
    assert len(set(np.diff(chosen))) > 2


def test_every_part_of_the_text_is_sampled():
    """Each tenth of the text gets its share, within four standard deviations; the first windows, say, would not."""
    tenths = np.bincount(sample(numbered(2000), 400).first_token // 200, minlength=10)
    assert (abs(tenths - 40) < 22).all()


@pytest.mark.parametrize("wanted", [None, 7, 8, 1000])
def test_a_sample_of_too_few_windows_takes_them_all(wanted: int | None):
    assert sample(numbered(7), wanted).first_token.tolist() == list(range(7))


def test_a_choice_of_windows_takes_every_field():
    documents = tokenized([20, 20])
    every, chosen = cut_windows(documents, 4), np.array([7, 0, 3])
    for field in dataclasses.fields(Windows):
        np.testing.assert_array_equal(
            getattr(every.take(chosen), field.name), getattr(every, field.name)[chosen], err_msg=field.name
        )


@anything
@given(count=st.integers(1, 20), size=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_window_once_an_epoch(count: int, size: int, seed: int):
    """Across the borders of batches too: dropping an epoch's last incomplete batch would leave windows out, and drawing
    each batch on its own would repeat some."""
    epochs = 3
    taken = list(islice(batches(numbered(count), size, np.random.default_rng(seed)), -(-epochs * count // size)))
    assert all(batch.shape == (size, 3) for batch in taken)
    order = np.concatenate(taken)[: epochs * count, 0].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(count), (epochs, 1)))


def test_order_depends_on_the_seed_alone():
    def order(seed: int, size: int = 4) -> list[int]:
        stream = batches(numbered(20), size, np.random.default_rng(seed))
        return np.concatenate(list(islice(stream, 40 // size)))[:, 0].tolist()

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
