"""What a study found, in two or three sentences at the top of its page.

From the verdicts of its contrasts and claims and what they rest on. For a study or sweep that tests no component and no
claim, the cell with the largest improvement.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from hylo.analysis.contrasts import level
from hylo.analysis.verdicts import CORE, DROP, OWN_RATES, ClaimVerdict
from hylo.report.tables.columns import Row
from hylo.report.tables.numbers import interval, number
from hylo.report.tables.sentences import spaced
from hylo.report.tables.table import Table
from hylo.runs.record import StudyRecord

FEW = 3
"""Components with one verdict that are listed by name; beyond that, only their number and span."""
ONE_SEED = "One seed covers evaluation noise only and decides nothing."
NOTHING = "No cell and its base model are both complete yet."
_SIZES = {"core": f"more than {CORE:g} %", "optional": f"{DROP:g} to {CORE:g} %", "drop": f"less than {DROP:g} %"}
_HARMFUL = "harmful"
"""A component to drop whose whole interval is negative."""
_OTHERS = {
    "undecided: one seed": "undecided (one seed)",
    "unstable": "unstable (the loss jumped or was not finite)",
    "leaking": "leaking (later tokens are visible)",
}
_WITHOUT_A_CHANCE = {
    "": "",
    "untuned": "at default learning rates, ",
    "undertrained": "with undertrained arms, ",
}
"""How a sentence on components begins, by the prefix of their verdicts."""


def answer(study: StudyRecord, summary: pd.DataFrame, decided: Mapping[str, Table]) -> list[str]:
    """The sentences: findings, then what they rest on.

    Args:
        study: the recorded study.
        summary: as returned by `hylo.analysis.summary.summarize`.
        decided: tables of `hylo.report.tables.decisions.decisions` by name.
    """
    if not has_verdicts(decided):
        return _best_cell(study, summary)
    components, claims = _components_of(decided), _rows(decided, "claims")
    most = 1 - level(study)
    said = [*_retrieval(_rows(decided, "retrieval_contrasts"), most), *_components(components)]
    said += _tasks(_rows(decided, "task_contrasts"), most)
    measured = components or [row for row in claims if pd.notna(row["effect_pct"])]
    return [*said, *_claims(claims), *_basis(measured)]


def has_verdicts(decided: Mapping[str, Table]) -> bool:
    """Whether a study tests a component, a claim, or retrieval contrasts."""
    return any(map(len, (_components_of(decided), _rows(decided, "claims"), _rows(decided, "retrieval_contrasts"))))


def _rows(decided: Mapping[str, Table], name: str) -> list[Row]:
    return decided[name].frame.to_dict("records") if name in decided else []


def _components_of(decided: Mapping[str, Table]) -> list[Row]:
    return [row for row in _rows(decided, "contrasts") if row["component"]]


def _components(rows: Sequence[Row]) -> list[str]:
    """Findings of component contrasts: one sentence for those with verdicts, one per kind of lead."""
    once = len({row["component"] for row in rows}) == len(rows)
    noun = f"of {len(rows)} {'components' if once else 'component contrasts'}"
    by_start: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        start, word = _split(row["verdict"])
        if len(rows) == 1:
            return [_sentence(f"{_WITHOUT_A_CHANCE[start]}{_alone(row, word, start)}")]
        if not once:
            row = row | {"component": f"{row['component']} ({row['comparison'].replace('_', ' ')})"}
        kind = _HARMFUL if word == "drop" and row["high"] < 0 else word
        by_start.setdefault(start, {}).setdefault(kind, []).append(row)
    return [_sentence(_WITHOUT_A_CHANCE[start] + _by_size(groups, noun, start)) for start, groups in by_start.items()]


def _by_size(groups: Mapping[str, list[Row]], noun: str, start: str) -> str:
    """For example `1 of 5 components lowers perplexity by more than 5 %: name, effect; 4 by less than 2 %: span`."""
    order = [*_SIZES, _HARMFUL, *_OTHERS, *groups]
    parts, sized = [], False
    for word in sorted(groups, key=order.index):
        found = groups[word]
        count = f"{len(found)} {noun}" if not parts else str(len(found))
        singular = "s" * (len(found) == 1)
        if word == _HARMFUL:
            said = f"{count} raise{singular} {'it' if parts else 'perplexity'}{'' if start else ' (drop)'}"
        elif word in _SIZES:
            verb = "" if sized else f" lower{singular} perplexity"
            said, sized = f"{count}{verb} by {_SIZES[word]}{'' if start else f' ({word})'}", True
        else:
            said = f"{count} {_are(found)} {_other(word)}"
        parts.append(f"{said}: {_span(found) if len(found) > FEW else '; '.join(map(_named, found))}")
    return "; ".join(parts)


def _alone(row: Row, word: str, start: str) -> str:
    """The sentence on a study's only component."""
    effect, low, high = row["effect_pct"], row["low"], row["high"]
    change = f"{interval(effect, low, high)} % lower" if effect >= 0 else f"{interval(-effect, -high, -low)} % higher"
    verdict = f"{_SIZES[word]}{'' if start else f', {word}'}" if word in _SIZES else _other(word)
    return f"with {row['component']}, perplexity is {change} ({verdict})"


def _claims(rows: Sequence[Row]) -> list[str]:
    """One sentence on all published claims, by verdict."""
    groups = {each.name: [row["id"] for row in rows if row["verdict"] == each.name] for each in ClaimVerdict}
    found = {spaced(verdict): ids for verdict, ids in groups.items() if ids}
    if len(rows) > 1 and len(found) > 1:
        parts = [f"{len(ids)} {_are(ids)} {verdict} ({', '.join(ids)})" for verdict, ids in found.items()]
        return [f"Of {len(rows)} published claims {', '.join(parts[:-1])} and {parts[-1]}."]
    many = "Both" if len(rows) == 2 else f"All {len(rows)}"
    said = "The published claim is" if len(rows) == 1 else f"{many} published claims are"
    return [f"{said} {verdict} ({', '.join(ids)})." for verdict, ids in found.items()]


