"""The audit: properties that a run must have for its numbers to mean what they say.

Before the first step: identity at start, causality, cached decoding, padding, packing (if used), dead and frozen
tensors, parameter count, adapted share, bucket occupancy. After training: unmoved tensors, deterministic evaluation,
bucket occupancy once more, contributions. The checks read a few short windows and train nothing. A failed check does
not stop a run: it is recorded (audit.json) and marks the run's row in every table.

The properties are the specification of an adapter for causal language models; the checks are own design.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.model import AdaptedModel
from hylo.audit.behaviour import (
    cached_decoding,
    causality,
    deterministic_evaluation,
    identity_at_start,
    packing,
    padding,
)
from hylo.audit.contribution import Contributions
from hylo.audit.finding import Finding, Status, failed_checks, print_findings
from hylo.audit.occupancy import bucket_occupancy
from hylo.audit.sample import Probe
from hylo.audit.tensors import (
    adapted_share,
    backward,
    checksums,
    clear_gradients,
    dead_tensors,
    frozen_tensors,
    parameter_count,
    unmoved_tensors,
)
from hylo.data.windows import Windows

__all__ = ["Audit", "Contributions", "Finding", "Status", "print_findings", "probe_ids", "untouched_logits"]

WINDOWS, LENGTH = 2, 16
"""Maximum number of probe windows and of tokens per window: more would only repeat the same checks in every run."""
SHORTEST = 4
"""Minimum tokens per window: the checks need some before and some after the middle."""


class Audit:
    """The checks of one run.

    Args:
        model: the adapted model before training.
        ids: tokens that `probe_ids` took from the evaluation windows, [B, T].
        base_logits: logits of the base model alone on the same tokens, see `untouched_logits`.
        seed: seed of the noise that moves tensors off their start.
        packed: whether the run trains on windows of several samples, which must not see each other.
    """

    def __init__(
        self, model: AdaptedModel, ids: Tensor, base_logits: Tensor, *, seed: int, packed: bool = False
    ) -> None:
        self.findings: list[Finding] = []
        self._probe = Probe(model, ids, seed=seed)
        self._base_logits = base_logits
        self._packed = packed
        self._start = checksums(self._probe)

    def before_training(self) -> list[Finding]:
        """Check the model as built. Leaves the model, its gradients and all random state as they were."""
        probe = self._probe
        with probe.evaluating():
            found = [identity_at_start(probe, self._base_logits)]
            with probe.moved():
                full = probe.logits()
                found += [causality(probe, full), cached_decoding(probe, full), padding(probe, full)]
                found += [packing(probe, full)] if self._packed and probe.model.method else []
                backward(probe)
                found += [dead_tensors(probe), frozen_tensors(probe)]
                clear_gradients(probe)
            found += [parameter_count(probe), adapted_share(probe), bucket_occupancy(probe)]
        self.findings += found
        return found

    def after_training(self, contributions: Contributions | None = None) -> list[Finding]:
        """Check the trained model, and what its components contribute if that was also measured at the start."""
        with self._probe.evaluating():
            found = [unmoved_tensors(self._probe, self._start), deterministic_evaluation(self._probe)]
            buckets = bucket_occupancy(self._probe)
        # Learned boundaries can leave the window; fixed ones are where they were.
        if buckets.status is Status.failed and buckets.check not in self.failed:
            found.append(replace(buckets, detail=f"after training, {buckets.detail}"))
        if contributions is not None:
            found.append(contributions.after_training())
        self.findings += found
        return found

    @property
    def failed(self) -> list[str]:
        """Names of the checks that have failed so far."""
        return failed_checks(self.findings)

    def record(self) -> list[dict[str, Any]]:
        """All findings so far as JSON."""
        return [finding.record() for finding in self.findings]


@torch.no_grad()
def untouched_logits(base: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [B, T, V] of the base model alone on tokens [B, T]."""
    return base.eval()(input_ids=ids).logits.float()


def probe_ids(windows: Windows, device: torch.device) -> Tensor:
    """The tokens that the audit reads: the start of the longest windows, [B, T], to avoid padding where possible."""
    longest = np.sort(np.argsort(-windows.lengths, kind="stable")[:WINDOWS])
    length = max(int(windows.lengths[longest].min()), SHORTEST)
    return torch.from_numpy(windows.ids[longest, : min(LENGTH, length)].astype(np.int64)).to(device)
