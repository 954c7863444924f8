"""What a source of base models provides."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from omegaconf import MISSING
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from hylo.cache import file_hash, text_hash
from hylo.errors import MissingDependency

disable_progress_bar()  # transformers' bars for loading a second's worth of weights only clutter a run's log


@dataclass(kw_only=True, slots=True)
class ModelConfig(ABC):
    """Where the base model comes from. Subclasses add their own fields."""

    pretrained: ClassVar[bool] = True
    """False where the weights are random: every table says so."""

    name: str = MISSING
    """Short name for tables and folders."""

    @abstractmethod
    def identity(self) -> str:
        """A hash of everything that decides the model's outputs, without loading its weights."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The model without weights, on the meta device: for checks and counts in well under a second."""

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """The model with its weights in float32, in evaluation mode, on the CPU."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""


def skeleton_from_config(config: object) -> PreTrainedModel:
    """A model of a transformers config on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def folder_identity(folder: Path) -> str:
    """Hash of the weights, config and tokenizer of a local model folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".txt", ".model"})
    return text_hash(*(part for path in files for part in (path.name, file_hash(path))))


def skeleton_from_folder(folder: Path) -> PreTrainedModel:
    """A local folder's model on the meta device."""
    return skeleton_from_config(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def load_folder(folder: Path) -> PreTrainedModel:
    """A local folder's model in float32. Only safetensors are read: no pickle, no code from the folder."""
    if not any(folder.glob("*.safetensors")):
        raise MissingDependency(
            f"{folder} holds no *.safetensors; hylo loads no pickled weights. "
            f"Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return model.eval()


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A local folder's fast tokenizer."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
