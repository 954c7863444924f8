"""The memory estimate: measured from what a forward pass saves, and its uses."""

import pytest
import torch
from adapters import adapt, method, tiny, tokens, values

from hylo.training.config import TrainerConfig
from hylo.training.memory import (
    FLOAT,
    estimate,
    evaluation_batch_size,
    evaluation_bytes_per_token,
    kept_bytes,
)
from hylo.training.optimizers.adamw import AdamWConfig

LENGTH = 16


def test_what_a_pass_keeps_grows_with_its_tokens():
    """As much for every further token, so a few tokens are enough to extrapolate."""
    model = adapt(tiny("llama"), method("lora"))
    (_, short), (_, long) = (kept_bytes(model, tokens(2, length)) for length in (8, 16))
    assert short == pytest.approx(long, rel=0.05)
    widths = 48 * 6 + 112 * 2  # each of two layers: inputs and outputs of norms and attention, gate and up
    assert long > 2 * FLOAT * widths


def test_fused_keeps_less_than_plain():
    everywhere = method("lora", "method.low_rank.target_modules=[all-linear]")
    fused, plain = (
        kept_bytes(adapt(tiny("llama"), everywhere, fused=fused), tokens(2, 16))[1] for fused in (True, False)
    )
    assert fused < 0.8 * plain


def test_counting_leaves_the_model_as_it_was():
    model = adapt(tiny("llama"), method("hylorada"))
    before, state = values(model), torch.get_rng_state()
    kept_bytes(model, tokens(1, 8))
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(model).items())
    assert all(tensor.grad is None for tensor in model.adapter_state_dict().values())
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_of_the_estimate():
    """Checkpointing saves less, a model without training nothing; two processes share a batch."""
    model, ids = adapt(tiny("llama"), method("lora")), tokens(1, 8)

    def of(processes: int = 1, **settings: object) -> int:
        config = TrainerConfig(optimizer=AdamWConfig(), **settings)  # pyright: ignore[reportArgumentType]
        return estimate(model, ids, config, length=LENGTH, eval_windows=2, processes=processes).activations

    assert of(gradient_checkpointing=True) < 0.7 * of()
    assert of(batch_size=8) == pytest.approx(2 * of(batch_size=4), rel=1e-3)
    assert of(batch_size=8, processes=2) == of(batch_size=4)
    chosen = TrainerConfig(optimizer=AdamWConfig())
    whole = estimate(model, ids, chosen, length=LENGTH, eval_windows=2, processes=1)
    assert whole.trained == 3 * FLOAT * model.parameter_counts()["trainable"]
    assert whole.peak == whole.resident + whole.activations + whole.workspace + whole.trained
    assert whole.beside(7) == {"peak_memory_bytes": 7, "estimated_peak_memory_bytes": whole.peak}
    untuned = adapt(tiny("gpt2"), {})
    assert estimate(untuned, ids, TrainerConfig(), length=LENGTH, eval_windows=2, processes=1).activations == 0


def test_evaluation_takes_as_many_windows_as_its_memory_holds():
    model = adapt(tiny("llama"), {})
    window = evaluation_bytes_per_token(model) * LENGTH
    for windows in (1, 5):
        budget = TrainerConfig(eval_memory_gib=(windows + 0.5) * window / 2**30)
        assert evaluation_batch_size(model, budget, LENGTH) == windows
    assert evaluation_batch_size(model, TrainerConfig(eval_memory_gib=1e-9), LENGTH) == 1
    assert evaluation_batch_size(model, TrainerConfig(eval_batch_size=3), LENGTH) == 3


def test_a_loss_from_logits_counts_the_vocabulary():
    fused, plain = (evaluation_bytes_per_token(adapt(tiny("llama"), {}, fused=fused)) for fused in (True, False))
    assert plain - fused == FLOAT * 4 * 97


def test_a_changed_or_trained_output_head_needs_logits():
    """Embeddings that change are the head, too, where it is tied to them."""
    plain = evaluation_bytes_per_token(adapt(tiny("llama"), {}))
    for name in ("embeddings", "longlora", "full"):
        model = adapt(tiny("llama"), method(name))
        assert not model.losses_without_logits
        assert evaluation_bytes_per_token(model) - plain == FLOAT * 4 * 97
    for architecture, name in (("llama", "norms"), ("qwen2", "embeddings")):
        assert adapt(tiny(architecture), method(name)).losses_without_logits


def test_weights_that_every_pass_changes_are_counted_once():
    """E + D is as large for any number of tokens; LoRA has nothing of the kind."""
    always, each = kept_bytes(adapt(tiny("llama"), method("embeddings")), tokens(1, 16))
    assert always == pytest.approx(FLOAT * 97 * 48, rel=0.2)
    assert each < 48 * 112 * FLOAT
    assert kept_bytes(adapt(tiny("llama"), method("lora")), tokens(1, 16))[0] < 0.1 * always
