"""Tiny models with random weights and a byte tokenizer, for tests and quick trials.

Their numbers say nothing about methods, and every table says so. Layers are not square and attention is grouped, so
that a transposed weight or a swapped head count cannot go unnoticed.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hylo.core.cache import text_hash
from hylo.core.registry import register
from hylo.core.schema import bounded
from hylo.models.base import ModelConfig, load_folder, skeleton_from_config
from hylo.models.weights import Quantization

END_OF_TEXT = "<|endoftext|>"


class TinyArchitecture(Enum):
    """Architectures with a tiny model."""

    llama = "llama"
    gpt2 = "gpt2"


@register("model", "tiny")
@dataclass(kw_only=True, slots=True)
class TinyModelConfig(ModelConfig):
    """Architecture, context length and weight seed of a tiny model."""

    pretrained: ClassVar[bool] = False

    architecture: TinyArchitecture = TinyArchitecture.llama
    """llama or gpt2."""
    context: int = bounded(512, ge=8)
    """The model's longest context, in tokens."""
    weights_seed: int = bounded(0, ge=0)
    """Seed of the random weights."""

    def config(self) -> PretrainedConfig:
        """The transformers config: hidden size 48, two layers, 257 tokens."""
        return self.rope.applied(self._unscaled())

    def _unscaled(self) -> PretrainedConfig:
        tokens: dict[str, Any] = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
        if self.architecture is TinyArchitecture.gpt2:
            return GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=self.context, **tokens)
        return LlamaConfig(
            hidden_size=48,
            intermediate_size=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            **tokens,
        )

    def identity(self) -> str:
        return text_hash("tiny", self.architecture.name, str(self.context), str(self.weights_seed))

    def skeleton(self) -> PreTrainedModel:
        return skeleton_from_config(self.config())

    def load(self) -> PreTrainedModel:
        dense = self.quantization is Quantization.none
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.weights_seed)
            config = self.config() if dense else self._unscaled()
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        if dense:
            return model.to(self.dtype.torch)
        with TemporaryDirectory() as folder:  # from where it is quantized, and its positions scaled, like any other
            model.save_pretrained(folder)
            return load_folder(Path(folder), self)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return byte_tokenizer()


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token per byte: 256 bytes and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
