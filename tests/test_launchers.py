"""Cells on engines that exist: a Slurm cluster and Ray, with jobs that are killed, requeued and found again."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import fake_slurm
import pytest
from launch import ROOT, composed, train_process

from hylo.core.errors import ConfigError, MissingDependency, RecordError
from hylo.core.files import exclusive, owner_of
from hylo.core.interruption import Interrupted, stop_if_asked, stopping_on_signals
from hylo.launch.ledger import Ledger
from hylo.launch.local import LocalConfig, _begin
from hylo.launch.slurm_commands import in_queue
from hylo.launch.watch import Watch
from hylo.runs.cell import Cell, check
from hylo.runs.layout import RESULT
from hylo.runs.shared import Session
from hylo.runs.status import Status, status_of
from hylo.runs.store import read_study
from hylo.studies.states import states

CELLS = ("-m", "method=lora,rslora", "model=tiny_llama", "trainer=smoke", "tracking=none", "data.context_length=32")
LONG = (*CELLS, "data.eval_windows=6", "trainer.steps=120", "trainer.checkpoint_seconds=0.2")
"""A sweep of two trained cells that takes a few seconds, so that there is time to disturb it."""
SLURM = ("launcher=slurm", "launcher.cpus=1", "launcher.memory_gib=2", "launcher.minutes=5", "launcher.poll_seconds=1")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the commands are those of a real Slurm."""
    pytest.importorskip("submitit")
    real = (
        shutil.which("sinfo") is not None
        and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0
    )
    for name, value in {} if real else fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    return real


def wait_until(true: Callable[[], object], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.05)


def sweep_of(folder: Path) -> Path:
    (sweep,) = folder.glob("outputs/sweep-*")
    return sweep


def disturb(sweep: Path, signals: dict[str, int]) -> list[Path]:
    """Send a signal to the process of each cell as soon as it has a checkpoint. Returns the folders of the runs."""
    left, runs = dict(signals), []

    def done() -> bool:
        for checkpoint in sweep.glob("*/checkpoint"):
            run = checkpoint.parent
            process = re.search(r"process (\d+)", owner_of(run) or "")
            if process and (number := left.pop(run.name.partition("-")[0], None)):
                os.kill(int(process[1]), number)
                runs.append(run)
        return not left

    wait_until(done)
    return sorted(runs)


def output_of(job: str, sweep: Path) -> str:
    """What a job has printed."""
    path = sweep / "jobs" / f"{job}_0_log.out"
    return path.read_text() if path.exists() else ""


