"""Every registered tracker, discovered automatically: the contract, and what TensorBoard and trackio really store."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from launch import TINY, composed, files_below, train
from PIL import Image
from tracked import DIVERGED, KEY, NUMBERS, ROOT, STEPS, known_run, run_script

from hylo.core.errors import ConfigError
from hylo.core.registry import registered
from hylo.tracking.guard import open_tracker
from hylo.tracking.tensorboard import TensorBoardConfig, _markdown
from hylo.tracking.trackio import TrackioConfig

TRACKERS = sorted(registered("tracking"))
LIBRARIES = ("tensorboard", "trackio")
PRIVATE = ("login-of-this-user", "name-of-this-machine", "place-on-the-network", KEY, str(ROOT), sys.executable)
OPENING = """
    import os, shutil, socket, sys
    from pathlib import Path
    import hylo.tracking
    from hylo.core.registry import import_all, registered
    from hylo.tracking.guard import open_tracker
    from tracked import known_run, send_everything

    import_all(hylo.tracking)
    asked, connect = [], socket.socket.connect

    def guarded(sock, address):
        if sock.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise OSError("no network here")
        connect(sock, address)

    def looked_up(host, *rest, **more):
        asked.append(host)
        raise OSError("no network here")

    socket.socket.connect, socket.getaddrinfo = guarded, looked_up
    socket.gethostname = lambda: "name-of-this-machine"
    choice = os.environ.pop("CHOICE")

    def start(name="lora-seed0"):
        config = registered("tracking")[choice]()
        config.check()
        return open_tracker(config, known_run(Path("outputs"), name))
"""
ELSEWHERE = {
    "HF_TOKEN": "hf_login-of-this-user", "TRACKIO_SPACE_ID": "login-of-this-user/place-on-the-network",
    "TRACKIO_WEBHOOK_URL": "https://place-on-the-network.example/hook", "WANDB_MODE": "offline", "WANDB_API_KEY": KEY,
}  # fmt: skip
"""Variables that a user may have set for other projects."""


@pytest.fixture(scope="module", params=TRACKERS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tracker, and the folder after a whole run and a report were sent to it."""
    return request.param, _write(request.param, tmp_path_factory.mktemp(request.param))


def _write(choice: str, folder: Path) -> Path:
    script = """
    before = dict(os.environ)
    tracker = start()
    send_everything(tracker, Path())
    tracker.log({"train/loss": 1.0}, 999)
    assert dict(os.environ) == before
    assert asked == []
    """
    done = run_script(OPENING + script, folder, CHOICE=choice, **ELSEWHERE)
    assert done.stderr == ""
    return folder


@pytest.mark.parametrize("choice", TRACKERS)
def test_its_file_says_what_its_class_does(choice: str):
    assert composed(f"tracking={choice}").tracking == registered("tracking")[choice]()


def test_each_file_of_the_group_is_a_tracker():
    assert sorted(path.stem for path in (ROOT / "conf/tracking").glob("*.yaml")) == TRACKERS


def test_it_writes_into_its_own_folder_and_nothing_private(written: tuple[str, Path]):
    choice, folder = written
    assert not list((folder / "home").iterdir())
    assert {path.name for path in folder.iterdir()} <= {"outputs", "home", "forest.png", "forest.svg"}
    files = [path for path in folder.joinpath("outputs").rglob("*") if path.is_file()]
    assert {path.relative_to(folder / "outputs").parts[0] for path in files} == ({choice} - {"none"})
    for path in files:
        for private in (*PRIVATE, str(folder / "home")):
            assert private not in str(path.relative_to(folder))
            assert private.encode() not in path.read_bytes(), (path, private)


