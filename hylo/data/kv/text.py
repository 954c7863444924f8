"""The wording of key-value lists, and which codes there are: shared by the retrieval probe and its training text.

    The code for river is 4821.
    ...

    Question: what is the code for river?
    Answer: The code for river is 4821

Key-value retrieval after Liu et al. 2023, arXiv 2307.03172, in words instead of identifiers. A code is a number of four
digits. Those of the probe have a digit sum divisible by ten, those of training have not: no code is in both, and every
digit comes at every place in both, so what is learned about digits on one side holds on the other.
"""

import numpy as np

CODES = np.arange(1000, 10_000)
_CHECKED = sum(CODES // 10**place % 10 for place in range(4)) % 10 == 0
PROBE_CODES, TRAINING_CODES = CODES[_CHECKED], CODES[~_CHECKED]
"""900 and 8,100 numbers."""


def list_of_facts(words: list[str], codes: list[int]) -> str:
    """A line a fact."""
    return "".join(f"{fact(word, code)}.\n" for word, code in zip(words, codes, strict=True))


def fact(word: str, code: int) -> str:
    """What a line of a list says, and an answer; the code is the end of it."""
    return f"The code for {word} is {code}"


def question(word: str, code: int) -> str:
    """A question with its answer, to be put after a list; the code is the end of it."""
    return f"\nQuestion: what is the code for {word}?\nAnswer: {fact(word, code)}"


def draw(
    rng: np.random.Generator, words: tuple[str, ...], codes: np.ndarray, count: int
) -> tuple[list[str], list[int]]:
    """Words and codes of a list of `count` facts, each at most once in it."""
    chosen = rng.choice(len(words), count, replace=False)
    return [words[index] for index in chosen], rng.choice(codes, count, replace=False).tolist()
