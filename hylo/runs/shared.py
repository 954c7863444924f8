"""Resources shared by the cells of a sweep, created once per process: weights, tokenizer, documents, windows."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hylo.audit import probe_ids, untouched_logits
from hylo.audit.contribution import Reading, chosen_windows, read
from hylo.core.devices import checksum, say_once
from hylo.core.schema import to_container
from hylo.data.base import DataConfig, Document, Protocol, Split
from hylo.data.chat import template_text
from hylo.data.lines import cut_lines, predicting
from hylo.data.overlap import Overlap, overlap
from hylo.data.packing import cut_with_ends, pack
from hylo.data.samples import Samples, cut_samples
from hylo.data.tokens import bos_token, documents_identity, tokenize
from hylo.data.windows import Windows, cut_windows, sample
from hylo.evaluation.probes.base import Probe, ProbeConfig
from hylo.models.base import ModelConfig
from hylo.models.weights import LIBRARY, Dtype, Quantization, library_version, outlined

T = TypeVar("T")


class Session:
    """Loads resources on first use and keeps them: all data, and the weights of one model at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def identity(self, model: ModelConfig) -> str:
        """Hash of everything that determines the base model's outputs."""
        return self.once("identity", model, make=lambda: f"{model.identity()}{model.rope.mark()}{held_as(model)}")

    def skeleton(self, model: ModelConfig) -> PreTrainedModel:
        """The base model on the meta device."""

        def make() -> PreTrainedModel:
            return outlined(model.skeleton(), model.dtype, model.quantization)

        return self.once("skeleton", model, make=make)

    def tokenizer(self, model: ModelConfig) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.once("tokenizer", model, make=model.tokenizer)

    def base(self, model: ModelConfig, device: torch.device) -> PreTrainedModel:
        """The base model with its weights, shared by all cells. Requesting another model releases this one."""
        key = _key("base", model, device)
        if key not in self._kept:
            for other in [name for name in self._kept if name.startswith(("base ", "audit "))]:
                del self._kept[other]
        return self.once("base", model, device, make=lambda: on_device(model.load(), device))

    def audit_sample(self, data: DataConfig, model: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tokens that every cell of this model and data is audited on, and the base model's logits for them."""

        def make() -> tuple[Tensor, Tensor]:
            ids = probe_ids(self.eval_windows(data, model), device)
            return ids, untouched_logits(self.base(model, device), ids)

        return self.once("audit sample", data, model, device, make=make)

    def contribution(self, data: DataConfig, model: ModelConfig, device: torch.device) -> tuple[Windows, Reading]:
        """The training windows on which contributions are measured, and the base model's reading of them."""

        def make() -> tuple[Windows, Reading]:
            windows = chosen_windows(predicting(self.windows(data, model, Split.train)))
            base = self.base(model, device)
            return windows, read(base, base, windows)

        return self.once("audit contribution", data, model, device, make=make)

    def documents(self, data: DataConfig, split: Split) -> list[Document]:
        """The documents of a split; of those to train on, without copies of evaluated ones if `drop_copies`."""

        def make() -> list[Document]:
            found = data.documents(split)
            if split is not Split.train or not data.drop_copies:
                return found
            copied = self._overlap(data, found).copied
            if copied:
                say_once(f"data={data.name}: training documents left out, copies of evaluated ones: {len(copied)}")
            return [document for place, document in enumerate(found) if place not in copied]

        return self.once("documents", data, split, make=make)

    def documents_identity(self, data: DataConfig, split: Split) -> str:
        """Hash of the documents of a split."""
        return self.once("hash", data, split, make=lambda: documents_identity(self.documents(data, split)))

    def overlap(self, data: DataConfig) -> Overlap:
        """Text that is trained on twice, or trained on and evaluated on. Says so, once for a sweep."""

        def make() -> Overlap:
            found = self._overlap(data, self.documents(data, Split.train))
            say_once(*found.said(data.name))
            return found

        return self.once("overlap", data, make=make)

    def _overlap(self, data: DataConfig, trained: list[Document]) -> Overlap:
        whole = data.protocol is Protocol.samples  # of which the shortest are evaluated too
        evaluated = self.documents(data, data.eval_split)
        return overlap(trained, evaluated, shortest=1 if whole else data.context_length)

    def windows(self, data: DataConfig, model: ModelConfig, split: Split) -> Windows:
        """All windows of a split, in the model's tokens, including blank lines if `keep_blank_lines`. Those trained on
        never overlap."""

        def make() -> Windows:
            packs = data.pack_samples and split is Split.train
            documents, tokenizer = self.documents(data, split), self.tokenizer(model)
            if data.protocol is Protocol.samples:
                windows = self.samples(data, model, split).windows
            elif data.protocol is Protocol.lines:
                windows = cut_lines(documents, tokenizer, data)
            else:
                tokens, bos = tokenize(documents, tokenizer), bos_token(tokenizer, data.bos)
                stride = None if split is Split.train else data.stride
                windows = (
                    cut_with_ends(tokens, data.context_length, bos=bos)
                    if packs
                    else cut_windows(tokens, data.context_length, bos=bos, stride=stride)
                )
            return pack(windows) if packs else windows

        return self.once("windows", data, model, split, make=make)

    def samples(self, data: DataConfig, model: ModelConfig, split: Split) -> Samples:
        """The documents of a split as samples, in the model's tokens. Says what did not fit, once for a sweep."""

        def make() -> Samples:
            everything = data.loss_on_prompt and split is Split.train
            found = cut_samples(self.documents(data, split), self.tokenizer(model), data, everything=everything)
            say_once(*found.said(data.name, split))
            return found

        return self.once("samples", data, model, split, make=make)

    def template(self, data: DataConfig, model: ModelConfig) -> str | None:
        """The chat template that conversations are written with; None: documents are plain text."""
        return template_text(self.tokenizer(model), data.template) if data.template else None

    def eval_windows(self, data: DataConfig, model: ModelConfig) -> Windows:
        """The windows that every cell of this model and data is evaluated on."""

        def make() -> Windows:
            return sample(predicting(self.windows(data, model, data.eval_split)), data.eval_windows)

        return self.once("evaluated", data, model, make=make)

    def highest_token(self, data: DataConfig, model: ModelConfig, *, trained: bool) -> int:
        """The highest token id that is evaluated on, or trained on if `trained`."""

        def make() -> int:
            read = [self.eval_windows(data, model)]
            read += [self.windows(data, model, Split.train)] if trained else []
            return max(int(windows.ids.max(initial=0)) for windows in read)

        return self.once("highest", data, model, trained, make=make)

    def probe(self, probe: ProbeConfig, model: ModelConfig) -> Probe:
        """The probe's questions, in the model's tokens, the same for every cell of this model."""
        return self.once("questions", probe, model, make=lambda: probe.build(self.tokenizer(model)))

    def once(self, kind: str, *parts: object, make: Callable[[], T]) -> T:
        key = _key(kind, *parts)
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def held_as(model: ModelConfig) -> str:
    """The part of a model's identity that says how its weights are held; empty for float32, as in older records."""
    parts = [] if model.dtype is Dtype.float32 else [model.dtype.name]
    if model.quantization is not Quantization.none:
        parts += [model.quantization.name, f"{LIBRARY} {library_version()}"]
    return "".join(f", {part}" for part in parts)


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves the model to a device and returns it."""
    torch.nn.Module.to(model, device)
    return model


def _key(kind: str, *parts: object) -> str:
    return f"{kind} {json.dumps([[type(part).__name__, to_container(part)] for part in parts], default=str)}"


def weights_checksum(model: PreTrainedModel) -> dict[str, int]:
    """Checksums of a model's tensors, for a quick check that no weight has changed."""
    return {name: checksum(tensor) for name, tensor in model.state_dict().items()}
