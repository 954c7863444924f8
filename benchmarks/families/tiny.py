"""A tiny model with random weights for every family of causal language models in transformers.

Sizes are chosen by the names of a config's fields. No two of them agree where a mix-up could hide: heads and their
width, keys and queries, the FFN's width.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, CONTEXT = 97, 64
_VALUES: dict[int | None, str] = {
    48: "hidden_size n_embd d_model model_dim embed_dim word_embed_proj_dim embedding_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads num_kv_heads "
    "multi_query_group_num num_experts_per_tok num_experts_per_token moe_k",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts linear_num_heads",
    16: "head_dim kv_lora_rank qk_nope_head_dim v_head_dim",
    112: "intermediate_size n_inner ffn_dim d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size mlp_hidden_size",
    CONTEXT: "max_position_embeddings n_positions max_seq_len n_ctx max_sequence_length context_length "
    "model_max_length",
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    32: "moe_intermediate_size",
    24: "q_lora_rank",
    8: "qk_rope_head_dim sliding_window linear_head_dim",
    1: "n_group topk_group n_shared_experts first_k_dense_replace moe_num_shared_experts num_shared_experts "
    "pad_token_id",
    None: "bos_token_id eos_token_id",
}
SIZES: dict[str, Any] = {name: value for value, names in _VALUES.items() for name in names.split()}

_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 8, "mamba_n_groups": 1}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 2}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32"], _LATENT),
    **dict.fromkeys(["glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"], _LATENT),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"], _DELTA),
    "bailing_hybrid": _LATENT | {"layer_types": ["linear_attention", "full_attention"]},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cwm": _TOKENS,
    "emu3": _TOKENS,
    "mllama": _TOKENS,
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 96, "mamba_chunk_size": 8},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"]},
    "helium": {"head_dim": 12},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "mamba_d_state": 8},
    "kimi_linear": _LATENT | {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 24, "n_groups": 1, "state_size": 8},
    "modernbert-decoder": _TOKENS | {"cls_token_id": 0, "sep_token_id": 2},
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 24,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 32], "axial_pos_shape": [4, 4]},
    "stablelm": {"head_dim": 12},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_headdim": 24,
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
        "chunk_size": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_TEXT_ALONE = "holds encoders of images or sound; see the family of its language model"
NOT_TINY = {
    **dict.fromkeys(["fuyu", "gemma3", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant"], _TEXT_ALONE),
    **dict.fromkeys(["got_ocr2", "moss_transcribe_diarize", "musicgen", "musicgen_melody"], _TEXT_ALONE),
    "blt": "reads bytes in patches that a second model chooses",
    "gemma4_text": "its tables of embeddings per layer do not get smaller by its config",
    "git": "is a captioning model: the image encoder is part of it",
    "phi4_multimodal": "holds image and audio encoders of fixed size",
}
"""Families that are not tried, with the reason."""


def families() -> list[str]:
    """All model types of causal language models in the installed transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def class_name(family: str) -> str:
    """The class of a family's model."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]


def tiny_config(family: str) -> PretrainedConfig:
    """The config of a family's tiny model; raises whatever the family does not accept."""
    return _small(CONFIG_MAPPING[family], OVERRIDES.get(family, {}))


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A family's tiny model, the same at every call, in evaluation mode, with no tensor at a constant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.to(dtype)


def _small(config: type[PretrainedConfig], overrides: dict[str, Any]) -> PretrainedConfig:
    names = {*config().to_dict(), *getattr(config, "attribute_map", {})}
    sizes = {name: value for name, value in SIZES.items() if name in names}
    parts = {
        name: _small(part, OVERRIDES.get(part.model_type, {})).to_dict()
        for name, part in getattr(config, "sub_configs", {}).items()
        if hasattr(part, "model_type")  # not AutoConfig, which stands for any
    }
    settings: dict[str, Any] = sizes | parts | overrides
    return config(**settings)
