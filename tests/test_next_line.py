"""The task that ships: which line follows? Its questions, without a model."""

import re

import pytest
from launch import composed

from hylo.data.base import Split
from hylo.data.shakespeare import SHAKESPEARE
from hylo.evaluation.tasks import next_line
from hylo.evaluation.tasks.next_line import ANSWERS, CONTEXT, QUESTIONS, SHORTEST, SIMILAR, Item, items


@pytest.fixture(scope="module", params=[Split.test, Split.validation])
def asked(request: pytest.FixtureRequest) -> tuple[Split, list[Item]]:
    return request.param, items(request.param)


def test_the_plays_are_those_of_the_default_text() -> None:
    assert composed("data=shakespeare", "data.name=shakespeare").data == SHAKESPEARE


def test_the_right_answer_is_the_next_line_and_the_others_are_not(asked: tuple[Split, list[Item]]) -> None:
    """Read again from the text; a wrong answer is a line of the same play, of similar length, from another place."""
    split, questions = asked
    texts = {document.name: document.text for document in SHAKESPEARE.documents(split)}
    assert len(questions) == QUESTIONS * len(texts)
    for item in questions:
        lines = texts[item["play"]].split("\n")
        right = item["choices"][item["answer"]]
        assert right == lines[item["line"]].strip()
        assert item["context"] + lines[item["line"]] == "\n".join(lines[item["line"] - CONTEXT : item["line"] + 1])
        assert lines[item["line"] - 1].strip(), "in the middle of a speech"
        assert len(set(item["choices"])) == ANSWERS
        for choice in item["choices"]:
            assert re.search(rf"^{re.escape(choice)}\s*$", texts[item["play"]], re.MULTILINE)
            assert not re.match(r"[#*_]", choice), "spoken"
            assert len(choice) >= SHORTEST
            assert abs(len(choice) - len(right)) <= SIMILAR


def test_no_place_and_no_length_gives_the_answer_away(asked: tuple[Split, list[Item]]) -> None:
    _, questions = asked
    for guess in (lambda sizes: 0, lambda sizes: sizes.index(max(sizes)), lambda sizes: sizes.index(min(sizes))):
        right = [guess([len(choice) for choice in item["choices"]]) == item["answer"] for item in questions]
        assert 0.12 < sum(right) / len(right) < 0.35


def test_questions_are_the_same_everywhere() -> None:
    first = items(Split.test)[0]
    assert first == items(Split.test)[0]
    assert (first["play"], first["line"], first["answer"]) == ("hamlet", 141, 3)
    assert [item["play"] for item in items(Split.test)[:5]] == [*SHAKESPEARE.test_plays, "hamlet"]
    assert first["choices"][3] == "Together with that fair and warlike form"


def test_a_short_play_has_fewer_questions() -> None:
    play = next_line.Document("short", "# Short\n\n**A**  \n" + "One line that is long enough  \n" * 12)
    assert list(next_line.questions(play)) == []
