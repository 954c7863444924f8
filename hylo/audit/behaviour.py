"""Checks of what the model computes: identity at start, causality, cache, padding, determinism."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hylo.adapters.component import AtStart
from hylo.audit.finding import Finding, Status, verdict
from hylo.audit.sample import ROUNDING, Probe, distance
from hylo.core.devices import is_out_of_memory
from hylo.core.errors import HyloError, first_line

START_KL = {AtStart.same: 1e-6, AtStart.near: 1e-3}
"""Largest mean KL to the base model at step 0, in nats per token, by what the components declare."""
CAUSAL = 1e-6
"""Passes of the same shape do the same arithmetic for earlier tokens whatever the later ones are, without rounding
differences."""


def identity_at_start(probe: Probe, base_logits: Tensor) -> Finding:
    """The untrained adapter leaves the base model unchanged, as far as its components declare."""
    p, q = (logits.double().log_softmax(-1) for logits in (base_logits, probe.logits()))
    kl = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    mean, largest = float(kl.mean()), float(kl.max())
    detail = f"KL to the base model {mean:.2g} nats per token, {largest:.2g} at most"
    declared = {config.at_start for config in probe.model.method.values()}
    if AtStart.apart in declared and math.isfinite(mean):
        return Finding(check="identity_at_start", status=Status.noted, value=mean, detail=f"{detail}, as declared")
    limit = START_KL[AtStart.near if AtStart.near in declared else AtStart.same]
    if probe.rounding > ROUNDING:  # the KL of two distributions grows with the square of a difference of logits
        limit = max(limit, probe.rounding**2)
    return _measured("identity_at_start", mean, limit, detail)


def causality(probe: Probe, before: Tensor) -> Finding:
    """Changing tokens from the middle on leaves earlier logits unchanged; `before` holds those of the same windows."""
    middle = probe.middle
    changed = probe.ids.clone()
    changed[:, middle:] = (changed[:, middle:] + 1) % before.shape[-1]
    value = distance(probe.logits(changed)[:, :middle], before[:, :middle])
    detail = f"changing later tokens moves earlier logits by {value:.2g} of their spread"
    return _measured("causality", value, CAUSAL, detail)


def _or_what_it_raises(check: Callable[[Probe, Tensor], Finding]) -> Callable[[Probe, Tensor], Finding]:
    """The check, failed with the reason where the model's own code cannot take its input."""

    @functools.wraps(check)
    def tried(probe: Probe, full: Tensor) -> Finding:
        try:
            return check(probe, full)
        except HyloError:
            raise
        except Exception as error:  # a model may raise anything, and other checks still say something
            if is_out_of_memory(error):
                raise
            detail = first_line(f"the model fails: {type(error).__name__}: {error}")
            return Finding(check=check.__name__, status=Status.failed, detail=detail)

    return tried


@_or_what_it_raises
def cached_decoding(probe: Probe, full: Tensor) -> Finding:
    """Reading half a window, then token by token from the cache, gives the logits of the full pass."""
    if (decoded := probe.decoded()) is None:
        return Finding(check="cached_decoding", status=Status.skipped, detail="the model returns no cache")
    value = distance(decoded, full[:, : decoded.shape[1]])
    detail = f"logits from the cache differ from the full pass by {value:.2g} of their spread"
    return _measured("cached_decoding", value, probe.rounding, detail)


@_or_what_it_raises
def padding(probe: Probe, full: Tensor) -> Finding:
    """A shorter text, left-padded and batched with another one, keeps the logits it has without padding, and so does
    the other text. The text is half of the first window, the other one the last window, whose logits are in `full`."""
    text, mate = probe.ids[:1, : probe.middle], probe.ids[-1:]
    alone = probe.logits(text)
    missing = mate.shape[1] - text.shape[1]
    both = torch.cat([F.pad(text, (missing, 0)), mate])
    mask = torch.ones_like(both)
    mask[0, :missing] = 0
    together = probe.logits(both, attention_mask=mask)
    value = max(distance(together[:1, missing:], alone), distance(together[1:], full[-1:]))
    detail = f"left padding and a batch-mate move logits by {value:.2g} of their spread"
    return _measured("padding", value, probe.rounding, detail)


@_or_what_it_raises
def packing(probe: Probe, full: Tensor) -> Finding:
    """Two texts in one row, with positions that start again, keep the logits that each has alone. The texts are half of
    the first window and the last window, whose logits are in `full`."""
    text, mate = probe.ids[:1, : probe.middle], probe.ids[-1:]
    positions = torch.cat([torch.arange(each.shape[1], device=each.device) for each in (text, mate)])
    together = probe.logits(torch.cat([text, mate], dim=1), position_ids=positions.unsqueeze(0), use_cache=False)
    moved = distance(together[:, : probe.middle], probe.logits(text)), distance(together[:, probe.middle :], full[-1:])
    detail = f"another text in the same window moves logits by {max(moved):.2g} of their spread"
    return _measured("packing", max(moved), ROUNDING, detail)


def deterministic_evaluation(probe: Probe) -> Finding:
    """Two passes over the same window in evaluation mode are bit-identical."""
    value = distance(probe.logits(probe.ids[:1]), probe.logits(probe.ids[:1]))
    detail = "two evaluations agree to the last bit" if value == 0 else f"two evaluations differ by {value:.2g}"
    return _measured("deterministic_evaluation", value, 0.0, detail)


def _measured(check: str, value: float, limit: float, detail: str) -> Finding:
    failed = not value <= limit  # also true for NaN
    number = value if math.isfinite(value) else None
    return Finding(check=check, status=verdict(failed), value=number, limit=limit, detail=detail)
