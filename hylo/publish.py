"""`python -m hylo.publish outputs/ablation experiments/ablation`: publish a study's records and report.

`--so-far` publishes the cells of an unfinished study whose runs are all complete, and says which ones are missing.

    experiments/ablation/records/   the manifest and every run's record, without weights or paths of this machine
    experiments/ablation/results/   the report rebuilt from them: tables, figures, report.html

Anyone can then rebuild the report, or compute new contrasts, without a model. The table of claims in
experiments/README.md is rewritten.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from hylo.analysis.claims import read_claims
from hylo.analysis.summary import incomplete
from hylo.core.errors import HyloError
from hylo.core.files import replacing_folder, write_json
from hylo.runs.layout import AUDIT, CONFIG, EVAL, HALF, NOT_RUN, PROBE, RECORDS, RESULT, STUDY, THIRDS, TRIALS, WINDOWS
from hylo.runs.record import RunRecord, StudyRecord
from hylo.runs.store import read_study
from hylo.training.logs import CURVE, TRAJECTORY

KEPT = (EVAL, HALF, THIRDS, WINDOWS, CURVE, TRAJECTORY, AUDIT, PROBE)
"""Files of a run that are copied unchanged."""
README = "README.md"
BEGIN, END = "<!-- claims: written by python -m hylo.publish -->", "<!-- end of claims -->"
LOCAL = {"outputs": "outputs", "workers": None, "tracking": None}
"""Config keys that describe the machine, and their published values."""


def publish(folder: Path, to: Path, *, so_far: bool = False) -> Path:
    """Copy a study's records and write its report beside them.

    Args:
        folder: the study's folder, with study.json.
        to: receives `records/` and `results/`, which are replaced; its name is the study's name in tables.
        so_far: publish the complete cells of a study that is not complete.

    Returns:
        The folder of the report.

    Raises:
        HyloError: a run is not complete, or its config contains an absolute path; with `so_far`, no cell and its base
            model are complete.
        RecordError: the manifest or a record is missing or damaged.
    """
    from hylo.report import write_report

    study = read_study(folder)
    if missing := incomplete(study):
        if not so_far:
            fix = "    fix:     run the study again, or --so-far for its complete cells"
            raise HyloError("\n".join([f"{folder} is not complete:", *missing, fix]))
        study = complete_part(study)
    runs = [run for cell in study.cells.values() for run in cell]
    configs = [_config(run) for run in runs]
    if private := dict.fromkeys(said for config in configs for said in _absolute_paths(config)):
        raise HyloError(
            f"published records must not contain absolute paths: {'; '.join(private)}\n"
            f"    fix:     run the study with paths relative to the working folder"
        )
    with replacing_folder(to / RECORDS) as records, replacing_folder(to / "results") as results:
        # In outputs/ a study's name includes its overrides; the manifest and every caption state them anyway.
        write_json(records / STUDY, study.manifest | {"study": to.name})
        if (folder / TRIALS).exists():
            shutil.copyfile(folder / TRIALS, records / TRIALS)
        for run, config in zip(runs, configs, strict=True):
            _copy(run, config, records / run.folder.name)
        write_report(records, results)
    return to / "results"


def complete_part(study: StudyRecord) -> StudyRecord:
    """A study as if it had only those of its cells whose runs are all complete, with the contrasts and claims between
    them; `not_run` of its manifest names the others. Settings chosen for those stay: trials are results as well.

    Raises:
        HyloError: no cell is complete together with its base model.
    """
    whole = {
        entry["cell"]
        for entry in study.manifest["cells"]
        if sum(run.complete for run in study.cells[entry["cell"]]) == len(entry["runs"])
    }
    done = [cell for cell in study.cells if {cell, study.base_of(cell)} <= whole]
    if {study.base_of(cell) for cell in done} >= {*done}:
        fix = "run the study again"
        raise HyloError(f"{study.folder}: no cell is complete together with its base model\n    fix:     {fix}")

    def between(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [each for each in entries if {each["cell"], each["reference"]} <= {*done, ""}]

    manifest = study.manifest | {
        "base": study.base_of(done[0]),
        "cells": [entry for entry in study.manifest["cells"] if entry["cell"] in done],
        "contrasts": between(study.manifest.get("contrasts", [])),
        "claims": between(study.manifest.get("claims", [])),
        "factorial": [],
        NOT_RUN: [*(cell for cell in study.cells if cell not in done), *study.manifest.get(NOT_RUN, [])],
    }
    return StudyRecord(study.folder, manifest, {cell: study.cells[cell] for cell in done})


def write_overview(experiments: Path) -> None:
    """Write the table of all claims and their results between its markers in experiments/README.md."""
    readme = experiments / README
    if readme.exists() and BEGIN in (text := readme.read_text(encoding="utf-8")):
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        readme.write_text(f"{before}{BEGIN}\n\n{overview(experiments)}\n\n{END}{after}", encoding="utf-8")


def overview(experiments: Path) -> str:
    """Every claim with its verdict and interval, as a Markdown table; claims without results are open."""
    from hylo.report import claims_overview

    found = [pd.read_csv(path) for path in sorted(experiments.glob("*/results/claims.csv"))]
    return claims_overview(read_claims(experiments), pd.concat(found) if found else pd.DataFrame({"id": []}))


def _copy(run: RunRecord, config: Any, to: Path) -> None:
    to.mkdir()
    for name in KEPT:
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, to / name)
    overrides = [text for text in run.result.get("overrides", []) if re.split("[.=]", text)[0] not in LOCAL]
    write_json(to / RESULT, run.result | {"overrides": overrides})
    (to / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(config)))


def _config(run: RunRecord) -> Any:
    """A run's config without what describes the machine; empty if there is none."""
    path = run.folder / CONFIG
    config: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    return config and config | LOCAL


def _absolute_paths(config: Any, key: str = "") -> list[str]:
    """Each value of a config that is an absolute path, with its key."""
    if isinstance(config, dict):
        return [said for name, value in config.items() for said in _absolute_paths(value, f"{key}.{name}".strip("."))]
    if isinstance(config, list):
        return [said for value in config for said in _absolute_paths(value, key)]
    absolute = isinstance(config, str) and (Path(config).is_absolute() or config.startswith("~"))
    return [f"{key} = {config}"] if absolute else []


def main(arguments: list[str] | None = None) -> int:
    """Publish a study. Returns exit code 0, or 2 if it cannot be published."""
    parser = argparse.ArgumentParser(prog="python -m hylo.publish", description=__doc__)
    parser.add_argument("folder", type=Path, help="a study's folder, for example outputs/ablation")
    parser.add_argument("to", type=Path, help="where records/ and results/ go, for example experiments/ablation")
    parser.add_argument("--so-far", action="store_true", help="publish the complete cells of an unfinished study")
    options = parser.parse_args(arguments)
    try:
        print(publish(options.folder, options.to, so_far=options.so_far))
        write_overview(options.to.parent)
    except HyloError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
