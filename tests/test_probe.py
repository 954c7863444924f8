"""The retrieval probe: its prompts, a model's answers, and adding it to a complete run without training again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import METHODS, ON_EVERY_ARCHITECTURE, adapt, declared_dead, method, perturb
from launch import composed

from hylo.adapters.model import AdaptedModel
from hylo.core.devices import accelerator_for
from hylo.core.errors import TrainingDiverged
from hylo.data.kv.text import PROBE_CODES, TRAINING_CODES
from hylo.data.kv.words import PROBE_WORDS, TRAINING_WORDS
from hylo.evaluation.probes.depths import DepthProbe, Prompts
from hylo.evaluation.probes.kv import KvProbeConfig, depth_places
from hylo.evaluation.probes.measure import cached_logits, full_logits, graded
from hylo.evaluation.probes.score import GRIDS, ends_minus_middle
from hylo.models.tiny import TinyArchitecture, TinyModelConfig

PROBED = ("probe=kv", "probe.facts=[5,6]", "probe.lists=3")
"""A probe that takes a fraction of a second."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def prompts() -> list[Prompts]:
    return [*KvProbeConfig(facts=[5, 8], lists=2).build(TinyModelConfig(name="tiny").tokenizer()).prompts]


def tiny_model(architecture: TinyArchitecture, name: str, *overrides: str) -> AdaptedModel:
    """A method on a tiny model, with all of its tensors perturbed."""
    model = adapt(TinyModelConfig(name="tiny", architecture=architecture).load(), method(name, *overrides))
    perturb(model)
    return model


def text_of(prompts: Prompts, depth: int) -> str:
    tokenizer = TinyModelConfig(name="tiny").tokenizer()
    return str(tokenizer.decode(np.concatenate([prompts.prefix, prompts.tails[depth]]).tolist()))


def test_words_and_codes_are_not_those_of_training() -> None:
    assert not set(PROBE_WORDS) & set(TRAINING_WORDS)
    assert len(set(PROBE_WORDS)) == len(PROBE_WORDS) >= 60
    assert len(set(TRAINING_WORDS)) == len(TRAINING_WORDS)
    assert not set(PROBE_CODES) & set(TRAINING_CODES)
    assert len(PROBE_CODES) + len(TRAINING_CODES) == 9_000
    for codes in (PROBE_CODES, TRAINING_CODES):  # every digit in every place, so none is new in the probe
        for place in range(4):
            assert set(codes // 10**place % 10) == set(range(place == 3, 10))


def test_depths_go_from_the_first_fact_to_the_last() -> None:
    assert depth_places(60, 5).tolist() == [0, 15, 30, 44, 59]
    assert depth_places(5, 5).tolist() == [0, 1, 2, 3, 4]
    for facts in range(5, 80):
        places = depth_places(facts, 5)
        assert places[0] == 0
        assert places[-1] == facts - 1
        assert (np.diff(places) > 0).all()


def test_a_question_asks_for_the_fact_at_its_place(prompts: list[Prompts]) -> None:
    """The text decoded from its tokens; list lengths alternate, so that the remaining time can be estimated."""
    assert [(one.length, one.number) for one in prompts] == [(5, 0), (8, 0), (5, 1), (8, 1)]
    for one in prompts:
        for depth, place in enumerate(one.places):
            listed, _, asked = text_of(one, depth).partition("\n\n")
            lines = listed.splitlines()
            assert len(lines) == one.length
            fact = lines[place].removesuffix(".")
            word = fact.split()[3]
            assert asked == f"Question: what is the code for {word}?\nAnswer: {fact}"
            assert one.answer_tokens[depth] == 4, "a token a byte"
            assert word in PROBE_WORDS
            assert int(fact.split()[-1]) in PROBE_CODES


def test_lists_depend_on_the_seed_of_the_probe_alone(prompts: list[Prompts]) -> None:
    tokenizer = TinyModelConfig(name="tiny").tokenizer()
    more = KvProbeConfig(facts=[8], lists=3).build(tokenizer).prompts
    assert [text_of(one, 0) for one in more[:2]] == [text_of(one, 0) for one in prompts if one.length == 8]
    other = KvProbeConfig(facts=[8], lists=3, seed=1).build(tokenizer).prompts
    assert text_of(other[0], 0) != text_of(more[0], 0)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ON_EVERY_ARCHITECTURE else [pytest.mark.slow]) for name in METHODS],
)
def test_reading_a_list_once_is_the_full_pass(name: str, prompts: list[Prompts]) -> None:
    """For every method whose cached decoding passes the audit; the others use full forward passes."""
    allowed = not any("cached_decoding" in config.breaks for config in method(name).values())
    for architecture in TinyArchitecture:
        model = tiny_model(architecture, name)
        with torch.no_grad():
            for one in prompts[:2]:
                cached, full = cached_logits(model, one), full_logits(model, one)
                for depth, tail in enumerate(one.tails):  # positions after a shorter tail are padding
                    difference = (cached - full)[depth, : len(tail)].abs().max()
                    assert not allowed or difference < 1e-4 * full.std()


