"""A model on the Hugging Face hub, downloaded once into the hub's own cache."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from omegaconf import MISSING
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hylo.core.errors import MissingDependency, first_line
from hylo.core.registry import register
from hylo.models.base import ModelConfig, folder_tokenizer, load_folder, skeleton_from_folder

_DESCRIPTION = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = ["*.safetensors"]


@register("model", "hub")
@dataclass(kw_only=True, slots=True)
class HubModelConfig(ModelConfig):
    """A repository on the hub."""

    repo: str = MISSING
    """owner/name on the hub."""
    revision: str = "main"
    """Branch, tag or commit. The record stores the commit it resolved to."""

    def snapshot(self, patterns: list[str]) -> Path:
        """Local folder with the repository's files that match the patterns; its name is the commit."""
        try:
            # Sharded checkpoints keep their files at the top level; subfolders hold other formats (onnx, coreml).
            return Path(
                snapshot_download(self.repo, revision=self.revision, allow_patterns=patterns, ignore_patterns=["*/*"])
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
            raise MissingDependency(
                f"model.repo = {self.repo!r} (revision {self.revision}) cannot be fetched from the Hugging Face hub: "
                f"{first_line(error)}\n"
                f"    With network: check the name, `hf auth login` for gated models, and unset HF_HUB_OFFLINE.\n"
                f"    Without network: model=smollm2_135m needs none; "
                f"model=folder model.folder=<path> reads a local copy."
            ) from error

    def identity(self) -> str:
        return f"{self.repo}@{self.snapshot(_DESCRIPTION).name}"

    def skeleton(self) -> PreTrainedModel:
        return skeleton_from_folder(self.snapshot(_DESCRIPTION), self)

    def load(self) -> PreTrainedModel:
        return load_folder(self.snapshot(_DESCRIPTION + _WEIGHTS), self)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return folder_tokenizer(self.snapshot(_DESCRIPTION))
