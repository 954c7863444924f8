"""Whole runs under the published protocol: what is counted, recorded and reported."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from launch import TINY, composed, train, train_process

from hylo.cli.main import SESSION
from hylo.data.base import Split
from hylo.data.windows import Windows, batches
from hylo.runs.config import Config
from hylo.runs.fingerprint import fingerprint
from hylo.runs.record import RunRecord
from hylo.runs.store import read_study


@pytest.fixture(scope="module")
def lined(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of a cell on lines of 2 to 60 bytes, a third of them blank; the context is 32."""
    folder, rng = tmp_path_factory.mktemp("lined"), np.random.default_rng(2)
    overrides = [*TINY, "data=text", "data.protocol=lines"]
    for split in ("train", "validation", "test"):
        lines = ["".join(rng.choice(list("abcde "), size)) for size in rng.integers(2, 60, 60)]
        text = "".join(f"{line}\n" + "\n" * (number % 2) for number, line in enumerate(lines))
        (folder / f"{split}.txt").write_text(text)
        overrides.append(f"data.{split}_files=[{folder / split}.txt]")
    return tuple(overrides)


def only(record_of: Path, cell: str) -> RunRecord:
    return read_study(record_of).cells[cell][0]


def expected_batches(config: Config) -> list[Windows]:
    windows = SESSION.windows(config.data, config.model, Split.train)
    count = config.trainer.steps * config.trainer.gradient_accumulation_steps
    return list(islice(batches(windows, config.trainer.batch_size, np.random.default_rng([config.seed, 1])), count))


def test_a_run_counts_what_is_real(lined: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cell = (*lined, "method=lora", "data.keep_blank_lines=true", "data.loss_on_padding=true")
    assert train(*cell) == 0
    run, config = only(Path("outputs/runs"), "lora"), composed(*cell)
    drawn = expected_batches(config)
    assert run.curve["tokens"].tolist() == [int(batch.lengths.sum()) for batch in drawn]
    assert run.result["training"]["tokens"] == run.curve["tokens"].sum()
    real = sum(max(int(size) - 1, 0) for batch in drawn for size in batch.lengths)
    assert run.result["training"]["padding_share"] == pytest.approx(1 - real / (4 * 2 * 31))
    windows = SESSION.eval_windows(config.data, config.model)
    assert run.windows["length"].tolist() == windows.lengths.tolist()
    assert len(set(run.windows["length"])) > 2
    tokens: Any = run.eval.groupby("window")["tokens"].sum()
    assert tokens.tolist() == (windows.lengths - 1).tolist()
    assert run.result["data"]["protocol"] == "lines"
    assert run.result["data"]["loss_on_padding"] is True


@pytest.mark.slow
def test_loss_on_padding_is_a_switch_of_training_alone(
    lined: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Both share one base-model run on the same windows; the report states the setting and shows both metrics."""
    monkeypatch.chdir(tmp_path)
    assert train("-m", *lined, "method=lora", "data.loss_on_padding=true,false", "data.keep_blank_lines=true") == 0
    printed = capsys.readouterr().out
    (folder,) = Path("outputs").glob("sweep-*")
    study = read_study(folder)
    shares = {name: runs[0].result["training"]["padding_share"] for name, runs in study.cells.items()}
    assert shares.pop("none") is None
    with_padding, without = shares.values()
    assert with_padding > 0.4
    assert without == 0
    table: Any = pd.read_csv(folder / "summary.csv")
    untuned = only(folder, "none")
    rows: Any = untuned.eval.groupby("window")[["nll_sum", "tokens"]].sum()
    assert table["mean_window_ppl"][0] == pytest.approx(np.exp(rows["nll_sum"] / rows["tokens"]).mean())
    said = "published protocol: one line per sample, padded"
    for text in (printed, (folder / "summary.md").read_text()):
        assert text.count(said) == 2
        assert "loss on padding: in some cells; blank lines trained on: yes" in " ".join(text.split())
    assert shows_published_measure(printed)
    with_blank = composed(*lined, "data.keep_blank_lines=true")
    without_blank = composed(*lined)
    found = [SESSION.eval_windows(config.data, config.model) for config in (with_blank, without_blank)]
    pd.testing.assert_frame_equal(found[0].table(), found[1].table())
    assert found[0].lengths.min() > 1


def shows_published_measure(printed: str) -> bool:
    """Whether the console's first table has the published metric, whose header spans several lines."""
    header = printed[printed.index("Against the base model") :].partition("─")[0]
    return "window" in header


def test_packed_tables_say_nothing_of_lines(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert train(*tiny, "method=none") == 0
    printed = capsys.readouterr().out
    assert "published" not in printed
    assert not shows_published_measure(printed)
    assert only(Path("outputs/runs"), "none").result["metrics"]["mean_window_ppl"] > 1


def test_a_step_of_blank_lines_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It has no loss but is not a failure: a NaN would stop the run, and 0 would be a made-up number."""
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("a line of text\n" + "\n" * 20)
    Path("test.txt").write_text("another line\nand one more\n")
    data = ("data=text", "data.train_files=[train.txt]", "data.test_files=[test.txt]", "data.protocol=lines")
    more = (
        "trainer.max_nonfinite_steps=0",
        "trainer.steps=8",
        "method=hylorada",
        "data.keep_blank_lines=true",
        "cell=blank",
    )
    assert train(*TINY, *data, *more) == 0
    run = only(Path("outputs/runs"), "blank")
    curve: Any = run.curve
    training, losses = run.result["training"], curve["loss"]
    assert training["nonfinite_steps"] == 0
    assert losses.isna().sum() >= 6
    assert (curve["tokens"][losses.isna()] == 0).all()
    assert training["final_loss"] is None or training["final_loss"] == losses.dropna().iloc[-1]


def test_what_a_fingerprint_depends_on(lined: tuple[str, ...]):
    def marks(*overrides: str) -> list[str]:
        return [fingerprint(composed(*lined, *overrides, f"method={name}"), SESSION) for name in ("none", "lora")]

    untuned, tuned = marks()
    for setting in ("data.loss_on_padding=true", "data.keep_blank_lines=true"):
        assert marks(setting)[0] == untuned, "it cannot change the numbers of a base model"
        assert marks(setting)[1] != tuned
    assert not {untuned, tuned} & set(marks("data.protocol=packed"))


@pytest.mark.slow
def test_two_processes_train_what_one_does(lined: tuple[str, ...], tmp_path: Path) -> None:
    """Their shares of a batch have different numbers of targets: averaging per-process means would be wrong."""
    cell = [*lined, "method=hylorada", "data.keep_blank_lines=true", "trainer.steps=6", "trainer.batch_size=4"]
    cell += ["trainer.device=cpu", "cell=both", "trainer.gradient_accumulation_steps=2", "trainer.learning_rate=0.01"]
    done = train_process(*cell, "outputs=two", cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert train(*cell, f"outputs={tmp_path / 'one'}") == 0
    one, two = (only(tmp_path / name / "runs", "both") for name in ("one", "two"))
    assert two.result["environment"]["processes"] == 2
    assert two.curve["loss"].to_numpy() == pytest.approx(one.curve["loss"].to_numpy(), abs=1e-5)
    assert two.curve["grad_norm"].to_numpy() == pytest.approx(one.curve["grad_norm"].to_numpy(), rel=1e-3)
    assert two.result["metrics"]["ppl"] == pytest.approx(one.result["metrics"]["ppl"], rel=1e-5)
