"""A model in a local folder, in the format of the Hugging Face hub (config.json, *.safetensors, tokenizer files)."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hylo.core.errors import MissingDependency
from hylo.core.registry import register
from hylo.models.base import ModelConfig, folder_identity, folder_tokenizer, load_folder, skeleton_from_folder


@register("model", "folder")
@dataclass(kw_only=True, slots=True)
class FolderModelConfig(ModelConfig):
    """A local model folder."""

    folder: str = MISSING
    """Path of the folder, relative to the directory in which train.py is started."""

    def path(self) -> Path:
        path = Path(self.folder).expanduser()
        if not (path / "config.json").is_file():
            raise MissingDependency(
                f"model.folder = {self.folder!r} holds no config.json. "
                f"Give the folder that save_pretrained wrote: model=folder model.folder=<path>"
            )
        return path

    def identity(self) -> str:
        return folder_identity(self.path())

    def skeleton(self) -> PreTrainedModel:
        return skeleton_from_folder(self.path(), self)

    def load(self) -> PreTrainedModel:
        return load_folder(self.path(), self)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return folder_tokenizer(self.path())
