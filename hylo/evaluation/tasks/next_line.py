"""Which line follows? Multiple choice from the held-out plays of the default text: real, and without a network.

A question is six lines of a play, as in the file, the last of them in the middle of a speech. The answers are the next
line of the speech and three lines of similar length that continue other speeches of the same play, so that neither
length nor form gives the right one away; guessing is right in a quarter of the questions. Questions come from the plays
that reported numbers come from, examples of few-shot prompts from the validation plays; no run is trained on either.
After the next-sentence choice of SWAG (Zellers et al. 2018, arXiv 1808.05326), with answers drawn from the same text.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from hylo.data.base import Document, Split
from hylo.data.shakespeare import SHAKESPEARE

NAME = "shakespeare_next_line"
QUESTIONS = 75
"""Questions per play."""
CONTEXT, ANSWERS = 6, 4
"""Lines of a question, and answers to choose from."""
SHORTEST = 25
"""Characters of an answer, at least: shorter lines say too little."""
SIMILAR = 3
"""Most characters by which a wrong answer is longer or shorter than the right one."""

Item = dict[str, Any]
"""play, line (index in the file), context, choices, answer (index of the right one)."""


def config() -> dict[str, Any]:
    """The task in lm-eval's terms."""
    return {
        "task": NAME,
        "custom_dataset": _splits,
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "validation",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1},
    }


def items(split: Split) -> list[Item]:
    """The questions of a split, one of each play in turn, so that the first ones are of all plays; the same on every
    machine."""
    by_play = [[*questions(document)] for document in SHAKESPEARE.documents(split)]
    return [item for turn in zip_longest(*by_play) for item in turn if item is not None]


def questions(play: Document) -> Iterator[Item]:
    """`QUESTIONS` questions about a play, or fewer if it has fewer lines that can be asked for."""
    lines = play.text.split("\n")
    asked = np.array([place for place in range(CONTEXT, len(lines)) if _continues(lines, place)])
    lengths = np.array([len(lines[place].strip()) for place in asked])
    rng = np.random.default_rng(list(play.name.encode()))
    for chosen in np.sort(rng.permutation(len(asked))[:QUESTIONS]):
        right = lines[asked[chosen]].strip()
        alike = np.abs(lengths - lengths[chosen]) <= SIMILAR
        others = list(dict.fromkeys(lines[place].strip() for place in rng.permutation(asked[alike])))
        wrong = [line for line in others if line != right][: ANSWERS - 1]
        if len(wrong) < ANSWERS - 1:
            continue
        answer = int(rng.integers(ANSWERS))
        place = int(asked[chosen])
        context = "\n".join(lines[place - CONTEXT : place]) + "\n"
        choices = [*wrong[:answer], right, *wrong[answer:]]
        yield {"play": play.name, "line": place, "context": context, "choices": choices, "answer": answer}


def _continues(lines: list[str], place: int) -> bool:
    """Whether a line continues a speech, after another line of it, and says enough."""
    return _spoken(lines[place]) and _spoken(lines[place - 1]) and len(lines[place].strip()) >= SHORTEST


def _spoken(line: str) -> bool:
    """Whether a line is spoken: neither empty nor a heading, a speaker's name or a stage direction."""
    return bool(line.strip()) and line[0] not in "#*_"


def _splits(**unused: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split.name: Dataset.from_list(items(split)) for split in (Split.test, Split.validation)})
