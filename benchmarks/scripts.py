"""Wall-clock time of whole programs: train.py, and one peft + transformers script per cell."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.settings import ROOT, Subject, composed
from benchmarks.sides import SESSION
from hylo.core.errors import ConfigError, problem
from hylo.data.base import Split
from hylo.models.gguf_wheel import GgufWheelConfig
from hylo.runs.config import Config


@dataclass(frozen=True)
class Inputs:
    """What the scripts read, in a folder that is removed afterwards."""

    subject: Subject
    folder: Path
    weights: Path
    """Folder with the same model in the hub's format."""


@contextmanager
def prepared(subject: Subject) -> Iterator[Inputs]:
    """The model and the plays as files. hylo's own cache is filled as well; neither counts in any time.

    Raises:
        ConfigError: a peft script cannot read the model.
    """
    if not subject.whole_programs:
        allowed = "without ablation and sharing: whole programs are compared on pretrained models in float32"
        raise ConfigError(problem("--only", str(subject), allowed, "--only step,memory,evaluation"))
    config = composed(subject, "lora")
    with tempfile.TemporaryDirectory(prefix="hylo-bench-") as name:
        folder = Path(name)
        for split in (Split.train, Split.test):
            SESSION.windows(config.data, config.model, split)
            (folder / split.name).mkdir()
            for number, document in enumerate(SESSION.documents(config.data, split)):
                path = folder / split.name / f"{number:02}_{document.name}.txt"
                path.write_text(document.text, encoding="utf-8", newline="")
        yield Inputs(subject, folder, _weights(config, folder / "model"))


def hylo_seconds(inputs: Inputs, outputs: Path, arguments: Sequence[str]) -> float:
    """Seconds of train.py, starting from an empty folder of records."""
    subject = inputs.subject
    shared = (f"model={subject.model}", f"trainer.device={subject.device}", "tracking=none", f"outputs={outputs}")
    return _run([sys.executable, str(ROOT / "train.py"), *arguments, *shared], subject)[0]


def peft_seconds(inputs: Inputs, method: str, *, steps: int | None = None, eval_windows: int | None = None) -> float:
    """Seconds of one cell's script."""
    return peft_cell(inputs, method, steps=steps, eval_windows=eval_windows)[0]


def peft_cell(
    inputs: Inputs, method: str, *, steps: int | None = None, eval_windows: int | None = None
) -> tuple[float, float]:
    """Seconds of one cell's script, and the perplexity it printed."""
    folders = {"model": inputs.weights, "train": inputs.folder / "train", "test": inputs.folder / "test"}
    options = {"method": method, "steps": steps, "eval-windows": eval_windows} | folders
    given = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    seconds, printed = _run([sys.executable, str(ROOT / "benchmarks" / "peft_script.py"), *given], inputs.subject)
    return seconds, json.loads(printed.splitlines()[-1])["perplexity"]


def _weights(config: Config, folder: Path) -> Path:
    if isinstance(config.model, GgufWheelConfig):
        return config.model.converted()
    config.model.load().save_pretrained(folder)
    config.model.tokenizer().save_pretrained(folder)
    return folder


def _run(command: Sequence[str], subject: Subject) -> tuple[float, str]:
    began = time.perf_counter()
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if subject.device == "cpu" else {}  # Trainer takes a GPU that it sees
    settings = os.environ | {"HF_HUB_OFFLINE": "1"} | hidden
    done = subprocess.run(command, cwd=ROOT, env=settings, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[1]).name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began, done.stdout
