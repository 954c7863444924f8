"""Variance that choosing a cell's settings adds to its contrasts, from a study's trials alone."""

from typing import Any

import numpy as np

from hylo import stats
from hylo.analysis.rates import choices
from hylo.runs.record import StudyRecord


def choice_variance(study: StudyRecord, *cells: str) -> float:
    """Sum of `hylo.stats.choice_variance` over the tuned cells among `cells`, (nats per token)^2.

    With several tuned keys, each adds the variance from the trials that share the chosen values of all other keys. The
    middle third of positions is taken to be as uncertain as the whole window: trials are chosen by PPL and record
    nothing else.
    """
    chosen = choices(study)
    return sum(
        study.once("choice variance", cell, make=lambda cell=cell: _of_cell(study, chosen[cell]))
        for cell in cells
        if cell in chosen
    )


def _of_cell(study: StudyRecord, choice: dict[str, Any]) -> float:
    table: Any = study.trials
    mine = table[table["cell"] == choice["cell"]]
    if mine.empty:  # studies older than trials with several seeds
        return 0.0
    tokens = mine.drop_duplicates("window").sort_values("window")["tokens"].to_numpy(dtype=float)
    seeds, windows = len(choice["seeds"]), len(tokens)
    sums = np.full((len(choice["tried"]), seeds, windows), np.inf)
    for place in range(len(sums)):
        found = mine[mine["setting"] == place].sort_values(["seed", "window"])["nll_sum"].to_numpy(dtype=float)
        if found.size == seeds * windows:
            sums[place] = found.reshape(seeds, windows)
    settings = np.array([each["values"] for each in choice["tried"]], dtype=float)
    best, total = np.array(choice["chosen"], dtype=float), 0.0
    for key in range(settings.shape[1]):
        line = (np.delete(settings, key, axis=1) == np.delete(best, key)).all(axis=1)
        if line.sum() > 1:
            total += stats.choice_variance(settings[line, key], sums[line], tokens)
    return total
