"""Overrides of a method's keys without the slot name."""

import pytest
from launch import composed, train

from hylo.cli.shorthand import with_slots
from hylo.core.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("method=lora method.rank=4", "method.low_rank.rank=4"),
        ("method.rank=4", "method.low_rank.rank=4"),  # the default method
        ("method=landmark_pa method.num_landmarks=2", "method.landmark.num_landmarks=2"),
        ("method=hylorada_dora_learnable method.temperature=0.1", "method.landmark.temperature=0.1"),  # a replaced slot
        ("method=lora,rslora method.rank=4,8", "method.low_rank.rank=4,8"),
        ("method=peft_vera method.kwargs.r=4", "method.peft.kwargs.r=4"),
        ("method=lora +method.rank=4", "+method.low_rank.rank=4"),
        # Ambiguous or already complete overrides are unchanged.
        ("method=hylorada method.num_buckets=4", "method.num_buckets=4"),
        ("method=lora,peft_lora method.rank=4", "method.rank=4"),
        ("method=lora method.low_rank.rank=4", "method.low_rank.rank=4"),
        ("method=lora method.low_rank=null", "method.low_rank=null"),
        ("method=lora method.rnk=4", "method.rnk=4"),
        ("method=nonesuch method.rank=4", "method.rank=4"),
        ("method=../lora method.rank=4", "method.rank=4"),
        ("method=none method.rank=4", "method.rank=4"),
    ],
)
def test_slots(given: str, expected: str):
    assert with_slots(given.split())[-1] == expected


def test_on_the_command_line_and_in_studies(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert train(*tiny, "method=lora", "method.rank=2", "--cfg", "job") == 0
    assert "rank: 2" in capsys.readouterr().out
    assert composed("method=lora", "method.rank=2") == composed("method=lora", "method.low_rank.rank=2")
    with pytest.raises(ConfigError, match="num_buckets is not a key"):
        composed("method=hylorada", "method.num_buckets=4")
