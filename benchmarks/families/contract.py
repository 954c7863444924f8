"""What each design does on a model: works, is refused with a reason, is flagged by the audit, or fails."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.families.tiny import VOCABULARY, tiny_model
from hylo.adapters.bias import BiasConfig
from hylo.adapters.full import FullConfig
from hylo.adapters.landmarks.attention import AttentionConfig
from hylo.adapters.landmarks.original import OriginalConfig
from hylo.adapters.landmarks.per_layer import PerLayerConfig
from hylo.adapters.landmarks.position_adaptive import PositionAdaptiveConfig
from hylo.adapters.low_rank import LowRankConfig, Scaling
from hylo.adapters.model import AdaptedModel, Method, adapted
from hylo.adapters.peft.method import PeftConfig
from hylo.adapters.position_bias import PositionBiasConfig
from hylo.audit import Audit, Status, untouched_logits
from hylo.audit.sample import distance
from hylo.core.errors import ConfigError, first_line

CONTEXT, LENGTH = 32, 16
EXACT = 1e-5
"""Largest difference of logits between kernels, in their standard deviations."""
_GREEDY = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 1}

_LOW_RANK = {"low_rank": LowRankConfig(rank=4, scaling=Scaling.rank_stabilized)}
DESIGNS: dict[str, Method] = {
    "base": {},
    "low rank": {"low_rank": LowRankConfig(rank=4, magnitude=True)},
    "position bias": _LOW_RANK | {"position_bias": PositionBiasConfig()},
    "landmarks": {"landmark": PositionAdaptiveConfig()},
    "original": {"landmark": OriginalConfig()},
    "per layer": {"landmark": PerLayerConfig()},
    "attention": {"landmark": AttentionConfig()},
    "bias": {"bias": BiasConfig()},
    "full": {"full": FullConfig()},
    "peft LoRA": {"peft": PeftConfig(peft_type="LORA", kwargs={"r": 4})},
    "peft prefix": {"peft": PeftConfig(peft_type="PREFIX_TUNING", kwargs={"num_virtual_tokens": 3})},
    "in bfloat16": _LOW_RANK | {"position_bias": PositionBiasConfig(), "landmark": PositionAdaptiveConfig()},
}
"""Every kind of component, by its column. The last one is tried on the model in bfloat16."""


class Kind(Enum):
    """What came of a trial."""

    works = "yes"
    refused = "no"
    flagged = "flagged"
    base = "base"
    wrong = "WRONG"
    traceback = "TRACEBACK"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial, and why: the reason of a refusal, the failed checks, or the exception."""

    kind: Kind
    why: str = ""


def outcomes(family: str) -> dict[str, Outcome]:
    """What comes of every design on a family's tiny model, by design. One entry, `base`, if that is refused.

    Raises whatever the tiny model itself raises, without an adapter.
    """
    base, found = tiny_model(family), {}
    untouched_logits(base, _ids())
    faults: frozenset[str] = frozenset()
    for name, method in DESIGNS.items():
        trial = partial(in_bfloat16, family) if name == "in bfloat16" else partial(in_float32, base, faults)
        found[name] = _tried(trial, method)
        if found[name].kind is Kind.traceback:
            base = tiny_model(family)  # something may have stayed attached
        if name == "base":
            if found[name].kind not in (Kind.works, Kind.base):
                return found
            faults = frozenset(found[name].why.split(", "))
    return found


def _tried(trial: Callable[[Method], Outcome], method: Method) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return trial(method)
        except ConfigError as error:
            reason = error.problems[0].split("allowed: ")[1].split("\n")[0]
            return Outcome(Kind.refused, reason)
        except Exception as error:  # noqa: BLE001  whatever it is, it stands in the table
            return Outcome(Kind.traceback, first_line(f"{type(error).__name__}: {error}"))


def in_float32(base: PreTrainedModel, faults: frozenset[str], method: Method) -> Outcome:
    """A design on a model in float32; `faults` are the checks that the base model itself fails."""
    ids, before = _ids(), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    plain = untouched_logits(base, ids)
    trains_base = any(config.trains_base for config in method.values())
    with adapted(base, method, context_length=CONTEXT, seed=0) as model:
        model.eval()
        findings = Audit(model, ids, plain, seed=0).before_training()
        failed = [each.check for each in findings if each.status is Status.failed and each.check not in faults]
        if trains_base and "dead_tensors" in failed:  # tensors that the model itself does not train
            failed.remove("dead_tensors")
        _perturb(model)
        fused = _logits(model, ids)
        with torch.no_grad():
            losses = model(input_ids=ids, targets=_next(ids))
        values = {name: tensor.detach().clone() for name, tensor in model.adapter_state_dict().items()}
    wrong = [] if torch.allclose(losses, _losses(fused, ids), rtol=1e-4, atol=1e-4) else ["losses"]
    if any(not torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items()):
        wrong.append("the base model is changed")
    if not trains_base:
        with adapted(base, method, context_length=CONTEXT, seed=0, fused=False) as model:
            model.eval().load_adapter_state_dict(values, "the fused model")
            if not distance(_logits(model, ids), fused) < EXACT:
                wrong.append("fused kernels")
    if wrong:
        return Outcome(Kind.wrong, ", ".join(wrong))
    return Outcome(Kind.flagged if method else Kind.base, ", ".join(failed)) if failed else Outcome(Kind.works)


def in_bfloat16(family: str, method: Method) -> Outcome:
    """A design on a model in bfloat16: a training pass, logits and generation."""
    ids, base = _ids(), tiny_model(family, torch.bfloat16)
    try:
        dtype = base(input_ids=ids).logits.dtype
        base.generate(ids, **_GREEDY)  # pyright: ignore[reportCallIssue]
    except Exception as error:  # noqa: BLE001  a fault of the model alone
        return Outcome(Kind.base, f"{type(error).__name__} in bfloat16, without an adapter")
    with adapted(base, method, context_length=CONTEXT, seed=0) as model:
        _perturb(model)
        model.train()(input_ids=ids, targets=_next(ids)).mean().backward()
        logits = _logits(model.eval(), ids)
        base.generate(ids, **_GREEDY)  # pyright: ignore[reportCallIssue]
    if logits.dtype is not dtype or not logits.isfinite().all():
        return Outcome(Kind.wrong, f"logits in {logits.dtype}, finite: {bool(logits.isfinite().all())}")
    return Outcome(Kind.works)


def _ids() -> Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def _next(ids: Tensor) -> Tensor:
    return ids.roll(-1, dims=1)


def _losses(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), _next(ids).flatten(), reduction="none").view(ids.shape)


@torch.no_grad()
def _logits(model: AdaptedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


@torch.no_grad()
def _perturb(model: AdaptedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    for tensor in model.adapter_state_dict().values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
