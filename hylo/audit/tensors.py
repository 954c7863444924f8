"""Checks of what is trained: every tensor that should learn can, and nothing else does."""

from collections.abc import Sequence

import torch.nn.functional as F

from hylo.audit.finding import Finding, Status, verdict
from hylo.audit.sample import Probe
from hylo.core.devices import checksum


def dead_tensors(probe: Probe) -> Finding:
    """Every trainable tensor receives a finite, non-zero gradient. Call after `backward`."""
    tensors = probe.model.adapter_state_dict()
    if not tensors:
        return _nothing_trained("dead_tensors")
    gradients = {name: tensor.grad for name, tensor in tensors.items()}
    dead = [name for name, grad in gradients.items() if grad is None or not grad.any() or not grad.isfinite().all()]
    return _counted("dead_tensors", dead, "no gradient reaches {}", f"a gradient reaches all {len(tensors)} tensors")


def frozen_tensors(probe: Probe) -> Finding:
    """No other tensor of the model has or requires a gradient. Call after `backward`."""
    trained = {id(tensor) for tensor in probe.model.adapter_state_dict().values()}
    others = {name: p for name, p in probe.model.named_parameters() if id(p) not in trained}
    if not others:
        return Finding(check="frozen_tensors", status=Status.skipped, detail="the method trains every tensor")
    open_ones = [name for name, p in others.items() if p.requires_grad or p.grad is not None]
    return _counted("frozen_tensors", open_ones, "not frozen: {}", f"all {len(others)} other tensors are frozen")


def parameter_count(probe: Probe) -> Finding:
    """The number of trainable scalars matches each component's closed formula."""
    counted = probe.model.parameter_counts()["by_component"]
    expected = probe.model.expected_counts
    if not expected:
        return _nothing_trained("parameter_count")
    wrong = [
        f"{slot} ({counted[slot]:,}, not {expected[slot]:,})" for slot in expected if counted[slot] != expected[slot]
    ]
    total = sum(counted.values())
    return _counted("parameter_count", wrong, "off the formula: {}", f"{total:,} trainable, as the formulas say")


def adapted_share(probe: Probe) -> Finding:
    """Says which share of the base model the target layers are; noted if a layer, or every expert, is left out."""
    found = {slot: share for slot, share in probe.model.coverage.items() if share is not None}
    if not found:
        return Finding(check="adapted_share", status=Status.skipped, detail="no linear layer is changed")
    partial = tuple(slot for slot, share in found.items() if share.partial)
    detail = "; ".join(str(share) if len(found) == 1 else f"{slot}: {share}" for slot, share in found.items())
    smallest = min(share.weight_share for share in found.values())
    status = Status.noted if partial else Status.passed
    return Finding(check="adapted_share", status=status, value=smallest, detail=detail, names=partial)


def backward(probe: Probe) -> None:
    """Gradients of the language-model loss on the probe's first window, in training mode, as in training."""
    probe.model.train()
    ids = probe.ids[:1]
    logits = probe.model(input_ids=ids).logits.float()
    if logits.requires_grad:
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    probe.model.eval()  # only now: a backward pass may compute layers again


def clear_gradients(probe: Probe) -> None:
    """Clear all gradients."""
    probe.model.zero_grad(set_to_none=True)


def checksums(probe: Probe) -> dict[str, int]:
    """The checksum of each trainable tensor: a fast way to tell whether it has moved."""
    return {name: checksum(tensor) for name, tensor in probe.model.adapter_state_dict().items()}


def unmoved_tensors(probe: Probe, start: dict[str, int]) -> Finding:
    """Training changed every trainable tensor."""
    if not start:
        return _nothing_trained("unmoved_tensors")
    now = checksums(probe)
    unmoved = [name for name in start if now[name] == start[name]]
    return _counted("unmoved_tensors", unmoved, "never moved: {}", f"all {len(start)} tensors moved")


def _nothing_trained(check: str) -> Finding:
    return Finding(check=check, status=Status.skipped, detail="nothing is trained")


def _counted(check: str, wrong: Sequence[str], bad: str, good: str) -> Finding:
    shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    detail = bad.format(shown) if wrong else good
    return Finding(
        check=check, status=verdict(bool(wrong)), value=len(wrong), limit=0, detail=detail, names=tuple(wrong)
    )
