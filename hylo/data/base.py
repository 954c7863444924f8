"""The interface of a text source: documents, in disjoint splits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from hylo.core.errors import problem
from hylo.core.schema import bounded

SHORTEST_CONTEXT = 4
"""Fewest tokens of a window."""


class Split(Enum):
    """Parts of a data set. No document is in more than one."""

    train = "trained on"
    validation = "for choosing settings; no reported number comes from it"
    test = "for reported numbers"


class Protocol(Enum):
    """What a sample consists of."""

    packed = "a window of the context length, cut from a document; no padding"
    lines = "a line of text, padded; to reproduce published numbers"
    samples = "a whole document: a short text, or prompt and response; padded"


class Bos(Enum):
    """Whether a window begins with the tokenizer's beginning-of-text token."""

    auto = "if the tokenizer puts one in front of a text by itself"
    always = "always"
    never = "never"


class Template(Enum):
    """How a conversation is written. Users type the member names."""

    auto = "by the tokenizer's own chat template; without one, plain"
    plain = "by the plain template of hylo/data/chat.py"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str


@dataclass(frozen=True)
class Document:
    """A text as shipped, without cleaning."""

    name: str
    text: str
    messages: tuple[Message, ...] = ()
    """The conversation whose contents the text joins; of it the assistant's messages are predicted. Empty: the document
    is a plain text, all of which is predicted."""


@dataclass(kw_only=True, slots=True)
class DataConfig(ABC):
    """The text and how it is cut into windows. Subclasses add their own fields."""

    TRAINING_ALONE: ClassVar[frozenset[str]] = frozenset(
        {"loss_on_padding", "keep_blank_lines", "loss_on_prompt", "pack_samples", "drop_copies"}
    )
    """Fields that cannot change the numbers of the base model."""

    name: str = MISSING
    """Short name used in tables and folder names."""
    context_length: int = bounded(256, ge=SHORTEST_CONTEXT)
    """Tokens per window, for training and evaluation. The first is context only: L tokens give L - 1 predictions."""
    stride: int | None = bounded(None, ge=1)
    """Tokens between the starts of evaluation windows, less than the context length: sliding windows. All but a
    document's first then predict only their last `stride` tokens; the others are context. None: no overlap. Training
    windows never overlap."""
    bos: Bos = Bos.auto
    """auto, always or never: put the beginning-of-text token first in every window. A model trained with one expects
    it; then every token of the text is predicted. auto: as the tokenizer does by itself."""
    eval_windows: int | None = bounded(32, ge=2)
    """Number of evaluation windows, a fixed random sample of the split's windows; None: all. Intervals need two."""
    eval_split: Split = Split.test
    """test, or validation for choosing settings."""
    protocol: Protocol = Protocol.packed
    """packed; samples: one document per sample, truncated or padded to the context length; or lines: one line of text
    per sample, truncated or padded with the end-of-text token. Samples that predict nothing are left out."""
    loss_on_padding: bool = False
    """For lines: padding counts in the training loss, as when labels are a copy of the input; never in evaluation."""
    keep_blank_lines: bool = False
    """For lines: also train on lines of fewer than two tokens. Without loss on padding they only take up places in
    batches."""
    loss_on_prompt: bool = False
    """For conversations: every token counts in the training loss; false: those of the responses alone. Evaluation is
    always of the responses alone."""
    pack_samples: bool = False
    """Training windows hold as many samples as fit, one after the other; positions and attention start again at each.
    With packed, also the ends of documents that fill no window. Evaluation always reads one sample per window."""

    drop_copies: bool = False
    """Leave out training documents that are copies of evaluated ones, or hold them; false: such data is refused."""

    @property
    def template(self) -> Template | None:
        """How conversations are written; None: documents are plain text."""
        return None

    @abstractmethod
    def documents(self, split: Split) -> list[Document]:
        """Returns the documents of a split, in a fixed order.

        Raises:
            MissingDependency: the source cannot be reached; the message says what to do.
            ConfigError: the split has no documents.
        """


def data_problems(config: DataConfig) -> Iterator[str]:
    """Yields a message for each conflict between settings."""
    if config.stride is not None and config.stride >= config.context_length:
        allowed = f"1 to {config.context_length - 1}, less than data.context_length; null: windows without overlap"
        yield problem("data.stride", config.stride, allowed, f"data.stride={config.context_length // 2}")
    if config.stride is not None and config.protocol is not Protocol.packed:
        allowed = f"null where data.protocol={config.protocol.name}, whose samples are no stretches of a document"
        yield problem("data.stride", config.stride, allowed, "data.stride=null, or data.protocol=packed")
    if config.protocol is not Protocol.lines:
        for name in ("loss_on_padding", "keep_blank_lines"):
            if getattr(config, name):
                allowed = f"false where data.protocol={config.protocol.name}, which has no lines"
                yield problem(f"data.{name}", True, allowed, f"data.protocol=lines, or data.{name}=false")
    elif config.pack_samples and (config.loss_on_padding or config.keep_blank_lines):
        allowed = "false with loss on padding or blank lines, which packing leaves out"
        yield problem("data.pack_samples", True, allowed, "data.pack_samples=false")
    if config.template is None and config.loss_on_prompt:
        allowed = "false where documents are plain text, all of which counts"
        yield problem("data.loss_on_prompt", True, allowed, "data.loss_on_prompt=false, or data=instructions")
    if config.template is not None and config.protocol is not Protocol.samples:
        allowed = "samples: conversations are neither cut into windows nor into lines"
        yield problem("data.protocol", config.protocol.name, allowed, "data.protocol=samples")
