"""EVA: LoRA whose A starts as what varies most in each layer's inputs (arXiv 2410.07170, section 3).

    X - mean = U S V^T        A0 = V_r^T, B0 = 0        y = W x + s B A x

X [tokens, in] are the inputs that a layer of the untouched base model gets on the first batches of training. The
library decomposes them batch by batch until the directions of every layer stand still (their cosines reach 0.99).
Every layer keeps its rank: the paper's moving of ranks between layers (rho > 1) would make the number of parameters
depend on the data, so arms of one rank would not be equal.
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
    """The start of A [r, in] by the path of its layer.

    Arguments:
        kwargs: settings of the library's LoRA with `init_lora_weights=eva`.
        model: the untouched base model, which is left as it was.
        batches: inputs of the model; input_ids [B, T].

    Raises:
        ValueError: a batch has fewer tokens than the rank, so that it has no such directions.
    """
    from peft.tuners.lora.eva import get_eva_state_dict

    config: Any = make_config("LORA", kwargs, model, transposed=has_transposed_layers(model))
    ranks = {config.r, *config.rank_pattern.values()}
    if (fewest := min(len(batch["input_ids"].flatten()) for batch in batches)) < max(ranks):
        raise ValueError(f"EVA finds {max(ranks)} directions in batches of at least as many tokens; one has {fewest}")
    modes = [(module, module.training) for module in model.modules()]
    try:
        return get_eva_state_dict(
            model,
            batches,
            peft_config=config,
            # The hidden states alone: nobody reads the logits of the whole vocabulary.
            forward_fn=lambda whole, inputs: decoder(whole)(**inputs, use_cache=False),
            gather_distributed_inputs=False,  # each process reads the same batches
            show_progress_bar=False,
        )
    finally:
        for module, mode in modes:
            module.training = mode
