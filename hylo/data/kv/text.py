"""Wording and codes of key-value lists, shared by the retrieval probe and its training text.

    The code for river is 4821.
    ...

    Question: what is the code for river?
    Answer: The code for river is 4821

Key-value retrieval after Liu et al. 2023, arXiv 2307.03172, with words instead of identifiers. Codes are four-digit
numbers. Those of the probe have a digit sum divisible by ten, those of training do not, so no code is in both. Every
digit occurs at every place in both, so what is learned about digits in training holds for the probe.
"""

import numpy as np

CODES = np.arange(1000, 10_000)
_CHECKED = sum(CODES // 10**place % 10 for place in range(4)) % 10 == 0
PROBE_CODES, TRAINING_CODES = CODES[_CHECKED], CODES[~_CHECKED]
"""900 and 8,100 codes."""


def list_of_facts(words: list[str], codes: list[int]) -> str:
    """The list as text, one line per fact."""
    return "".join(f"{fact(word, code)}.\n" for word, code in zip(words, codes, strict=True))


def fact(word: str, code: int) -> str:
    """The text of a fact, in a list or an answer; ends with the code."""
    return f"The code for {word} is {code}"


def question(word: str, code: int) -> str:
    """A question with its answer, to be appended to a list; ends with the code."""
    return f"\nQuestion: what is the code for {word}?\nAnswer: {fact(word, code)}"


def draw(
    rng: np.random.Generator, words: tuple[str, ...], codes: np.ndarray, count: int
) -> tuple[list[str], list[int]]:
    """Draws distinct words and distinct codes for a list of `count` facts."""
    chosen = rng.choice(len(words), count, replace=False)
    return [words[index] for index in chosen], rng.choice(codes, count, replace=False).tolist()
