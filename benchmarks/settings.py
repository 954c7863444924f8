"""What is compared: model, device, shapes, rounds, and how a run's configuration is composed."""

from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir

from benchmarks.random_models import RANDOM, STAND_IN
from hylo.cli.main import compose
from hylo.runs.config import Config

ROOT = Path(__file__).parent.parent
METHODS = ("lora", "dora", "hylorada")
DEVICES, WEIGHTS = ("cpu", "cuda"), ("float32", "bfloat16", "nf4")
PEFT = ("plain", "liger", "compiled")
"""How transformers' model computes on peft's side: as it is, with Liger's kernels, or by torch.compile."""
RANK = 8


@dataclass(frozen=True)
class Shape:
    """A batch: windows, and tokens per window."""

    batch: int
    length: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """The shape given as text, for example 4x256."""
        batch, length = text.split("x")
        return cls(int(batch), int(length))

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"

    @property
    def tokens(self) -> int:
        """Tokens per batch."""
        return self.batch * self.length


@dataclass(frozen=True)
class Subject:
    """The model that both sides train, and where."""

    model: str
    """A choice of conf/model/, or a shape with random weights (benchmarks/random_models.py)."""
    device: str = "cpu"
    """One of DEVICES."""
    weights: str = "float32"
    """One of WEIGHTS: the dtype of the base model and its arithmetic, which is bfloat16 for linear layers in nf4."""
    peft: str = "plain"
    """One of PEFT."""

    def __str__(self) -> str:
        beside = "" if self.peft == "plain" else f", peft's side {self.peft}"
        return f"`{self.model}`, {self.weights}, on {'the CPU' if self.device == 'cpu' else self.device}{beside}"

    @property
    def dtype(self) -> str:
        """The dtype of the weights that are not quantized."""
        return "bfloat16" if self.quantized else self.weights

    @property
    def quantized(self) -> bool:
        """Whether the linear layers are quantized."""
        return self.weights == "nf4"

    @property
    def whole_programs(self) -> bool:
        """Whether whole programs can be compared: a peft script reads a pretrained model in float32, as it is."""
        return self.model not in RANDOM and (self.weights, self.peft) == ("float32", "plain")


@dataclass(frozen=True)
class Settings:
    """The settings of the command line."""

    subject: Subject
    shapes: tuple[Shape, ...]
    """Batches of the parts step, memory and evaluation."""
    rounds: int
    """Measured rounds, after a warm-up round."""


def composed(subject: Subject, method: str, *overrides: str) -> Config:
    """The configuration that train.py composes for a subject, a method and overrides.

    That of a random model names a tiny one in its place: `benchmarks.sides.base_model` makes the weights.
    """
    model = STAND_IN if subject.model in RANDOM else subject.model
    where = [f"model={model}", f"model.dtype={subject.dtype}", f"trainer.device={subject.device}"]
    if subject.quantized and subject.model not in RANDOM:
        where.append(f"model.quantization={subject.weights}")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose([*where, f"method={method}", *overrides])[0]


def adapted_everywhere(subject: Subject, method: str, shape: Shape, *, rank: int = RANK) -> Config:
    """As `composed`, with a low-rank update of all linear layers but the output head and batches of a shape."""
    low_rank = ("method.low_rank.target_modules=[all-linear]", f"method.low_rank.rank={rank}")
    batch = (f"data.context_length={shape.length}", f"trainer.batch_size={shape.batch}")
    return composed(subject, method, *low_rank, *batch)
