"""What a source of base models provides."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import MISSING
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version
from transformers.utils.logging import disable_progress_bar

from hylo.core.cache import file_hash, text_hash
from hylo.core.errors import MissingDependency

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
    with _explained("config", folder):
        return skeleton_from_config(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def load_folder(folder: Path) -> PreTrainedModel:
    """A local folder's model in float32. Only safetensors are read: no pickle, no code from the folder.

    Weights that the files hold in float32 are mapped: processes share their pages, and a page that one of them writes
    to becomes its own copy. Weights of another type are converted, and then each process has its own.

    Raises:
        MissingDependency: the weights are not there, not all there, or not readable.
    """
    if not any(folder.glob("*.safetensors")):
        raise MissingDependency(
            f"{folder} holds no *.safetensors: not downloaded, or pickled, and hylo loads no pickled weights. "
            f"Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
        )
    with _explained("weights", folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers draws these at random and goes on
        raise MissingDependency(
            f"the weights in {folder} lack {', '.join(missing[:3])} ({len(missing)} in all)\n"
            f"    fix: a complete checkpoint of a causal language model, output head included"
        )
    return model.eval()


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A local folder's fast tokenizer."""
    with _explained("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _explained(part: str, folder: Path) -> Iterator[None]:
    """Turns the errors of transformers into one that names the folder and the reason."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MissingDependency(
            f"transformers {transformers_version} cannot read the {part} in {folder}: {reason}\n"
            f"    fix: a folder that save_pretrained wrote, of a causal language model without code of its own"
        ) from error