def _retrieval(rows: Sequence[Row], most: float) -> list[str]:
    """One sentence on contrasts of retrieval by depth; `most` is the significance level."""
    if not rows:
        return []
    flat = [
        f"{_against(row)} ({row['length']:,} {row['unit']})"
        for row in rows
        if row["p_holm"] < most and row["flattening"] > 0
    ]
    which = f": {'; '.join(flat)}" if 0 < len(flat) <= FEW else ""
    agrees = {word: sum(row["agrees"] == word for row in rows) for word in ("yes", "no", "open")}
    return [
        f"{len(flat) or 'None'} of {len(rows)} retrieval contrasts {'flattens' if len(flat) < 2 else 'flatten'} the "
        f"dependence on depth beyond chance{which}; LIM-PPL agrees in {agrees['yes']}, contradicts in {agrees['no']} "
        f"and leaves {agrees['open']} open."
    ]


def _tasks(rows: Sequence[Row], most: float) -> list[str]:
    """One sentence per task on contrasts of its main score between components; `most` is the significance level."""
    said = []
    tested = [row for row in rows if row["main"] and row["component"]]
    for task in dict.fromkeys(row["task"] for row in tested):
        own = [row for row in tested if row["task"] == task]
        moved = [
            f"{row['component']}, {interval(row['difference'], row['low'], row['high'])}"
            for row in own
            if row["p_holm"] < most
        ]
        which = f": {'; '.join(moved)}" if 0 < len(moved) <= FEW else ""
        verb = "changes" if len(moved) < 2 else "change"
        noun = "component contrasts" if len(own) > 1 else "component contrast"
        said.append(f"{len(moved) or 'None'} of {len(own)} {noun} {verb} {task} ({own[0]['metric']}){which}.")
    return said


def _basis(rows: Sequence[Row]) -> list[str]:
    """What the verdicts rest on: rates, tokens, seeds."""
    if not rows:
        return []
    files = sum(not row["rests_on"].startswith(OWN_RATES) for row in rows)
    share = "" if files == len(rows) else f"in {files} of {len(rows)} comparisons "
    kept, own = f"{share}arms kept their default learning rates", "every arm had its own tuned learning rate"
    tokens = {found[1] for row in rows if (found := re.search(r"([\d,]+) tokens", row["rests_on"]))}
    seeds = {row["seeds"] for row in rows}
    counts = [f"{_ends(tokens)} tokens"] * bool(tokens) + [_seeds(seeds)]
    said = f"Basis: {kept if files else own} ({', '.join(counts)})"
    if max(seeds) == 1:
        return [f"{said}. {ONE_SEED}"]
    leads = sum(bool(_split(row["verdict"])[0]) for row in rows)
    which = "for components these are" if leads == len(rows) else f"{leads} of {len(rows)} are"
    return [f"{said}; {which} leads, not verdicts." if leads else f"{said}."]


def _best_cell(study: StudyRecord, summary: pd.DataFrame) -> list[str]:
    """The cell with the largest improvement over its base model, and the next one."""
    known: Any = summary[summary["reference"].map(study.is_base).astype(bool) & summary["improvement_pct"].notna()]
    best: list[Row] = known.sort_values("improvement_pct", ascending=False, kind="stable").to_dict("records")
    if not best:
        return [NOTHING]

    def gain(row: Row) -> str:
        ends = (row[f"improvement_{end}"] for end in ("pct", "low", "high"))
        return f"{interval(*ends)} %"

    most = "the most: " if len(best) > 1 else ""
    said = f"Against the base model, {best[0]['cell']} lowers perplexity {most}by {gain(best[0])}, with "
    said += f"{number(best[0]['trainable_params'], 0)} trained parameters"
    if len(best) > 1:
        said += f"; second of {len(best)} cells is {best[1]['cell']}, by {gain(best[1])}"
    seeds = {row["seeds"] for row in best}
    return [f"{said}.", ONE_SEED if max(seeds) == 1 else f"Basis: {_seeds(seeds)}."]


def _named(row: Row) -> str:
    return f"{row['component']}, {interval(row['effect_pct'], row['low'], row['high'])} %"


def _against(row: Row) -> str:
    return row["component"] or f"{row['cell']} against {row['reference']}"


def _span(rows: Sequence[Row]) -> str:
    effects = [row["effect_pct"] for row in rows]
    return f"improvements from {number(min(effects), 2)} to {number(max(effects), 2)} %"


def _split(verdict: str) -> tuple[str, str]:
    """Prefix of a component verdict where an arm did not get a fair chance, and the rest."""
    start, _, word = verdict.partition(": ")
    return (start, word) if start in _WITHOUT_A_CHANCE and word else ("", verdict)


def _other(word: str) -> str:
    """A verdict other than a size, in plain words."""
    return _OTHERS.get(word, word.replace("undecided: ", "undecided between ").replace(" or ", " and "))


def _are(members: Sequence[Any]) -> str:
    return "is" if len(members) == 1 else "are"


def _seeds(counts: Iterable[int]) -> str:
    return f"{_ends({str(count) for count in counts})} seed{'s' * (max(counts) != 1)}"


def _ends(counts: Iterable[str]) -> str:
    """For example `3` or `1 to 3`."""
    ordered = sorted(counts, key=lambda text: int(text.replace(",", "")))
    return " to ".join(dict.fromkeys([ordered[0], ordered[-1]]))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
