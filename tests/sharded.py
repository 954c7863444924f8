"""Started by torchrun in test_sharding.py: what each process holds of a divided model, and what it computes."""

import json
import sys

import torch
import torch.distributed as dist
from adapters import CONTEXT, method, perturbed, tiny, tokens

from hylo.models.sharding import held, shard, sharded_names, shared_copy

architecture, name, kernels = sys.argv[1:]
dist.init_process_group("gloo")
base = tiny(architecture)
model = perturbed(shared_copy(base), method(name), fused=kernels == "fused")
shard(model.base, torch.device("cpu"), whole=list(model.adapter_state_dict().values()))
ids, targets = tokens(2, CONTEXT), tokens(2, CONTEXT, seed=5)


def held_now() -> int:
    """Scalars of the decoder layers' weights in this process."""
    divided = set(sharded_names(model))
    return sum(held(each).numel() for key, each in model.named_parameters() if key in divided)


whole = sum(each.numel() for key, each in model.named_parameters() if key in set(sharded_names(model)))
before = held_now()
losses = model(input_ids=ids, targets=targets)
losses.sum().backward()
with torch.no_grad():
    again = model(input_ids=ids, targets=targets)
found = {
    "losses": losses.tolist(),
    "again": again.tolist(),
    "gradients": {key: each.grad.tolist() for key, each in model.adapter_state_dict().items() if each.grad is not None},
    "held": [before, held_now()],
    "whole": whole,
    "base": all(type(each) is torch.nn.Parameter for each in base.parameters()),
}
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