def studies(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "hylo.studies", command, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def bits(sweep: Path) -> dict[str, bytes]:
    """The measurements of the sweep's runs, by cell."""
    return {name: (runs[0].folder / "eval.parquet").read_bytes() for name, runs in read_study(sweep).cells.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local")
    assert train_process(*LONG, cwd=folder).returncode == 0
    return bits(sweep_of(folder))


@pytest.mark.slow
def test_slurm_jobs_may_be_requeued_killed_and_left_alone(
    slurm: bool, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """One job is told that its time is up, another is killed; the process that submitted them has long ended."""
    left = train_process(*LONG, *SLURM, "launcher.wait=false", cwd=tmp_path)
    assert left.returncode == 0, left.stderr
    assert "3 cells in 3 jobs" in left.stdout
    assert "python -m hylo.studies status outputs/sweep-" in left.stdout
    sweep = sweep_of(tmp_path)
    first = Ledger(sweep).job_of()
    lora, rslora = disturb(sweep, {"lora": signal.SIGUSR2, "rslora": signal.SIGKILL})
    wait_until(lambda: "back into the queue" in output_of(first[lora.name], sweep))
    if slurm:  # it waits two minutes before it starts a requeued job
        hurry = ["scontrol", "update", f"JobId={first[lora.name]}", "StartTime=now"]
        wait_until(lambda: subprocess.run(hurry, capture_output=True, check=False).returncode == 0)
    wait_until(lambda: first[rslora.name] not in in_queue())
    assert "no heartbeat from process" in studies("status", sweep).stdout or status_of(rslora).state == "running"
    done = train_process(*LONG, *SLURM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    now = Ledger(sweep).job_of()
    assert now[lora.name] == first[lora.name], "a requeued job is waited for, not submitted again"
    assert now[rslora.name] != first[rslora.name], "a killed one is"
    for run in (lora, rslora):
        assert "continues from step" in output_of(now[run.name], sweep)
    assert bits(sweep) == undisturbed
    said = studies("status", sweep)
    assert (said.returncode, "3 runs: 3 complete" in said.stdout) == (0, True), said.stdout + said.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_starts_a_killed_cell_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *LONG, "launcher=ray"]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: [*tmp_path.glob("outputs/sweep-*")])
        disturb(sweep_of(tmp_path), {"lora": signal.SIGKILL})
        assert process.wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    finally:
        process.kill()
    assert "continues from step" in (tmp_path / "output.txt").read_text()
    assert bits(sweep_of(tmp_path)) == undisturbed


# --- before anything runs ---


@pytest.fixture
def cell(tiny: tuple[str, ...]) -> Callable[..., Cell]:
    return lambda *overrides: Cell("group", "none", composed(*tiny, "method=none", *overrides))


def test_a_missing_engine_is_said(cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hylo.core.extras.find_spec", lambda name: None)
    for launcher in ("slurm", "ray"):
        with pytest.raises(MissingDependency, match=rf"pip install 'hylo\[{launcher}\]'"):
            check(cell(f"launcher={launcher}"), Session())


def test_missing_commands_of_slurm_are_said(cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hylo.core.extras.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: None if name in ("sbatch", "squeue") else name)
    with pytest.raises(MissingDependency, match="sbatch, squeue not found"):
        check(cell("launcher=slurm"), Session())


def test_a_job_that_would_be_warned_while_it_loads_is_refused(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning would end it: nothing handles signals yet."""
    monkeypatch.setattr("hylo.core.extras.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name)
    check(cell("launcher=slurm", "launcher.minutes=4", "launcher.warning_seconds=120"), Session())
    with pytest.raises(ConfigError, match=r"launcher\.minutes = 3\n *allowed: at least 4"):
        check(cell("launcher=slurm", "launcher.minutes=3", "launcher.warning_seconds=120"), Session())


def test_more_gpus_than_there_are_are_refused(cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check(cell("launcher.gpus=2"), Session())
    with pytest.raises(ConfigError, match=r"launcher\.gpus = 3\n *allowed: at most 2"):
        check(cell("launcher.gpus=3"), Session())


def test_hydras_own_launchers_are_told_where_to_go(tmp_path: Path) -> None:
    said = train_process("-m", "method=lora,rslora", "hydra/launcher=joblib", cwd=tmp_path)
    assert said.returncode == 2
    assert "launcher=local, launcher=slurm or launcher=ray" in said.stderr


def test_every_gpu_gets_a_process_before_any_gets_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert LocalConfig().places() == ["0", "1", "2"]
    assert LocalConfig(gpus=2, cells_per_gpu=2).places() == ["0", "1", "0", "1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,MIG-7,-1,2")
    assert LocalConfig(cells_per_gpu=2).places() == ["4", "MIG-7", "4", "MIG-7"]


def say_own_gpu(free: "SimpleQueue[str]", answers: "SimpleQueue[str | None]") -> None:
    _begin(1, free)
    answers.put(os.getenv("CUDA_VISIBLE_DEVICES"))


@pytest.mark.slow
def test_every_worker_sees_its_own_gpu() -> None:
    context = multiprocessing.get_context("spawn")
    free: SimpleQueue[str] = context.SimpleQueue()
    answers: SimpleQueue[str | None] = context.SimpleQueue()
    for place in ("4", "MIG-7"):
        free.put(place)
    workers = [context.Process(target=say_own_gpu, args=(free, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert {answers.get() for _ in workers} == {"4", "MIG-7"}
    for worker in workers:
        worker.join()


def test_cells_on_gpus_run_at_once(cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    on_gpus, on_cpu = cell("trainer.device=auto"), cell("trainer.device=cpu")
    assert LocalConfig(cells_per_gpu=3).at_once([on_gpus] * 8, Session()) == 6
    assert LocalConfig(cells_per_gpu=3).at_once([on_gpus] * 4, Session()) == 4
    assert LocalConfig(cells_per_gpu=3).at_once([on_cpu] * 8, Session()) == 1, "tiny cells on a CPU"


# --- what is written down ---


def test_the_ledger_knows_the_latest_job_of_a_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.jobs() == {}
    ledger.add({"7_0": ["a", "b"], "7_1": ["c"]})
    ledger.add({"8": ["b"]})
    assert Ledger(tmp_path).job_of() == {"a": "7_0", "b": "8", "c": "7_1"}
    (tmp_path / "jobs" / "jobs.json").write_text("{")
    with pytest.raises(RecordError, match="delete it"):
        ledger.jobs()


def test_the_status_of_a_run_tells_what_became_of_it(tmp_path: Path) -> None:
    run = next((ROOT / "experiments").glob("tuned_landmarks/records/rslora-seed0-*"))
    folder = tmp_path / run.name
    assert status_of(folder).state == "not begun"
    shutil.copytree(run, folder)
    assert status_of(folder).state == "complete"
    record = json.loads((folder / RESULT).read_text())
    record["config"] = {"method": {"low_rank": {"rank": 8}}, "trainer": {"steps": 60}}
    (folder / "sha256.json").unlink(missing_ok=True)
    (folder / "curve.jsonl").write_text('{"step": 1, "seconds": 2.0}\n{"step": 2, "seconds": 4.0}\n')
    (folder / RESULT).write_text(json.dumps(record | {"status": "running"}))
    assert status_of(folder).state == "dead"
    with exclusive(folder):
        running = status_of(folder)
    assert running.state == "running"
    assert running.note.startswith("step 2 of 60; ETA 174 s; process ")
    (folder / RESULT).write_text(json.dumps(record | {"status": "failed", "error": "OutOfMemory: no\nmore"}))
    assert status_of(folder) == Status("failed", "OutOfMemory: no")
    (folder / RESULT).write_text("{")
    assert status_of(folder).state == "damaged"


def test_a_failed_record_of_an_earlier_attempt_ends_no_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its job is about to repeat it."""
    published = [*(ROOT / "experiments").glob("tuned_landmarks/records/rslora-seed*")]
    runs = [Path(shutil.copytree(run, tmp_path / run.name)) for run in published[:2]]
    good = (runs[1] / RESULT).read_text()
    for run in runs:
        (run / "sha256.json").unlink(missing_ok=True)
    (runs[1] / RESULT).write_text(json.dumps(json.loads(good) | {"status": "failed", "error": "no memory"}))
    watch = Watch([*runs, tmp_path / "third"])
    watch.say(jobs=2)
    said = capsys.readouterr().out
    assert "1 of 3 cells done, 0 running, 2 jobs left, 1 failed in 0 s" in said
    assert "ETA" not in said, "nothing was seen to end: the complete one may have taken days"
    assert watch.without_result() == [tmp_path / "third"]
    (runs[1] / RESULT).write_text(good)
    watch.say(jobs=1)
    assert "2 of 3 cells done, 0 running, 1 jobs left in 0 s, ETA 0 s" in capsys.readouterr().out
    assert watch.without_result() == [tmp_path / "third"]


def test_runs_in_jobs_are_listed_before_any_of_them_has_begun(tmp_path: Path) -> None:
    """Also without a plan: trials have none."""
    Ledger(tmp_path).add({"7": ["a", "b"]})
    assert {name: status.state for name, status in states(tmp_path).items()} == dict.fromkeys("ab", "not begun")


def test_collect_reports_what_there_is(tmp_path: Path) -> None:
    done = studies("collect", ROOT / "experiments" / "no_such_study")
    assert (done.returncode, "holds neither a plan nor a run" in done.stderr) == (2, True)


# --- locks on a disk that machines share ---


def test_a_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"""
import os
from pathlib import Path
from hylo.core.files import exclusive
with exclusive(Path({str(folder)!r})):
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert owner_of(folder)
    with exclusive(folder, wait=False):
        assert f"process {os.getpid()} " in str(owner_of(folder))
    assert owner_of(folder) is None


def test_a_lock_of_another_machine_is_taken_over_without_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere a process cannot be asked whether it lives. Time is counted here: clocks of machines differ."""
    monkeypatch.setattr("hylo.core.files.LEASE", 0.6)
    folder = tmp_path / "run"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("filelock._marker.host_name", lambda: "node7")
        with exclusive(folder):
            marker = folder.with_name(".run.owner").read_bytes()
    folder.with_name(".run.owner").write_bytes(marker)
    with pytest.raises(TimeoutError), exclusive(folder, wait=False):
        pass
    began = time.monotonic()
    with exclusive(folder):
        assert time.monotonic() - began > 0.5
    assert "run: waiting for process" in (said := capsys.readouterr().err)
    assert "on node7" in said


def test_an_owner_that_lost_its_lock_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped for so long (a laptop that slept) that another machine took over."""
    monkeypatch.setattr("hylo.core.files.LEASE", 0.3)
    with stopping_on_signals(), exclusive(tmp_path / "run"):
        (tmp_path / ".run.owner").unlink()
        with pytest.raises(Interrupted):
            wait_until(stop_if_asked, seconds=5)
