"""Settings chosen for a cell on the validation split: from which trials, under which conditions, with what result."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hylo.core.cache import text_hash
from hylo.core.registry import name_of
from hylo.core.schema import to_container
from hylo.data.base import Split
from hylo.data.tokens import bos_token
from hylo.runs.cell import Cell
from hylo.runs.layout import CHOICES, STUDY, TRIALS
from hylo.runs.shared import Session
from hylo.studies.grid_search import Setting, best_setting, ends
from hylo.training.config import TrainerConfig

ADAMW = {"beta1": "adam_beta1", "beta2": "adam_beta2", "eps": "adam_epsilon", "weight_decay": "weight_decay"}
"""Names of AdamW's settings in a condition: those in use when the first choices were published."""

NEWER = {"bos": None, "stride": None, "loss_on_prompt": False, "pack_samples": False, "drop_copies": False}
"""Keys of `data` that the first published choices did not know, each with the value that does what they did. With it a
key is no part of a condition, so those choices still hold."""


@dataclass(frozen=True)
class Choice:
    """The settings tried for a cell, and the best of them."""

    cell: str
    keys: list[str]
    tried: dict[Setting, list[float | None]]
    """Validation perplexity of each setting by seed; None where the trial failed."""
    seeds: list[int]
    defaults: list[float]
    """The value of each key without tuning."""
    condition: str
    """Hash of everything the choice depends on, see `condition`."""
    recorded: int = 0
    """Number of settings tried that were reused from a published study instead of being run again."""
    start: str = ""
    """The cell at whose chosen values the search started; empty: at the initial grid."""

    @property
    def scores(self) -> dict[Setting, float]:
        """Mean over seeds of the validation log PPL; infinite if a seed's trial failed."""
        return {setting: score(found) for setting, found in self.tried.items()}

    @property
    def best(self) -> Setting:
        """The setting with the lowest score."""
        return best_setting(self.scores)

    @property
    def at_an_end(self) -> list[str]:
        """The keys whose best value lies at an end of the values tried: a better one may lie beyond it."""
        return [self.keys[place] for place in ends(self.scores, self.best)]

    @property
    def trials(self) -> int:
        """Number of trials behind the choice, failed ones included."""
        return len(self.tried) * len(self.seeds)

    def overrides(self) -> list[str]:
        """The overrides of the cell's reported runs."""
        return [f"{key}={value!r}" for key, value in zip(self.keys, self.best, strict=True)]

    def __str__(self) -> str:
        said = " ".join(f"{key}={value:g}" for key, value in zip(self.keys, self.best, strict=True))
        published = f", {self.recorded * len(self.seeds)} of them published with a study" * bool(self.recorded)
        start = f", starting at the values of {self.start}" * bool(self.start)
        end = f"; {', '.join(self.at_an_end)} at an end of the grid: a better value may lie beyond it"
        return (
            f"{self.cell}: {said} has the lowest validation perplexity of {self.trials} trials"
            f"{published}{start}{end * bool(self.at_an_end)}"
        )

    def note(self) -> dict[str, Any]:
        """The choice as stored in a study's manifest."""
        return {
            "cell": self.cell,
            "keys": self.keys,
            "chosen": list(self.best),
            "at_an_end": self.at_an_end,
            "trials": self.trials,
            "seeds": self.seeds,
            "defaults": self.defaults,
            "tried": [{"values": list(values), "ppl": found} for values, found in self.tried.items()],
            "condition": self.condition,
            "recorded": self.recorded,
            "start": self.start,
        }


def score(found: Sequence[float | None]) -> float:
    """Mean over seeds of log PPL; infinite if one of them failed."""
    values = [value for value in found if value is not None]
    return sum(map(math.log, values)) / len(values) if values and len(values) == len(found) else math.inf


def published_choices(experiments: Path) -> Iterator[tuple[Choice, pd.DataFrame]]:
    """The choices published with studies, each with the NLL sums of its trials.

    Args:
        experiments: the folder of all studies; `records/` holds the choices of a complete one, `trials/` those of one
            still in progress.
    """
    for notes in sorted([*experiments.glob(f"*/records/{STUDY}"), *experiments.glob(f"*/trials/{CHOICES}")]):
        path = notes.with_name(TRIALS)
        if path.exists():
            sums: Any = pd.read_parquet(path)
            for note in json.loads(notes.read_text())["tuning"]:
                yield of_note(note), sums[sums["cell"] == note["cell"]]


def of_note(note: dict[str, Any]) -> Choice:
    """The choice stored in a manifest."""
    tried = {tuple(each["values"]): each["ppl"] for each in note["tried"]}
    return Choice(note["cell"], note["keys"], tried, note["seeds"], note["defaults"], note["condition"])


def no_sums() -> pd.DataFrame:
    """An empty table of trials."""
    return pd.DataFrame(columns=pd.Index(["cell", "setting", "seed", "window", "nll_sum", "tokens"]))


def condition(trial: Cell, keys: Sequence[str], session: Session) -> str:
    """Hash of what a choice depends on: everything about a trial except the searched values, its seed, and settings
    that change no number or hardly any (device, kernels, precision)."""
    config = trial.config
    content: Any = {name: to_container(getattr(config, name)) for name in ("data", "method", "trainer")}
    for name in TrainerConfig.WITHOUT_EFFECT | TrainerConfig.EVALUATION:
        del content["trainer"][name]
    content["trainer"]["decay"] = content["trainer"].pop("lr_scheduler")  # its name at that time
    content["data"]["bos"] = bos_token(session.tokenizer(config.model), config.data.bos)
    for name, before in NEWER.items():
        if content["data"][name] is before:
            del content["data"][name]
    if (template := session.template(config.data, config.model)) is not None:
        content["template"] = template
    for key in keys:
        *path, last = key.split(".")
        section = content
        for part in path:
            section = section[part]
        del section[last]
    name, settings = name_of("optimizer", type(config.trainer.optimizer)), content["trainer"].pop("optimizer")
    if name == "adamw":
        content["trainer"] |= {ADAMW[key]: value for key, value in settings.items()}
    else:
        content["optimizer"] = [name, settings]
    content["model"] = session.identity(config.model)
    splits = (Split.train, config.data.eval_split)
    content["documents"] = [session.documents_identity(config.data, split) for split in splits]
    return text_hash(json.dumps(content, sort_keys=True, default=str))[:12]