@pytest.mark.parametrize("choice", TRACKERS)
def test_a_folder_that_is_none_costs_one_line(choice: str, tmp_path: Path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    script = """
    send_everything(start("first"), Path())
    send_everything(start("second"), Path())
    """
    done = run_script(OPENING + script, tmp_path, CHOICE=choice, WANDB_MODE="offline")
    said = done.stderr.splitlines()
    assert len(said) == (choice != "none"), done.stderr
    assert all("could not start" in line and "tracking=none" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("choice", LIBRARIES)
def test_a_folder_that_is_lost_costs_one_line(choice: str, tmp_path: Path):
    """The libraries write in their own threads, which print tracebacks or warnings."""
    script = """
    import time
    tracker = start()
    tracker.log({"train/loss": 1.0}, 0)
    shutil.rmtree(f"outputs/{choice}")
    Path(f"outputs/{choice}").touch()
    for step in range(1, 4):
        tracker.log({"train/loss": 1.0}, step)
        time.sleep(0.7)
    send_everything(tracker, Path())
    send_everything(start("second"), Path())
    """
    done = run_script(OPENING + script, tmp_path, CHOICE=choice)
    (said,) = done.stderr.splitlines()
    assert f"tracking={choice} stopped (" in said
    assert "its record is unaffected" in said


@pytest.mark.slow
def test_no_library_is_imported_before_a_run_is_opened(tmp_path: Path):
    script = f"""
    import hylo.runs.config
    start().finish()
    assert [name for name in ("wandb", *{LIBRARIES}, "torch.utils.tensorboard") if name in sys.modules] == []
    """
    run_script(OPENING + script, tmp_path, CHOICE="none")


@pytest.mark.parametrize("choice", LIBRARIES)
def test_a_missing_library_is_told_before_anything_runs(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, choice, None)
    overrides = [text for text in TINY if not text.startswith("tracking=")]
    assert train(*overrides, "data=shakespeare", f"tracking={choice}") == 2
    message = capsys.readouterr().err
    assert f"tracking={choice} needs the library {choice}" in message
    assert f"pip install 'hylo[{choice}]'" in message
    assert files_below(tmp_path) == {}


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The event file of a run to which everything was sent."""
    folder = _write("tensorboard", tmp_path_factory.mktemp("events"))
    events = _events(folder / "outputs")
    events.folder = folder
    return events


def _events(outputs: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "tensors", "images"), 0)
    return EventAccumulator(str(outputs / "tensorboard/study/lora-seed0"), size_guidance=everything).Reload()


def _points(events: Any, name: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(name)}


def _text(events: Any, name: str) -> str:
    event = events.Tensors(f"{name}/text_summary")[-1]
    return event.tensor_proto.string_val[0].decode()


def test_tensorboard_has_every_step_and_nan_leaves_a_gap(events: Any):
    steps = [step for step in range(STEPS) if step != DIVERGED]
    assert _points(events, "train/loss") == pytest.approx({step: 4.0 - step / STEPS for step in steps})
    assert list(_points(events, "train/learning_rate")) == list(range(STEPS))
    assert set(_points(events, "train/tokens_per_second").values()) == {2048}


def test_tensorboard_has_the_numbers_of_the_result(events: Any):
    final = {name: _points(events, name) for name in events.Tags()["scalars"] if not name.startswith("train/")}
    assert final == {name: {STEPS - 1: pytest.approx(value)} for name, value in NUMBERS.items()}
    assert [_text(events, name) for name in ("status", "fingerprint", "audit")] == [
        "complete",
        "f00d",
        "causality, padding",
    ]


def test_tensorboard_has_the_configuration_as_text_and_as_hyperparameters(events: Any):
    from tensorboard.plugins.hparams import plugin_data_pb2

    told = json.loads(_text(events, "config").removeprefix("```json\n").removesuffix("\n```"))
    assert told == {
        "job_type": "cell", "tags": ["gpt2", "plays"], "model": {"path": "~/m"},
        "method": {"rank": 8, "targets": ["q", "v"], "bias": None},
    }  # fmt: skip
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    message: Any = plugin_data_pb2
    found = message.HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["method.rank"].number_value == 8
    assert {name: value.string_value for name, value in found.items() if value.string_value} == {
        "method.targets": '["q", "v"]',
        "model.path": "~/m",
    }


def test_tensorboard_has_tables_and_images(events: Any):
    assert _text(events, "summary").splitlines() == [
        "| cell | ppl | gain | params |",
        "| --- | --- | --- | --- |",
        "| untuned | 38.8 |  | none |",
        "| lora | 30.0 | 22.7 | 811008 |",
    ]
    assert len(_text(events, "claims").splitlines()) == 4
    (image,) = events.Images("forest")
    assert image.encoded_image_string == (events.folder / "forest.png").read_bytes()
    assert (image.width, image.height) == (100, 100)


def test_a_cell_of_a_markdown_table_stays_in_it():
    assert _markdown(pd.DataFrame({"a|b": ["x\ny", None]}, dtype=object)).splitlines()[2:] == ["| x y |", "|  |"]


def test_tensorboard_shows_a_run_that_goes_on_once(tmp_path: Path):
    """Without a purge, the steps after the checkpoint would appear twice."""
    for first, loss in ((0, 1.0), (5, 2.0)):
        tracker = open_tracker(TensorBoardConfig(), known_run(tmp_path))
        for step in range(first, 10):
            tracker.log({"train/loss": loss}, step)
        tracker.finish(exit_code=1)
    found = [(event.step, event.value) for event in _events(tmp_path).Scalars("train/loss")]
    assert found == [(step, 1.0 if step < 5 else 2.0) for step in range(10)]
    assert _text(_events(tmp_path), "status") == "failed"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs of the project, read with trackio's own reader."""
    folder = _write("trackio", tmp_path_factory.mktemp("project"))
    script = """
    import json, trackio
    from trackio.sqlite_storage import SQLiteStorage

    def logs(run):
        return SQLiteStorage.get_logs("hylo", run.name, max_points=None, run_id=run.id)

    runs = trackio.Api().runs("hylo")
    print(json.dumps([{"name": run.name, "config": run.config, "logs": logs(run)} for run in runs]))
    """
    done = run_script(script, folder, TRACKIO_DIR=str(folder / "outputs/trackio"))
    (run,) = json.loads(done.stdout)
    return run | {"folder": folder / "outputs/trackio"}


def _rows(project: dict[str, Any], name: str) -> dict[int, Any]:
    return {row["step"]: row[name] for row in project["logs"] if name in row}


def test_trackio_has_every_step_and_nan_leaves_a_gap(project: dict[str, Any]):
    steps = [step for step in range(STEPS) if step != DIVERGED]
    assert _rows(project, "train/loss") == {step: 4.0 - step / STEPS for step in steps}
    assert list(_rows(project, "train/learning_rate")) == list(range(STEPS))


def test_trackio_has_the_configuration_and_no_name_of_a_login(project: dict[str, Any]):
    assert project["name"] == "lora-seed0"
    told = {name: value for name, value in project["config"].items() if name != "_Created"}
    assert told == {
        "job_type": "cell", "tags": ["gpt2", "plays"], "model": {"path": "~/m"}, "_Group": "study", "_Username": "",
        "method": {"rank": 8, "targets": ["q", "v"], "bias": None},
    }  # fmt: skip


def test_trackio_has_the_numbers_of_the_result(project: dict[str, Any]):
    assert {name: _rows(project, name) for name in NUMBERS} == {
        name: {STEPS - 1: value} for name, value in NUMBERS.items()
    }
    assert "eval/probe/gap" not in {name for row in project["logs"] for name in row}
    for name, text in {"status": "complete", "fingerprint": "f00d", "audit": "causality, padding"}.items():
        assert _rows(project, name) == {STEPS - 1: {"_type": "trackio.markdown", "_value": text}}


def test_trackio_has_tables_and_images(project: dict[str, Any]):
    (table,) = _rows(project, "summary").values()
    assert table["_value"] == [
        {"cell": "untuned", "ppl": 38.8, "gain": None, "params": "none"},
        {"cell": "lora", "ppl": 30.0, "gain": 22.7, "params": "811008"},
    ]
    (image,) = _rows(project, "forest").values()
    with Image.open(project["folder"] / "media" / image["file_path"]) as picture:
        assert picture.size == (100, 100)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x"])
def test_a_bad_name_of_a_project_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"tracking\.project"):
        TrackioConfig(project=name)
