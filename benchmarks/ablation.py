"""The whole ablation: one call of train.py, compared with seven peft + transformers scripts run one after the other.

peft has neither position bias nor landmarks: for cells that have them, the script trains peft's rsLoRA with DoRA, which
is less work. hylo's time includes the audit of every run, the records and the report.
"""

import time
from collections.abc import Iterator
from typing import Any

import pandas as pd

from benchmarks.results import Row, measured
from benchmarks.scripts import hylo_seconds, peft_cell, prepared
from benchmarks.settings import Settings

PART = "ablation"
CELLS = {
    "base": "none",
    "lora": "lora",
    "rslora": "rslora",
    "rslora_dora": "rslora_dora",
    "rslora_dora_pb": "rslora_dora",
    "hylorada_dora": "rslora_dora",
    "hylorada_dora_learnable": "rslora_dora",
}
"""The script's method for each cell of experiments/ablation/study.yaml."""
SAME = ("base", "lora", "rslora", "rslora_dora")
"""Cells that are the same on both sides."""


def rows(settings: Settings) -> Iterator[Row]:
    """Total seconds, and the perplexities of the cells that are the same."""
    with prepared(settings.subject) as inputs:
        outputs = inputs.folder / "outputs"
        print("ablation: train.py study=ablation ...", flush=True)
        ours = hylo_seconds(inputs, outputs, ["study=ablation"])
        (summary,) = outputs.glob("*/summary.csv")
        table: Any = pd.read_csv(summary).drop_duplicates("cell").set_index("cell")
        theirs, began, perplexities = 0.0, time.monotonic(), {}
        for number, (cell, method) in enumerate(CELLS.items(), 1):
            seconds, perplexities[cell] = peft_cell(inputs, method)
            theirs += seconds
            left = (time.monotonic() - began) / number * (len(CELLS) - number)
            told = f"script {number}/{len(CELLS)} ({cell}) {seconds:.0f} s, ETA {left:.0f} s"
            print(f"ablation: train.py took {ours:.0f} s; {told}", flush=True)
        yield measured(PART, "ablation, seven cells", "seconds_in_all", [ours], [theirs])
        for cell in SAME:
            yield measured(PART, f"ablation, {cell}", "perplexity", [float(table["ppl"][cell])], [perplexities[cell]])
