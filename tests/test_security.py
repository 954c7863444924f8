"""The promises of SECURITY.md: names, secrets, places, and bytes from others."""

import json
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launch import train
from omegaconf import OmegaConf

import hylo.cli.main
import hylo.core.cache
import hylo.studies.spec
import hylo.training.loop
from hylo.cli.hydra_errors import refuse_paths, refuse_replaced
from hylo.core.errors import ConfigError, MissingDependency, RecordError
from hylo.core.interpolations import resolver_problems
from hylo.core.names import file_name, name_problems
from hylo.models.base import check_places
from hylo.models.folder import FolderModelConfig
from hylo.models.tiny import TinyModelConfig
from hylo.report.render.files import csv
from hylo.runs.layout import RESULT
from hylo.runs.store import read_run
from hylo.studies.spec import read_study_file

NAMES = {
    "../x": "two folders up",
    "a/b": "a folder",
    "/etc/x": "an absolute path",
    ".hidden": "a hidden file",
    "a\nb": "a line end",
    "\u202egpj": "a mark that turns the direction of writing",
    "\U0001f600": "an emoji",
    "x" * 101: "longer than a file name should be",
    "": "nothing",
    "a b": "a space",
}


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_a_name_is_one_path_component(name: str):
    assert [*name_problems("cell", name)]
    assert not [*name_problems("cell", file_name(name) or "x")]


@given(st.text())
def test_every_text_has_a_name(text: str):
    name = file_name(text)
    assert not name or not [*name_problems("cell", name)]
    assert len(name.encode()) <= 400
    assert Path(name).name == name


def test_names_of_studies_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", tmp_path)
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / "study.yaml"
    for cells, said in (("'../../escaped': [method=lora]", "cells"), ("lora: [method=lora]", None)):
        path.write_text(f"question: which\nprotocol: all\ncells:\n  {cells}\n")
        if said is None:
            assert read_study_file("own").cells
        else:
            with pytest.raises(ConfigError, match=r"cells = '\.\./\.\./escaped'"):
                read_study_file("own")
    path.write_text("question: '${oc.env:HOME}'\nprotocol: all\ncells:\n  lora: [method=lora]\n")
    with pytest.raises(ConfigError, match=r"question = '\$\{oc\.env:HOME\}'(.|\n)*no resolver"):
        read_study_file("own")


CALLS = ["${oc.env:HOME}", "${oc.${x}:HOME}", "a ${b.${oc.env:HOME}}", "${hydra:job.name}", "${oc.decode:'1'}"]


@pytest.mark.parametrize("text", CALLS)
def test_no_resolver_is_called(text: str):
    config = OmegaConf.create({"a": [{"b": text}], "x": "env"})
    (said,) = resolver_problems(config)
    assert said.startswith("a[0].b = ")
    assert [*resolver_problems(OmegaConf.create({"a": 1, "b": "${a}", "c": "\\${oc.env:HOME}", "d": "$"}))] == []


def test_no_secret_reaches_a_record(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SECRET", "hunter2")
    for text in ("cell=${oc.env:SECRET}", "cell='${oc.${tracking.name}:SECRET}'", "model.name=${oc.env:SECRET}"):
        assert train(*tiny, "method=none", text, f"outputs={tmp_path}") == 2
    assert "hunter2" not in "".join(capsys.readouterr())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["../../../x/m", "/etc/m", "lora,../m", "[../m]", "'../m'", "..\\m"])
def test_a_choice_does_not_leave_conf(value: str):
    with pytest.raises(ConfigError, match=r"names of files in conf/method/"):
        refuse_paths([f"method={value}"])
    refuse_paths(["data.train_files=[../a.txt]", "outputs=/etc/x", "trainer/optimizer=sgd", "model.folder=~/m"])


def test_a_spreadsheet_runs_no_formula():
    frame = pd.DataFrame({"cell": ["=1+1", "@sum", "+pb", "-x", "lora"], "ppl": [-1.5, 2.0, 3.0, 4.0, 5.0]})
    assert csv(frame).decode().splitlines()[1:] == ["'=1+1,-1.5", "'@sum,2.0", "'+pb,3.0", "'-x,4.0", "lora,5.0"]


def test_a_model_folder_chooses_neither_code_nor_places(tmp_path: Path):
    folder = tmp_path / "model"
    TinyModelConfig(name="tiny").load().save_pretrained(folder, max_shard_size="50KB")
    check_places(folder)
    model = FolderModelConfig(name="model", folder=str(folder))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    for place in ("../other.safetensors", "/etc/passwd"):
        path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | {name: place}}))
        with pytest.raises(MissingDependency, match="neither code nor files elsewhere"):
            model.load()
    path.write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    for key in ("_attn_implementation", "attn_implementation", "experts_implementation"):
        (folder / "config.json").write_text(json.dumps(config | {key: "kernels-community/flash-attn"}))
        with pytest.raises(MissingDependency, match="kernels-community/flash-attn"):
            model.skeleton()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_bytes_in_a_record_are_more_than_a_record_error(content: bytes, tmp_path: Path):
    (tmp_path / RESULT).write_bytes(content)
    with pytest.raises(RecordError):
        read_run(tmp_path)


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_override_is_more_than_a_config_error(key: str, value: str):
    for check in (refuse_paths, refuse_replaced):
        with suppress(ConfigError):
            check([f"{key}={value}", key, value])
