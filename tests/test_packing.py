"""Several samples in one window: how they are placed, and that none sees another: the losses and gradients of one
sample at a time."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from adapters import ARCHITECTURES, CONTEXT, VOCABULARY, adapt, matrix, method, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_windows import tokenized

from hylo.core.devices import Device, Precision, accelerator_for
from hylo.data.packing import best_fit, cut_with_ends, pack
from hylo.data.windows import IGNORED, Windows, cut_windows, next_tokens
from hylo.models.causality import mixes_samples
from hylo.training.step import StepBatches, accumulate

CPU = torch.device("cpu")
LENGTHS = [7, 12, 2, 19, 5, 9, 32, 3]
"""Tokens of samples: of two or more in a window of 32, and one that fills it."""


def samples(lengths: list[int], *, responses: bool = False) -> Windows:
    """Samples of random tokens, padded to CONTEXT; with responses, only the later part of each is predicted."""
    rng = np.random.default_rng(4)
    real = np.arange(CONTEXT) < np.array(lengths)[:, None]
    ids = np.where(real, rng.integers(0, VOCABULARY, real.shape), 1).astype(np.int32)
    counted = real & (np.arange(CONTEXT) >= (np.array(lengths)[:, None] + 1) // 2) if responses else None
    sizes = rng.integers(1, 5, (len(lengths), CONTEXT - 1)) * real[:, 1:]
    names = np.array([f"sample {index}" for index in range(len(lengths))], dtype=object)
    return Windows(ids, sizes, names, np.zeros(len(lengths), dtype=int), np.array(lengths), counted=counted)


def losses(model: torch.nn.Module, windows: Windows) -> torch.Tensor:
    """The losses of the predicted tokens, in order, of one forward pass."""
    targets = next_tokens(windows.labels(), CPU)
    with torch.no_grad():
        return model(**windows.inputs(CPU), targets=targets)[targets != IGNORED]


def in_order_of(packed: Windows, alone: Windows) -> list[int]:
    """The samples in the order in which the packed windows hold them."""
    texts = [tuple(row[:size]) for row, size in zip(alone.ids.tolist(), alone.lengths, strict=True)]
    assert packed.positions is not None
    found = []
    for ids, positions, size in zip(packed.ids.tolist(), packed.positions, packed.lengths, strict=True):
        starts = [*np.flatnonzero(positions[:size] == 0), size]
        found += [texts.index(tuple(ids[a:b])) for a, b in pairwise(starts)]
    return found


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_every_sample_has_one_place_with_room(lengths: list[int]):
    """And no two windows could have been one."""
    groups = best_fit(np.array(lengths), 20)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    sizes = sorted(sum(lengths[index] for index in group) for group in groups)
    assert sizes[-1] <= 20
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 20


@pytest.mark.parametrize("responses", [False, True])
def test_packing_moves_tokens_bytes_and_targets_together(responses: bool):
    """The first token of a sample is predicted in no window: it follows another sample's last one."""
    alone = samples(LENGTHS, responses=responses)
    packed = pack(alone)
    order = in_order_of(packed, alone)
    assert sorted(order) == list(range(len(LENGTHS)))
    assert len(packed) == 3, "89 tokens in windows of 32"
    assert packed.tokens == alone.tokens
    assert packed.targets() == alone.targets()
    labels = next_tokens(packed.labels(), CPU)
    expected = next_tokens(alone.take(np.array(order)).labels(), CPU)
    assert labels[labels != IGNORED].tolist() == expected[expected != IGNORED].tolist()
    assert packed.counted is not None
    counted = expected[:, :-1] != IGNORED
    assert packed.bytes[packed.counted[:, 1:]].tolist() == alone.bytes[order][counted.numpy()].tolist()


MIXING = {"opt"}
"""Architectures that make a mask of ones for themselves, so that transformers does not look at the positions."""


def test_which_models_mix_samples():
    assert {name for name in ARCHITECTURES if mixes_samples(tiny(name))} == MIXING


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - MIXING))
def test_no_base_model_sees_another_sample(architecture: str):
    """Per-token losses to rounding. Positions that went on, or attention to the sample before, would move them by
    far more, as the second half shows for the same tokens."""
    alone, model = samples(LENGTHS), adapt(tiny(architecture), {})
    packed = pack(alone)
    expected = losses(model, alone.take(np.array(in_order_of(packed, alone))))
    torch.testing.assert_close(losses(model, packed), expected, rtol=1e-4, atol=1e-5)
    leaking = Windows(
        packed.ids, packed.bytes, packed.document, packed.first_token, packed.lengths, counted=packed.counted
    )
    assert (losses(model, leaking) - expected).abs().max() > 0.1


def leaks(model: Any) -> bool:
    return any("causality" in config.breaks for config in model.method.values())


@matrix()
def test_no_component_sees_another_sample(architecture: str, name: str):
    """Also those that read positions, sums over the text or a prefix, with every tensor moved off its start."""
    alone, model = samples(LENGTHS, responses=True), adapt(tiny(architecture), method(name))
    with torch.no_grad():
        for tensor in model.adapter_state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    packed = pack(alone)
    expected = losses(model, alone.take(np.array(in_order_of(packed, alone))))
    same = torch.allclose(losses(model, packed), expected, rtol=1e-3, atol=1e-4)
    assert same != (architecture in MIXING or leaks(model)), "what is refused with packing, and nothing else, mixes"


@pytest.mark.parametrize("name", ["hylorada", "landmark_original"])
def test_gradients_are_those_of_one_sample_at_a_time(name: str):
    """Sums over the same tokens, so a step on packed windows is a step on their samples."""
    alone = samples(LENGTHS, responses=True)
    found = []
    for batches in ([pack(alone)], [alone.take(np.array([row])) for row in range(len(alone))]):
        model = adapt(tiny("llama"), method(name))
        loss = accumulate(model, StepBatches(batches), accelerator_for(Device.cpu, Precision.float32))
        found.append((loss, {key: tensor.grad for key, tensor in model.adapter_state_dict().items()}))
    (packed_loss, packed), (loss, expected) = found
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for key, gradient in expected.items():
        torch.testing.assert_close(packed[key], gradient, rtol=1e-3, atol=1e-6, msg=key)


@pytest.mark.parametrize("bos", [None, 99])
def test_ends_of_documents_are_kept(bos: int | None):
    """Beside the windows that are cut without packing, which stay as they are."""
    documents = tokenized([40, 11, 3, 1])
    full, every = cut_windows(documents, 12, bos=bos), cut_with_ends(documents, 12, bos=bos)
    filled = every.take(np.flatnonzero(every.lengths == 12))
    for field in ("ids", "bytes", "document", "first_token"):
        assert getattr(filled, field)[: len(full)].tolist() == getattr(full, field).tolist()
    begun = 0 if bos is None else 1
    assert (every.lengths - begun).sum() == (54 if bos is None else 55), "one token alone predicts nothing"
    assert pack(every).targets() == every.targets()
