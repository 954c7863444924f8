"""Settings that cells were run at: learning rates and other tuned keys, from a study's records alone."""

import math
from typing import Any

import pandas as pd

from hylo.runs.record import RunRecord, StudyRecord

LEARNING_RATE = "trainer.learning_rate"
MULTIPLIER = "learning_rate_multiplier"


def choices(study: StudyRecord) -> dict[str, dict[str, Any]]:
    """Tuning results by cell: keys, chosen, at_an_end, trials, seeds, and tried (values and ppl by seed).

    Manifests older than the grid search over several keys hold a grid of one key and one seed.
    """
    notes = study.manifest.get("tuning", [])
    return study.once(
        "choices", make=lambda: {note["cell"]: note if "keys" in note else _of_a_grid(note) for note in notes}
    )


def choice_table(study: StudyRecord) -> pd.DataFrame:
    """One row per tuned cell: cell, chosen, trials, tried, end (as text)."""
    rows = []
    for cell, choice in choices(study).items():
        tried = sorted((tuple(each["values"]), mean_ppl(each["ppl"])) for each in choice["tried"])
        rows.append(
            {
                "cell": cell,
                "chosen": ", ".join(
                    f"{key}={value:g}" for key, value in zip(choice["keys"], choice["chosen"], strict=True)
                ),
                "trials": choice["trials"],
                "tried": "; ".join(
                    f"{', '.join(f'{value:g}' for value in values)}: {'failed' if math.isinf(ppl) else f'{ppl:.2f}'}"
                    for values, ppl in tried
                ),
                "end": ", ".join(choice["at_an_end"]) or "no",
            }
        )
    return pd.DataFrame(rows, columns=pd.Index(["cell", "chosen", "trials", "tried", "end"]))


def mean_ppl(found: list[float | None]) -> float:
    """Geometric mean over seeds; infinite if one of them failed."""
    values = [value for value in found if value is not None]
    return math.exp(sum(map(math.log, values)) / len(values)) if len(values) == len(found) > 0 else math.inf


def lead(choice: dict[str, Any], key: str) -> float:
    """By how much the chosen value of a key is better on validation documents than the one next to it in the grid, in
    percent of perplexity; the other keys are as chosen. NaN where no such neighbour was tried, or it failed.
    """
    place, chosen = choice["keys"].index(key), list(choice["chosen"])
    ppl_at = {
        each["values"][place]: mean_ppl(each["ppl"])
        for each in choice["tried"]
        if [*each["values"][:place], *each["values"][place + 1 :]] == [*chosen[:place], *chosen[place + 1 :]]
    }
    best = ppl_at.pop(chosen[place], math.nan)
    if not ppl_at:
        return math.nan
    neighbour = ppl_at[min(ppl_at, key=lambda value: abs(math.log(value / chosen[place])))]
    return 100 * (neighbour / best - 1) if math.isfinite(neighbour) else math.nan


def rate_of(run: RunRecord) -> str:
    """The learning rate of a run, with the multipliers of components that deviate from it: `0.004, landmark x8`.

    Empty where nothing was trained or the record has no configuration.
    """
    method = {slot: part for slot, part in run.config.get("method", {}).items() if part is not None}
    if not method:
        return ""
    multipliers = {slot: float(part.get(MULTIPLIER, 1)) for slot, part in method.items()}
    parts = [f"{slot} x{value:g}" for slot, value in multipliers.items() if value != 1]
    return ", ".join([f"{float(run.config['trainer']['learning_rate']):g}", *parts])


def rate_in_words(study: StudyRecord, cell: str) -> str:
    """`rate_of` a cell's runs, with ` (own)` appended if it was tuned for the cell; empty for a base model."""
    runs = [run for run in study.cells.get(cell, []) if run.complete]
    rate = rate_of(runs[0]) if runs else ""
    return f"{rate} (own)" if rate and cell in choices(study) else rate


def rates_in_words(study: StudyRecord) -> str:
    """Where the learning rates of a study's cells come from, and how many useful tokens they were trained on."""
    trained = [run for runs in study.cells.values() for run in runs if run.complete and run.result["training"]["steps"]]
    if not trained:
        return ""
    chosen = choices(study)
    tokens = sorted({run.result["training"]["tokens"] for run in trained})
    budget = " to ".join(f"{count:,}" for count in dict.fromkeys([tokens[0], tokens[-1]]))
    if not chosen:
        return f"learning rates: defaults, not tuned for any cell; trained on {budget} useful tokens"
    trials = sorted({choice["trials"] for choice in chosen.values()})
    own = "every cell" if {run.cell for run in trained} <= chosen.keys() else ", ".join(chosen)
    counts = " to ".join(str(count) for count in dict.fromkeys([trials[0], trials[-1]]))
    moved = [cell for cell, choice in chosen.items() if choice.get("start")]
    started = f", {len(moved)} searches starting where that of a compared cell ended" * bool(moved)
    return (
        f"learning rates: chosen on validation documents for {own}, {counts} trials each{started}; "
        f"trained on {budget} useful tokens"
    )


def _of_a_grid(note: dict[str, Any]) -> dict[str, Any]:
    tried = [{"values": [float(value)], "ppl": [ppl]} for value, ppl in note["validation_ppl"].items()]
    return {
        "cell": note["cell"],
        "keys": [note["key"]],
        "chosen": [note["chosen"]],
        "at_an_end": [note["key"]] * note["at_an_end_of_the_grid"],
        "trials": len(tried),
        "seeds": [None],
        "defaults": [math.nan],
        "tried": tried,
    }
