"""Trains a tiny composed cell in a folder, without evaluation; shared by tests of the training loop."""

from pathlib import Path
from typing import Any

import torch
from adapters import values

from hylo.adapters.model import adapted
from hylo.core.devices import accelerator_for
from hylo.data.base import Split
from hylo.runs.config import Config
from hylo.runs.shared import Session
from hylo.training.loop import train

SESSION = Session()


def train_once(config: Config, folder: Path, **named: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns the record's training section and the trained tensors; resumes if the folder has a checkpoint."""
    folder.mkdir(exist_ok=True)
    accelerator = accelerator_for(config.trainer.device, config.trainer.precision)
    base = SESSION.base(config.model, accelerator.device)
    windows = SESSION.windows(config.data, config.model, Split.train)
    with adapted(base, config.components, context_length=32, seed=config.seed) as model:
        section = train(
            model, windows, config.trainer, accelerator, seed=config.seed, folder=folder, label="test", **named
        )
        return section, values(model)
