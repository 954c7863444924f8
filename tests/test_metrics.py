"""Metrics: against loops over recorded sums, in claims, and a new one added as documented."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import program
import pytest
from launch import ROOT

from hylo.analysis.contrasts import claim_table, contrast_table
from hylo.analysis.pairs import complete_runs
from hylo.analysis.summary import summarize
from hylo.core.files import write_json
from hylo.evaluation.metrics import all_metrics, main_metric, metric_named
from hylo.runs.layout import STUDY
from hylo.runs.record import StudyRecord
from hylo.runs.store import read_study

RECORDS = ROOT / "experiments" / "ablation" / "records"


@pytest.fixture
def study(tmp_path: Path) -> StudyRecord:
    """The recorded ablation, with a claim about bits per byte."""
    copy = tmp_path / "records"
    shutil.copytree(RECORDS, copy)
    manifest = json.loads((copy / STUDY).read_text())
    claim = manifest["claims"][1] | {"id": "B1", "metric": "bits_per_byte_improvement", "value": 10.0}
    write_json(copy / STUDY, manifest | {"claims": [claim, claim | {"id": "B2", "value": 40.0}]})
    return read_study(copy)


def _nats_per_byte(study: StudyRecord, cell: str) -> float:
    """By a loop over windows, averaged over seeds."""
    found = []
    for run in complete_runs(study, cell):
        nats = size = 0.0
        for row in run.eval.to_dict("records"):
            nats += float(row["nll_sum"])
            size += float(row["bytes"])
        found.append(nats / size)
    return float(np.mean(found))


def test_the_main_metric_is_perplexity():
    assert main_metric().name == "ppl"
    assert [metric.order for metric in all_metrics()] == sorted({metric.order for metric in all_metrics()})
    assert len({metric.prefix for metric in all_metrics()}) == len(all_metrics())


@pytest.mark.parametrize("name", [metric.name for metric in all_metrics()])
def test_percent_and_difference_are_inverse(name: str):
    metric = metric_named(name)
    for percent in (-30.0, 0.0, 1e-6, 40.0):
        assert metric.percent(metric.difference(percent, 0.7), 0.7) == pytest.approx(percent, abs=1e-12)
    assert metric.percent(-0.1, 0.7) > 0, "a lower loss is an improvement"


def test_bits_per_byte_of_records(study: StudyRecord):
    summary = summarize(study).set_index("cell")
    for cell in ("base", "lora", "rslora"):
        bits = _nats_per_byte(study, cell) / math.log(2)
        assert summary[summary["reference"].isin(["", "base"])].loc[cell, "bits_per_byte"] == pytest.approx(bits)
        for run in complete_runs(study, cell):
            recorded = metric_named("bits_per_byte").window_sums(run.eval, run.thirds).sum()
            value = metric_named("bits_per_byte").value(recorded["nll_sum"], recorded["weight"])
            assert value == pytest.approx(run.result["metrics"]["bits_per_byte"], rel=1e-12)


def test_bits_per_byte_in_contrasts_and_claims(study: StudyRecord):
    base, rslora = (_nats_per_byte(study, cell) for cell in ("base", "rslora"))
    expected = 100 * (1 - rslora / base)
    table: Any = contrast_table(study)
    (row,) = table[(table["measure"] == "bits_per_byte") & (table["cell"] == "rslora")].to_dict("records")
    lora = _nats_per_byte(study, "lora")
    assert row["effect_pct"] == pytest.approx(100 * (1 - rslora / lora))
    assert row["low"] < row["effect_pct"] < row["high"]
    claims = claim_table(study).set_index("id")
    for name in ("B1", "B2"):
        assert (claims.loc[name, "measure"], claims.loc[name, "cell"]) == ("bits_per_byte", "rslora")
        assert claims.loc[name, "effect_pct"] == pytest.approx(expected)
    # Half of 10 % is there, half of 40 % is not.
    assert claims.loc["B1", "verdict"] == "reproduced"
    assert claims.loc["B2", "verdict"] == "contradicted_at_the_published_rate_only"


@pytest.mark.slow
def test_adding_a_metric_as_documented(tmp_path: Path):
    """Word for word in a copy of the project."""
    page = (ROOT / "docs" / "add-a-metric.md").read_text()
    shutil.copytree(ROOT / "hylo", tmp_path / "hylo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(RECORDS, tmp_path / "outputs" / "ablation")
    ((name, content),) = re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert not (tmp_path / name).exists()
    (tmp_path / name).write_text(content)
    (command,) = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = program.run(*command.split()[1:], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    summary = pd.read_csv(tmp_path / "outputs" / "ablation" / "summary.csv")
    contrasts = pd.read_csv(tmp_path / "outputs" / "ablation" / "contrasts.csv")
    (base,) = read_study(RECORDS).cells["base"]
    last: Any = base.thirds[base.thirds["third"] == 2]
    assert summary.loc[summary["cell"] == "base", "tail_ppl"].item() == pytest.approx(
        math.exp(last["nll_sum"].sum() / last["tokens"].sum())
    )
    assert contrasts[["tail_effect_pct", "tail_low", "tail_high"]].notna().to_numpy().all()
    assert "Tail improvement (%)" in done.stdout
