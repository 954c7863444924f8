"""Which component flattens the U of retrieval, and whether LIM-PPL agrees: contrasts of probed cells.

Flattening is accuracy at the ends minus accuracy in the middle, for the reference minus the cell: positive where the
cell depends less on depth. A cell that forgets everything is flat too, so the difference in accuracy is reported with
it. Both in percentage points, paired by seed and text, by `hylo.stats.effect`; p-values Holm-corrected over the rows
with the same length.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from hylo import stats
from hylo.analysis.contrasts import contrasts_of, effect_of, level, p_value, percent
from hylo.analysis.pairs import paired_runs
from hylo.analysis.retrieval import ends_minus_middle, retrieval_contrast, retrieval_table
from hylo.evaluation.metrics import metric_named
from hylo.runs.record import StudyRecord

CONTRASTS = [
    "cell", "reference", "component", "length", "unit", "seeds", "flattening", "low", "high", "p_holm", "accuracy",
    "accuracy_low", "accuracy_high", "lim_effect_pct", "lim_low", "lim_high", "agrees",
]  # fmt: skip
CELLS = ["cell", "length", "unit", "seeds", "accuracy", "ends_minus_middle", "low", "high"]


def retrieval_contrasts(study: StudyRecord) -> pd.DataFrame:
    """One row per named contrast of two probed cells and length; columns CONTRASTS.

    - `agrees`: whether both effects have the same sign, yes or no; open unless both intervals exclude 0.
    """
    rows: list[dict[str, Any]] = []
    ends = ends_minus_middle(study)
    lengths = dict(sorted(zip(ends["length"], ends["unit"], strict=True)))
    for length, unit in lengths.items():
        probed = set(ends["cell"][ends["length"] == length])
        named = [each for each in contrasts_of(study) if {each["cell"], each["reference"]} <= probed]
        found = [_row(study, each, length) for each in named if paired_runs(study, each["cell"], each["reference"])]
        for row, adjusted in zip(found, stats.holm([row.pop("p") for row in found]) if found else [], strict=True):
            rows.append(row | {"unit": unit, "p_holm": float(adjusted)})
    return pd.DataFrame(rows, columns=pd.Index(CONTRASTS))


def retrieval_cells(study: StudyRecord) -> pd.DataFrame:
    """One row per probed cell and length: mean accuracy over depths, and the depth of the U; columns CELLS.

    In percent and percentage points.
    """
    by_depth: Any = retrieval_table(study).groupby(["cell", "length"], sort=False)["accuracy"]
    accuracy = (100 * by_depth.mean()).rename("accuracy").reset_index()
    depth: Any = ends_minus_middle(study)
    ends = {"value": "ends_minus_middle", "low": "low", "high": "high"}
    scaled = depth.assign(**{name: 100 * depth[name] for name in ends}).rename(columns=ends)
    return scaled.merge(accuracy, on=["cell", "length"])[CELLS]


def _row(study: StudyRecord, contrast: dict[str, Any], length: int) -> dict[str, Any]:
    cell, reference = contrast["cell"], contrast["reference"]
    deeper, better = retrieval_contrast(study, cell, reference, length)
    flattening, accuracy = (_effect(study, values) for values in (-deeper, better))
    row = {"cell": cell, "reference": reference, "component": contrast["component"] or "", "length": length}
    row |= {"seeds": flattening.seeds, "p": p_value(study, deeper, np.ones(deeper.shape[1]))}
    row |= _points("flattening", "", flattening)
    row |= _points("accuracy", "accuracy_", accuracy)
    metric = metric_named("lim_ppl")
    lim = effect_of(study, cell, reference, metric)
    found = percent(lim, metric) if lim else dict.fromkeys(("effect_pct", "low", "high"), math.nan)
    row |= {f"lim_{name}": value for name, value in found.items()}
    return row | {"agrees": _agree((row["low"], row["high"]), (row["lim_low"], row["lim_high"]))}


def _effect(study: StudyRecord, values_SN: np.ndarray) -> stats.Effect:
    return stats.effect(values_SN, np.ones(values_SN.shape[1]), level=level(study))


def _points(name: str, prefix: str, effect: stats.Effect) -> dict[str, float]:
    return {name: 100 * effect.value, f"{prefix}low": 100 * effect.low, f"{prefix}high": 100 * effect.high}


def _agree(one: tuple[float, float], other: tuple[float, float]) -> str:
    signs = [1 if low > 0 else -1 if high < 0 else 0 for low, high in (one, other)]
    return "open" if 0 in signs else "yes" if signs[0] == signs[1] else "no"
