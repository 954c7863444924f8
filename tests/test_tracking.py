"""W&B: contents of an offline run, read from its file, and what happens if W&B cannot be used."""

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

import pytest
import wandb
from offline_wandb import BLOCK, HEADER, OfflineRun, read_offline_run, record_payloads
from tracked import DIVERGED, KEY, NUMBERS, ROOT, STEPS, Tracked, known_run, run_script, send_everything

from hylo.core.errors import ConfigError
from hylo.core.schema import bound_problems
from hylo.tracking._wandb import _has_login
from hylo.tracking.guard import open_tracker
from hylo.tracking.wandb import Mode, WandbConfig, requested_mode


@dataclass
class Recorded:
    folder: Path
    file: Path
    run: OfflineRun
    sent: Tracked
    home: Path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory):
    """One run with a curve, a result, a table and figures, recorded offline although WANDB_MODE says online."""
    folder, home = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_MODE", "online")
        patch.setenv("WANDB_API_KEY", KEY)
        before = dict(os.environ)
        tracker = open_tracker(WandbConfig(mode=Mode.offline), known_run(folder))
        sent = send_everything(tracker, folder)
        assert dict(os.environ) == before, "tracking changed the environment of the process"
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        yield Recorded(folder, file, read_offline_run(file), sent, home)
        wandb.teardown()


def test_run_is_identified_and_carries_the_config(recorded: Recorded):
    run = recorded.run
    assert (run.identity.project, run.identity.run_group) == ("hylo", "study")
    assert (run.identity.display_name, run.identity.job_type) == ("lora-seed0", "cell")
    assert list(run.identity.tags) == ["gpt2", "plays"]
    assert run.config["method"] == {"rank": 8, "targets": ["q", "v"], "bias": None}
    assert run.exit_code == 0


def test_every_step_of_the_curve_is_there_and_nan_leaves_a_gap(recorded: Recorded):
    assert recorded.file.stat().st_size > BLOCK, "the reader's block boundary is not exercised"
    rows = {row["_step"]: row for row in recorded.run.history if "train/learning_rate" in row}
    assert list(rows) == list(range(STEPS))
    assert "train/loss" not in rows[DIVERGED]
    for expected in recorded.sent.curve.to_dict("records"):
        row = rows[expected["step"]]
        assert row["train/learning_rate"] == 5e-4
        assert row["train/grad_norm"] == 1.0
        assert row["train/tokens_per_second"] == 2048
        assert expected["step"] == DIVERGED or row["train/loss"] == expected["loss"]


def test_summary_has_the_flat_numbers_of_the_result(recorded: Recorded):
    assert {key: value for key, value in recorded.run.summary.items() if key.startswith(("eval", "params", "tr"))} == {
        **NUMBERS,
        # W&B itself keeps the last value of each curve:
        "train/loss": recorded.sent.curve["loss"].iloc[-1], "train/learning_rate": 5e-4, "train/grad_norm": 1.0,
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
    assert image.read_bytes() == recorded.sent.figure.read_bytes()
    assert recorded.run.summary["forest.path"] == logged["forest.path"]
    # Nothing else is uploaded: no code, git state, package list, console output, or description of the machine.
    assert sorted(recorded.run.files) == sorted(logged[f"{name}.path"] for name in ("summary", "claims", "forest"))


def test_no_key_and_no_private_path_is_written_and_the_home_folder_stays_empty(recorded: Recorded):
    assert recorded.run.config["model"] == {"path": "~/m"}
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


def start_and(script: str, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a script that begins W&B runs with `start(name)`."""
    opening = """
        import sys, time
        from pathlib import Path
        from tracked import known_run
        from hylo.tracking.guard import open_tracker
        from hylo.tracking.wandb import Mode, WandbConfig

        def start(name, **config):
            return open_tracker(WandbConfig(**config), known_run(Path("outputs"), name))
    """
    return run_script(textwrap.dedent(opening) + textwrap.dedent(script), folder, **variables)


def offline_runs(folder: Path) -> dict[str, OfflineRun]:
    """The runs written by a script, by name."""
    runs = [read_offline_run(file) for file in folder.glob("outputs/wandb/offline-run-*/run-*.wandb")]
    return {run.identity.display_name: run for run in runs}


def test_disabled_means_that_wandb_is_not_imported(tmp_path: Path):
    start_and(
        """
        tracker = start("a", mode=Mode.online)
        tracker.log({"train/loss": 1.0}, step=0)
        tracker.finish()
        assert "wandb" not in sys.modules
        assert not Path("outputs").exists()
        """,
        tmp_path,
        WANDB_API_KEY=KEY,
        WANDB_MODE="disabled",
    )


@pytest.mark.parametrize("login", ["variable", "netrc", "malformed", "none"])
def test_login_is_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: str):
    """A malformed key counts as a login: W&B then reports what is wrong, instead of silently running offline."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:8080")
    wandb.teardown()  # it reads WANDB_BASE_URL once per session
    if login == "netrc":
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:8080 login user password {KEY}\n")
    elif login != "none":
        monkeypatch.setenv("WANDB_API_KEY", KEY if login == "variable" else KEY[:20])
    assert _has_login() is (login != "none")
    wandb.teardown()


@pytest.fixture
def closed_port():
    """A loopback port that refuses connections: bound, so that nothing else takes it, but not listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("login", "reason"), [("variable", "connection refused"), ("none", "no API key")])
def test_online_out_of_reach_falls_back_to_offline_and_warns_once(
    tmp_path: Path, closed_port: int, login: str, reason: str
):
    """With a login, `auto` goes online and finds no server; without one, `online` must not prompt for a key."""
    variables = {"WANDB_BASE_URL": f"http://127.0.0.1:{closed_port}"}
    if login == "variable":
        variables["WANDB_API_KEY"] = KEY
    mode = "online" if login == "none" else "auto"
    done = start_and(
        f"""
        import wandb  # its import takes seconds on a busy machine and is not what the time-out bounds
        for name, seconds in (("first", 1 + 8), ("second", 1)):  # 8 s: starting and ending W&B's service
            before = time.monotonic()
            tracker = start(name, mode=Mode.{mode}, init_timeout_seconds=1.0)
            assert time.monotonic() - before < seconds, name
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
    runs = offline_runs(tmp_path)
    assert {name: [row["train/loss"] for row in run.history] for name, run in runs.items()} == {
        "first": [1.0],
        "second": [1.0],
    }
    written = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr


@pytest.mark.slow
def test_loss_of_the_service_costs_one_warning_and_the_next_run_is_tracked(tmp_path: Path):
    done = start_and(
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
    (file,) = (
        file for file in tmp_path.glob("outputs/wandb/offline-run-*/run-*.wandb") if b"second" in file.read_bytes()
    )
    run = read_offline_run(file)
    assert [row["train/loss"] for row in run.history] == [2.0]
    assert run.exit_code == 1


def test_unwritable_folder_means_no_tracking(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    occupied = tmp_path / "outputs"
    occupied.write_text("a file where a folder should be")
    tracker = open_tracker(WandbConfig(mode=Mode.offline), known_run(occupied))
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
    assert requested_mode(WandbConfig(mode=mode)) == expected


def test_unknown_environment_mode_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match=r"WANDB_MODE = 'ofline'\n.*offline"):
        WandbConfig().check()


def test_bad_settings_are_refused():
    assert len(list(bound_problems(WandbConfig(init_timeout_seconds=0.0, finish_timeout_seconds=math.inf)))) == 2
    with pytest.raises(ConfigError, match=r"tracking\.project = 'a/b'"):
        WandbConfig(project="a/b")
