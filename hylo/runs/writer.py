"""Writes the record of a run in progress, which ends either complete or failed."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hylo.core.files import remove_drafts, remove_folder, write_json
from hylo.core.interruption import Interrupted
from hylo.core.schema import to_container
from hylo.core.sums import remove_sums, write_sums
from hylo.data.base import Protocol, Split
from hylo.data.tokens import bos_token
from hylo.runs.cell import Cell
from hylo.runs.layout import COMPLETE, CONFIG, FAILED, INTERRUPTED, RESULT, RUNNING, SCHEMA_VERSION, TRACEBACK
from hylo.runs.shared import Session
from hylo.training.checkpoint import CHECKPOINTS

MAKES_THE_RUN = ("model", "data", "method", "trainer", "seed")
"""Resolved sections of the configuration that result.json repeats; config.yaml has all of it."""


def new_result(cell: Cell, fingerprint: str, session: Session) -> dict[str, Any]:
    """The initial record of a run: everything known beforehand, and empty sections for its results."""
    config = cell.config
    return {
        "schema_version": SCHEMA_VERSION,
        "status": RUNNING,
        "fingerprint": fingerprint,
        "study": cell.group,
        "cell": cell.name,
        "seed": config.seed,
        "overrides": list(cell.overrides),
        "config": {part: to_container(getattr(config, part)) for part in MAKES_THE_RUN},
        "model": {
            "name": config.model.name,
            "pretrained": type(config.model).pretrained,
            "identity": session.identity(config.model),
        },
        "data": {
            "name": config.data.name,
            "context_length": config.data.context_length,
            "bos": bos_token(session.tokenizer(config.model), config.data.bos),
            "protocol": config.data.protocol.name,
            "stride": config.data.stride,
            "loss_on_padding": config.data.loss_on_padding,
            "keep_blank_lines": config.data.keep_blank_lines,
            "loss_on_prompt": config.data.loss_on_prompt,
            "pack_samples": config.data.pack_samples,
            "eval_split": config.data.eval_split.name,
            "eval_identity": session.documents_identity(config.data, config.data.eval_split),
            **_truncation(cell, session),
        },
        "audit": {},
        "params": {},
        "metrics": {},
        "training": {},
        "environment": {},
    }


def _truncation(cell: Cell, session: Session) -> dict[str, Any]:
    """How many samples were cut off or left out, by split; nothing if documents are not samples."""
    data, model = cell.config.data, cell.config.model
    if data.protocol is not Protocol.samples:
        return {}
    splits = [data.eval_split, *([Split.train] if cell.config.components else [])]
    found = {split.name: session.samples(data, model, split) for split in splits}
    return {
        "truncated": {name: samples.truncated for name, samples in found.items()},
        "left_out": {name: samples.left_out for name, samples in found.items()},
    }


@contextmanager
def recording(cell: Cell, folder: Path, result: dict[str, Any]) -> Iterator[None]:
    """Keeps `result` in the folder: `running` during the block, then `complete`, `interrupted`, or `failed` with a
    traceback. A complete record gets checksums."""
    remove_sums(folder)
    remove_drafts(folder)
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(to_container(cell.config))))
    (folder / TRACEBACK).unlink(missing_ok=True)
    write_json(folder / RESULT, result)
    try:
        yield
    except Interrupted as stopped:
        write_json(folder / RESULT, result | {"status": INTERRUPTED, "error": str(stopped)})
        raise
    except Exception as error:
        (folder / TRACEBACK).write_text(traceback.format_exc())
        write_json(folder / RESULT, result | {"status": FAILED, "error": f"{type(error).__name__}: {error}"})
        raise
    write_json(folder / RESULT, result | {"status": COMPLETE})
    for name in CHECKPOINTS:
        remove_folder(folder / name)
    write_sums(folder)
