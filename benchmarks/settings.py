"""What is compared: model, shapes, rounds, and how a run's configuration is composed."""

from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir

from hylo.cli.main import compose
from hylo.runs.config import Config

ROOT = Path(__file__).parent.parent
METHODS = ("lora", "dora", "hylorada")
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
class Settings:
    """The settings of the command line."""

    model: str
    """A choice of conf/model/."""
    shapes: tuple[Shape, ...]
    """Batches of the parts step, memory and evaluation."""
    rounds: int
    """Measured rounds, after a warm-up round."""


def composed(model: str, method: str, *overrides: str) -> Config:
    """The configuration that train.py composes from a model, a method and overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose([f"model={model}", f"method={method}", *overrides])[0]


def adapted_everywhere(model: str, method: str, length: int, *, rank: int = RANK) -> Config:
    """As `composed`, with a low-rank update of all linear layers but the output head and windows of `length` tokens."""
    low_rank = ("method.low_rank.target_modules=[all-linear]", f"method.low_rank.rank={rank}")
    return composed(model, method, *low_rank, f"data.context_length={length}")
