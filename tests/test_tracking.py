"""Tracking: what an offline W&B run holds, read back from its file, and what happens when W&B cannot be used."""

import json
import math
import os
import socket
import struct
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import wandb
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from offline_wandb import BLOCK, HEADER, OfflineRun, read_offline_run, record_payloads
from omegaconf import OmegaConf

from hylo.core.errors import ConfigError
from hylo.core.schema import bound_problems
from hylo.tracking.base import Backend, Mode, TrackingConfig, _requested_mode, log_report, log_run, open_tracker
from hylo.tracking.wandb import _has_login

ROOT = Path(__file__).parents[1]
KEY = "0123456789abcdef" * 2 + "01234567"  # well-formed, of no account
STEPS, DIVERGED = 150, 7  # enough steps to fill more than one block of the file; the step with a NaN loss
RESULT = {
    "status": "complete",
    "fingerprint": "f00d",
    "audit": {"failed": ["causality", "padding"]},
    "params": {"trainable": 811008},
    "metrics": {"ppl": 27.7, "lim_ppl": 26.5, "bins": [1.0, 2.0], "probe": {"gap": math.nan, "ends": 0.9}},
    "training": {"seconds": 12.5, "nonfinite_steps": 1},
}


@dataclass
class Recorded:
    folder: Path
    file: Path
    run: OfflineRun
    curve: pd.DataFrame
    summary: pd.DataFrame
    figure: Path
    home: Path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory):
    """One run with a curve, a result, a table and figures, recorded offline although WANDB_MODE says online."""
    folder, home = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("home")
    figure = folder / "forest.png"
    Figure().savefig(figure)
    Figure().savefig(folder / "forest.svg")
    step = np.arange(STEPS)
    loss = np.where(step == DIVERGED, math.nan, 4.0 - step / STEPS)
    columns = {"step": step, "loss": loss, "learning_rate": 5e-4, "grad_norm": 1.0, "tokens": 1024, "seconds": 0.5}
    curve = pd.DataFrame(columns)
    summary = pd.DataFrame(
        {"cell": ["untuned", "lora"], "ppl": [38.8, 30.0], "gain": [math.nan, 22.7], "params": ["none", 811008]}
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_MODE", "online")
        patch.setenv("WANDB_API_KEY", KEY)
        before = dict(os.environ)
        tracker = open_tracker(
            TrackingConfig(mode=Mode.offline), folder=folder, group="study", name="lora-seed0", run_id="f00d",
            resolved={"method": {"rank": 8}, "model": {"path": str(home / "model")}}, job_type="cell", tags=["a", "b"],
        )  # fmt: skip
        log_run(tracker, curve, RESULT)
        claims = summary.drop(columns=["gain", "params"])
        log_report(tracker, summary, [folder / "forest.svg", figure], {"claims": claims})
        tracker.finish()
        assert dict(os.environ) == before, "tracking changed the environment of the process"
        (file,) = folder.glob("wandb/offline-run-*/run-f00d.wandb")
        yield Recorded(folder, file, read_offline_run(file), curve, summary, figure, home)
        wandb.teardown()


def test_run_is_identified_and_carries_the_config(recorded: Recorded):
    run = recorded.run
    assert (run.identity.project, run.identity.run_group, run.identity.run_id) == ("hylo", "study", "f00d")
    assert (run.identity.display_name, run.identity.job_type) == ("lora-seed0", "cell")
    assert list(run.identity.tags) == ["a", "b"]
    assert run.config["method"] == {"rank": 8}
    assert run.exit_code == 0


def test_every_step_of_the_curve_is_there_and_nan_leaves_a_gap(recorded: Recorded):
    assert recorded.file.stat().st_size > BLOCK, "the reader's block boundary is not exercised"
    rows = {row["_step"]: row for row in recorded.run.history if "train/learning_rate" in row}
    assert list(rows) == list(range(STEPS))
    assert "train/loss" not in rows[DIVERGED]
    for expected in recorded.curve.to_dict("records"):
        row = rows[expected["step"]]
        assert row["train/learning_rate"] == 5e-4
        assert row["train/grad_norm"] == 1.0
        assert row["train/tokens_per_second"] == 2048
        assert expected["step"] == DIVERGED or row["train/loss"] == expected["loss"]


def test_summary_has_the_flat_numbers_of_the_result(recorded: Recorded):
    assert {key: value for key, value in recorded.run.summary.items() if key.startswith(("eval", "params", "tr"))} == {
        "eval/ppl": 27.7, "eval/lim_ppl": 26.5, "eval/probe/ends": 0.9, "params/trainable": 811008,
        "training/seconds": 12.5, "training/nonfinite_steps": 1,
        # W&B itself keeps the last value of each curve:
        "train/loss": recorded.curve["loss"].iloc[-1], "train/learning_rate": 5e-4, "train/grad_norm": 1.0,
        "train/tokens_per_second": 2048,
    }  # fmt: skip
    assert (recorded.run.summary["status"], recorded.run.summary["fingerprint"]) == ("complete", "f00d")
    assert recorded.run.summary["audit"] == "causality, padding"


def test_table_and_png_are_files_that_the_history_refers_to(recorded: Recorded):
    logged = recorded.run.history[-1] | recorded.run.history[-2] | recorded.run.history[-3]
    table = recorded.file.parent / "files" / logged["summary.path"]
    assert (logged["summary._type"], logged["summary.nrows"]) == ("table-file", 2)
    assert json.loads(table.read_text()) == {
        "columns": ["cell", "ppl", "gain", "params"],
        "data": [["untuned", 38.8, None, "none"], ["lora", 30.0, 22.7, "811008"]],
    }
    assert (logged["claims._type"], logged["claims.ncols"]) == ("table-file", 2)
    image = recorded.file.parent / "files" / logged["forest.path"]
    assert logged["forest._type"] == "image-file"
    assert image.read_bytes() == recorded.figure.read_bytes()
    assert recorded.run.summary["forest.path"] == logged["forest.path"]
    # Nothing else is uploaded: no code, git state, package list, console output, or description of the machine.
    assert sorted(recorded.run.files) == sorted(logged[f"{name}.path"] for name in ("summary", "claims", "forest"))


def test_no_key_and_no_private_path_is_written_and_the_home_folder_stays_empty(recorded: Recorded):
    assert recorded.run.config["model"] == {"path": "~/model"}
    assert not list(recorded.home.iterdir())
    written = [path for path in recorded.folder.rglob("*") if path.is_file()]
    assert written
    for path in written:
        content = path.read_bytes()
        for private in (KEY, str(recorded.home), str(ROOT), sys.executable):
            assert private.encode() not in content, (path, private)


def test_reader_joins_chunks_and_refuses_damage(recorded: Recorded):
    def chunk(kind: int, data: bytes) -> bytes:
        return struct.pack("<IHB", crc32(data, crc32(bytes([kind]))), len(data), kind) + data

    first = BLOCK - len(HEADER) - 7 - 3  # leaves 3 bytes of padding, too few for the header of a chunk
    log = HEADER + chunk(2, b"a" * first) + b"\0" * 3 + chunk(4, b"b") + chunk(1, b"c")
    assert list(record_payloads(log)) == [b"a" * first + b"b", b"c"]
    content = bytearray(recorded.file.read_bytes())
    content[len(content) // 2] ^= 1
    with pytest.raises(ValueError, match="damaged chunk"):
        list(record_payloads(bytes(content)))


def run_script(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh process, whose W&B session knows only these variables and an empty home folder."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_") and key != "NETRC"}
    opening = """
        import sys, time
        from pathlib import Path
        from hylo.tracking.base import Backend, Mode, TrackingConfig, open_tracker

        def start(run_id, **config):
            return open_tracker(TrackingConfig(**config), folder=Path("outputs"), group="study", name="lora-seed0",
                                run_id=run_id, resolved={}, job_type="cell", tags=[])
    """
    (folder / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(opening) + textwrap.dedent(script)],
        cwd=folder,
        env=clean | {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_without_tracking_wandb_is_not_imported(tmp_path: Path):
    run_script(
        """
        import os

        for variables, config in (
            ({"WANDB_MODE": "online"}, {"backend": Backend.none}),
            ({"WANDB_MODE": "disabled"}, {"mode": Mode.online}),
        ):
            os.environ.update(variables)
            tracker = start("a", **config)
            tracker.log({"train/loss": 1.0}, step=0)
            tracker.finish()
            assert "wandb" not in sys.modules, variables
            assert not Path("outputs").exists(), variables
        """,
        tmp_path,
        WANDB_API_KEY=KEY,
    )


@pytest.mark.parametrize("login", ["variable", "netrc", "malformed", "none"])
def test_login_is_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: str):
    """A malformed key counts: W&B then says what is wrong with it, instead of the run going offline in silence."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:8080")
    wandb.teardown()  # it reads WANDB_BASE_URL once a session
    if login == "netrc":
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:8080 login user password {KEY}\n")
    elif login != "none":
        monkeypatch.setenv("WANDB_API_KEY", KEY if login == "variable" else KEY[:20])
    assert _has_login() is (login != "none")
    wandb.teardown()


@pytest.fixture
def closed_port():
    """A loopback port that refuses connections: bound, so nobody else takes it, and not listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.mark.parametrize(("login", "reason"), [("variable", "connection refused"), ("none", "no API key")])
def test_online_out_of_reach_falls_back_to_offline_and_warns_once(
    tmp_path: Path, closed_port: int, login: str, reason: str
):
    """With a login `auto` goes online and finds no server; without one `online` must not wait for a typed key."""
    variables = {"WANDB_BASE_URL": f"http://127.0.0.1:{closed_port}"}
    if login == "variable":
        variables["WANDB_API_KEY"] = KEY
    mode = "online" if login == "none" else "auto"
    done = run_script(
        f"""
        import wandb  # its import takes seconds on a busy machine and is not what the time-out bounds
        for run_id, seconds in (("first", 1 + 8), ("second", 1)):  # 8 s: starting and ending W&B's service
            before = time.monotonic()
            tracker = start(run_id, mode=Mode.{mode}, init_timeout_seconds=1.0)
            assert time.monotonic() - before < seconds, run_id
            tracker.log({{"train/loss": 1.0}}, step=0)
            tracker.finish()
        """,
        tmp_path,
        **variables,
    )
    (warning,) = done.stderr.splitlines()
    for part in ("W&B cannot be used online", reason, "wandb login", "tracking.mode=offline", "tracking=none"):
        assert part in warning
    assert done.stdout.splitlines() == ["W&B records offline; upload with: wandb sync outputs/wandb/offline-run-*"]
    for run_id in ("first", "second"):
        (file,) = tmp_path.glob(f"outputs/wandb/offline-run-*/run-{run_id}.wandb")
        assert [row["train/loss"] for row in read_offline_run(file).history] == [1.0]
    written = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr


def test_loss_of_the_service_costs_one_warning_and_the_next_run_is_tracked(tmp_path: Path):
    done = run_script(
        """
        import psutil

        tracker = start("first")  # no login: auto is offline, without a warning
        tracker.log({"train/loss": 1.0}, step=0)
        children = psutil.Process().children(recursive=True)
        assert children
        for child in children:
            child.kill()
        psutil.wait_procs(children)
        for step in range(1, 4):
            tracker.log({"train/loss": 1.0}, step)
        tracker.image("missing", Path("missing.png"))
        tracker.finish(exit_code=1)
        tracker = start("second")
        tracker.log({"train/loss": 2.0}, step=0)
        tracker.finish(exit_code=1)
        """,
        tmp_path,
    )
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("W&B stopped (")
    (file,) = tmp_path.glob("outputs/wandb/offline-run-*/run-second.wandb")
    run = read_offline_run(file)
    assert [row["train/loss"] for row in run.history] == [2.0]
    assert run.exit_code == 1


def test_unwritable_folder_means_no_tracking(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    occupied = tmp_path / "outputs"
    occupied.write_text("a file where a folder should be")
    tracker = open_tracker(
        TrackingConfig(mode=Mode.offline), folder=occupied, group="g", name="n", run_id=None, resolved={},
        job_type="cell", tags=[],
    )  # fmt: skip
    tracker.log({"train/loss": 1.0}, step=0)
    assert [record.message for record in caplog.records if "W&B could not start" in record.message]


@pytest.mark.parametrize(
    ("mode", "variable", "expected"),
    [
        (Mode.auto, None, None),
        (Mode.auto, "offline", "offline"),
        (Mode.auto, "dryrun", "offline"),
        (Mode.auto, "online", "online"),
        (Mode.online, "offline", "online"),
        (Mode.offline, "online", "offline"),
        (Mode.online, "disabled", "disabled"),
    ],
)
def test_environment_decides_for_auto_and_can_disable(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, variable: str | None, expected: str | None
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert _requested_mode(TrackingConfig(mode=mode)) == expected


def test_unknown_environment_mode_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match=r"WANDB_MODE = 'ofline'\n.*offline"):
        _requested_mode(TrackingConfig())


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/tracking").glob("*.yaml")))
def test_shipped_configs_compose(name: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_object(compose(overrides=[f"+tracking={name}"]).tracking)
    assert isinstance(config, TrackingConfig)
    assert config.backend is Backend[name]
    assert config == TrackingConfig(backend=Backend[name]), "the YAML and the defaults of the class have drifted apart"


def test_bad_settings_are_refused():
    assert len(list(bound_problems(TrackingConfig(init_timeout_seconds=0.0, finish_timeout_seconds=math.inf)))) == 2
    with pytest.raises(ConfigError, match=r"tracking\.project = 'a/b'"):
        TrackingConfig(project="a/b")