def test_a_leaking_method_is_asked_by_full_passes(prompts: list[Prompts]) -> None:
    model = tiny_model(TinyArchitecture.llama, "landmark_original", "method.landmark.pooling=sequence")
    with torch.no_grad():
        assert (cached_logits(model, prompts[0]) - full_logits(model, prompts[0])).abs().max() > 1e-4
    assert declared_dead(model) == []


@pytest.mark.parametrize("answer", [0, 1, 2, 3])
def test_exact_is_what_greedy_decoding_says(answer: int, prompts: list[Prompts]) -> None:
    """Targets are what the model itself generates, fully or with one token changed."""
    model = tiny_model(TinyArchitecture.llama, "lora")
    accelerator = accelerator_for(composed("model=tiny_llama").trainer.device, composed().trainer.precision)
    one = prompts[0]
    tails, expected = [], []
    for depth, tail in enumerate(one.tails):
        question = torch.from_numpy(np.concatenate([one.prefix, tail[:-4]]).astype(np.int64))[None]
        generated = question
        for _ in range(4):
            generated = torch.cat([generated, model(input_ids=generated).logits[:, -1:].argmax(-1)], dim=1)
        said = generated[0, -4:].numpy().astype(np.int32)
        right = depth % 2 == 0
        said[answer] = said[answer] if right else (said[answer] + 1) % 257
        tails.append(np.concatenate([tail[:-4], said]))
        expected.append(int(right))
    known = dataclasses.replace(one, tails=tails)
    for cached in (True, False):
        answers = DepthProbe(GRIDS["kv"], [known]).ask(model, accelerator, cached=cached, label="test")
        table: Any = answers.table
        assert table["exact"].tolist() == expected
        with torch.no_grad():
            for depth, tail in enumerate(tails):
                whole = torch.from_numpy(np.concatenate([one.prefix, tail]).astype(np.int64))[None]
                log_probs = model(input_ids=whole).logits[0, :-1].double().log_softmax(-1)
                true = sum(float(log_probs[-4 + i, tail[-4 + i]]) for i in range(4))
                assert table["answer_logprob"][depth] == pytest.approx(true, abs=1e-4)


def test_a_number_that_is_not_finite_is_refused(prompts: list[Prompts]) -> None:
    model = tiny_model(TinyArchitecture.llama, "lora")
    next(iter(model.adapter_state_dict().values())).data.fill_(float("nan"))
    config = composed("model=tiny_llama")
    accelerator = accelerator_for(config.trainer.device, config.trainer.precision)
    with pytest.raises(TrainingDiverged, match="list 0 of 5 facts"):
        DepthProbe(GRIDS["kv"], prompts).ask(model, accelerator, cached=True, label="test")


def test_graded_by_hand() -> None:
    """An answer of two tokens, the second of which is not the most likely."""
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.6, 0.4], [0.9, 0.1]]))
    exact, logprob = graded(logits, np.array([0, 0, 1, 1]), 2)
    assert (exact, logprob) == (False, pytest.approx(np.log(0.75 * 0.4)))
    exact, logprob = graded(logits, np.array([0, 0, 1, 0]), 2)
    assert (exact, logprob) == (True, pytest.approx(np.log(0.75 * 0.6)))


def test_ends_minus_middle() -> None:
    assert ends_minus_middle(np.array([1.0, 0.0, 0.3, 0.0, 0.8])) == pytest.approx(0.9 - 0.1)
