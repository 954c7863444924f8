"""The interface of a source of base models."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from omegaconf import MISSING
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.utils.logging import disable_progress_bar

from hylo.core.cache import file_hash, text_hash
from hylo.core.devices import is_out_of_memory
from hylo.core.errors import MissingDependency
from hylo.models.rope import RopeScaling
from hylo.models.weights import Dtype, Quantization, let_go_of_files, loading_options, use_dequantized

LONGEST_REASON = 300
"""Characters of a library's message that are shown."""

disable_progress_bar()  # loading is short, and transformers' progress bars would clutter the log


@dataclass(kw_only=True, slots=True)
class ModelConfig(ABC):
    """Where the base model comes from. Subclasses add their own fields."""

    pretrained: ClassVar[bool] = True
    """False if the weights are random; every table says so."""

    name: str = MISSING
    """Short name for tables and folders."""
    rope: RopeScaling = field(default_factory=RopeScaling)
    """Scaling of rotary positions, for contexts beyond the model's own."""
    dtype: Dtype = Dtype.float32
    """Dtype of weights and hidden states: float32, bfloat16 or float16. What is trained is float32 in any case."""
    quantization: Quantization = Quantization.none
    """Storage of the linear layers' weights: none, int8 or nf4. Embeddings, norms and the output head keep `dtype`."""

    @abstractmethod
    def identity(self) -> str:
        """A hash of everything that determines the model's outputs, computed without loading its weights; without
        `rope`, which the identity in records adds (hylo/runs/shared.py)."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The model without weights, on the meta device, for fast checks and counts."""

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """The model with its weights as `dtype` and `quantization` say, in evaluation mode, on the CPU."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""


def skeleton_from_config(config: object) -> PreTrainedModel:
    """The model of a transformers config, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def folder_identity(folder: Path) -> str:
    """Hash of the weights, config and tokenizer of a local model folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".txt", ".model"})
    return text_hash(*(part for path in files for part in (path.name, file_hash(path))))


def check_places(folder: Path) -> None:
    """Refuse a model folder that would choose code, or files outside of itself.

    Raises:
        MissingDependency: its config names a kernel of the hub, or its index a file elsewhere.
    """
    for path in (folder / "config.json", *folder.glob("*.index.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError:
            continue  # reported by what reads it
        named = _kernels(content) if path.name == "config.json" else _shards_elsewhere(content)
        if found := sorted(named):
            raise MissingDependency(
                f"{path} names {', '.join(found[:3])}; a model folder chooses neither code nor files elsewhere\n"
                f"    fix: remove the entry, or save the model again with save_pretrained"
            )


def _kernels(config: Any) -> set[str]:
    """Implementations of attention or experts that transformers would download: those with a repository's name."""
    if not isinstance(config, dict):
        return set()
    own = {
        value for key, value in config.items() if key.strip("_").endswith(("implementation", "implementation_internal"))
    }
    inner = [_kernels(value) for value in config.values()]
    return {str(value) for value in own if isinstance(value, str) and "/" in value}.union(*inner)


def _shards_elsewhere(index: Any) -> set[str]:
    shards = index.get("weight_map", {}) if isinstance(index, dict) else {}
    names = shards.values() if isinstance(shards, dict) else []
    return {str(name) for name in names if not isinstance(name, str) or Path(name).name != name}


def config_from_folder(folder: Path, rope: RopeScaling) -> PretrainedConfig:
    """The config of a local folder, with scaled rotary positions.

    Raises:
        ConfigError: the scaling cannot work on this model.
        MissingDependency: the config is missing or unreadable.
    """
    check_places(folder)
    with _explained("config", folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return rope.applied(config)


def skeleton_from_folder(folder: Path, settings: ModelConfig) -> PreTrainedModel:
    """The model of a local folder, on the meta device."""
    config = config_from_folder(folder, settings.rope)
    with _explained("config", folder):
        return skeleton_from_config(config)


def load_folder(folder: Path, settings: ModelConfig) -> PreTrainedModel:
    """The model of a local folder, as the settings have it. Only safetensors are read: no pickle, no code from the
    folder.

    Weights that are stored in this dtype are memory-mapped copy-on-write, so processes share their pages. Others are
    converted or quantized, tensor by tensor, and each process has its own copy.

    Tensors that the model has no place for are named on standard error.

    Raises:
        MissingDependency: the weights are missing, incomplete, not finite or unreadable, or the library that quantizes
            is not installed.
    """
    if not any(folder.glob("*.safetensors")):
        raise MissingDependency(
            f"{folder} holds no *.safetensors: not downloaded, or pickled; hylo does not load pickled weights. "
            f"Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
        )
    config = config_from_folder(folder, settings.rope)
    options = loading_options(settings.dtype, settings.quantization)
    with _explained("weights", folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            **options,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, loading = loaded
    if whole := _whole_numbers(folder, model):
        raise MissingDependency(
            f"the weights in {folder} are whole numbers in {_listed(whole)}\n"
            f"    fix: a checkpoint that is not quantized"
        )
    if missing := sorted(loading["missing_keys"]):  # transformers would initialize these at random and continue
        raise MissingDependency(
            f"the weights in {folder} lack {_listed(missing)}\n"
            f"    fix: a complete checkpoint of a causal language model, output head included"
        )
    if unexpected := sorted(loading["unexpected_keys"]):  # transformers drops these
        print(f"{folder}: {type(model).__name__} has no place for {_listed(unexpected)}", file=sys.stderr, flush=True)
    if broken := [name for name, p in model.named_parameters() if not p.sum().isfinite() and not p.isfinite().all()]:
        raise MissingDependency(
            f"the weights in {folder} are not finite in {_listed(broken)}\n"
            f"    fix: copy or convert the checkpoint again; float16 cannot hold values beyond 65,504"
        )
    if settings.quantization is not Quantization.none:
        use_dequantized(model)
        let_go_of_files(model)
    return model.eval()


def _whole_numbers(folder: Path, model: PreTrainedModel) -> list[str]:
    """Stored weights that are no floating-point numbers. Masks and position ids, which older checkpoints hold, may be
    anything."""
    weights = {part for name, _ in model.named_parameters() for part in (name, name.partition(".")[2])}
    found = []
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in weights & set(file.keys()):
                if not file.get_slice(name).get_dtype().startswith(("F", "BF")):
                    found.append(name)
    return sorted(found)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])} ({len(names)} in all)"


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a local folder.

    Raises:
        MissingDependency: it is missing, unreadable, or has no fast form, which alone gives the place of each token.
    """
    with _explained("tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise MissingDependency(
            f"{folder} has a slow tokenizer ({type(tokenizer).__name__}), which does not say where in the text a token "
            f"lies\n    fix: a folder with a tokenizer.json, as fast tokenizers write it"
        )
    return tokenizer


@contextmanager
def _explained(part: str, folder: Path) -> Iterator[None]:
    """Converts errors from transformers into a MissingDependency that names the folder and the reason."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join((str(error) or type(error).__name__).split())[:LONGEST_REASON]
        raise MissingDependency(
            f"transformers {transformers_version} cannot read the {part} in {folder}: {reason}\n"
            f"    fix: a folder that save_pretrained wrote, of a causal language model without code of its own"
        ) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # an index or config without what it must hold
        raise MissingDependency(
            f"transformers {transformers_version} cannot read the {part} in {folder}: {type(error).__name__} {error}\n"
            f"    fix: copy the files again: one of the JSON files is damaged"
        ) from error
