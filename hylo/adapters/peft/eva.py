"""EVA: LoRA with A initialized to the directions of largest variance in each layer's inputs.

    X - mean = U S V^T        A0 = V_r^T, B0 = 0        y = W x + s B A x        (arXiv 2410.07170, section 3)

X [tokens, in] are the inputs of a layer of the unmodified base model on the first training batches. The library
decomposes them batch by batch until the directions of every layer have converged (their cosines reach 0.99). Every
layer keeps its rank: the paper's redistribution of ranks between layers (rho > 1) would make the number of parameters
depend on the data, so arms of equal rank would no longer be comparable.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hylo.adapters.peft.library import has_transposed_layers, make_config
from hylo.models.architecture import decoder


@torch.no_grad()
def input_directions(
    kwargs: dict[str, Any], model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The initial A [r, in] of each layer, by path.

    Args:
        kwargs: settings of the library's LoRA with `init_lora_weights=eva`.
        model: the unmodified base model, which is left unchanged.
        batches: inputs of the model; input_ids [B, T].

    Raises:
        ValueError: a batch has fewer tokens than the rank, too few for that many directions.
    """
    from peft.tuners.lora.eva import get_eva_state_dict

    config: Any = make_config("LORA", kwargs, model, transposed=has_transposed_layers(model))
    ranks = {config.r, *config.rank_pattern.values()}
    if (fewest := min(len(batch["input_ids"].flatten()) for batch in batches)) < max(ranks):
        raise ValueError(f"EVA needs batches of at least {max(ranks)} tokens, the rank; one has {fewest}")
    modes = [(module, module.training) for module in model.modules()]
    try:
        return get_eva_state_dict(
            model,
            batches,
            peft_config=config,
            # Hidden states only: the logits are not needed.
            forward_fn=lambda whole, inputs: decoder(whole)(**inputs, use_cache=False),
            gather_distributed_inputs=False,  # each process reads the same batches
            show_progress_bar=False,
        )
    finally:
        for module, mode in modes:
            module.training = mode
