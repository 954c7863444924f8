"""python -m benchmarks.base_weights [kind]: what a way to hold base weights costs in precision, memory and time.

Prints a line for each kind: float32, bfloat16, float16, int8 and nf4 as `hylo` loads them, and the layers of two
libraries as they compute themselves: bitsandbytes-int8, bitsandbytes-nf4, torchao-int8. Measured on one window of the
evaluation text, in one process for each kind:

    error      root mean square difference of the logits from those of float32, in standard deviations
    KL, PPL    mean KL to float32 in nats per token, and perplexity of the window
    earlier    largest change of the first half's logits when the second half is another text: 0 if the model is causal
    linear     MiB of the quantized layers' weights
    forward, backward    CPU seconds of a pass in evaluation, and of a forward and backward pass in training
"""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import initialize_config_dir
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from hylo.cli.main import compose
from hylo.models.folder import FolderModelConfig
from hylo.models.gguf_wheel import GgufWheelConfig
from hylo.models.targets import linear_layers
from hylo.models.weights import Dtype, Quantization
from hylo.runs.shared import Session


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


TOKENS = 128
CONF = Path(__file__).resolve().parent.parent / "conf"
LIBRARIES: dict[str, Callable[[], Any]] = {
    "bitsandbytes-int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao-int8": _torchao,
}
KINDS = [*(dtype.name for dtype in Dtype), "int8", "nf4", *LIBRARIES]


def load(kind: str, folder: Path) -> PreTrainedModel:
    """The model of a folder, held in a way."""
    if kind in LIBRARIES:
        options: dict[str, Any] = {"quantization_config": LIBRARIES[kind](), "device_map": {"": "cpu"}}
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    dtype = Dtype[kind] if kind in Dtype.__members__ else Dtype.float32
    quantization = Quantization[kind] if kind in Quantization.__members__ else Quantization.none
    return FolderModelConfig(name=kind, folder=str(folder), dtype=dtype, quantization=quantization).load()


def linear_bytes(model: PreTrainedModel, paths: list[str]) -> int:
    """Size of the weights of these layers."""
    states = [model.get_submodule(path).state_dict() for path in paths]
    return sum(_bytes(tensor) for state in states for name, tensor in state.items() if not name.endswith("bias"))


def _bytes(tensor: Tensor) -> int:
    inner = [getattr(tensor, name) for name in ("qdata", "scale") if isinstance(getattr(tensor, name, None), Tensor)]
    return sum(part.nbytes for part in inner or [tensor])


def seconds(work: Callable[[], Any]) -> float:
    """CPU time of some work."""
    began = time.process_time()
    work()
    return time.process_time() - began


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[1, T, V] in float32."""
    return model(input_ids=ids, use_cache=False).logits.float()


def measure(kind: str, folder: Path, ids: Tensor, reference: Path, paths: list[str]) -> str:
    """The line of a kind; float32 writes the reference."""
    model = load(kind, folder).requires_grad_(False)
    found, half = logits(model, ids), ids.shape[1] // 2
    if kind == KINDS[0]:
        save_file({"logits": found}, reference)
    exact = load_file(reference)["logits"]
    error = float((found - exact).square().mean().sqrt() / exact.std())
    p, q = exact.log_softmax(-1), found.log_softmax(-1)
    kl = float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())
    ppl = math.exp(float(F.cross_entropy(found[0, :-1], ids[0, 1:])))
    other = torch.cat([ids[:, :half], ids[:, half:].flip(1)], dim=1)
    earlier = float((logits(model, other)[:, :half] - found[:, :half]).abs().max())
    forward = seconds(lambda: logits(model, ids))
    embedding: Any = model.get_input_embeddings()
    start: nn.Parameter = embedding(ids).detach().requires_grad_()
    model.train()

    def step() -> None:
        out = model(inputs_embeds=start, use_cache=False).logits
        F.cross_entropy(out[0, :-1].float(), ids[0, 1:]).backward()

    columns = [f"{error:.4f}", f"{kl:.2g}", f"{ppl:.2f}", f"{earlier:.2g}", f"{linear_bytes(model, paths) / 2**20:.0f}"]
    return " | ".join([kind, *columns, f"{forward:.1f}", f"{seconds(step):.1f}"])


def main(kinds: list[str]) -> None:
    """One kind in this process, or each of all kinds in a process of its own."""
    reference = Path(tempfile.gettempdir()) / "hylo-base-weights.safetensors"
    if len(kinds) != 1:
        print("kind | error | KL | PPL | earlier | linear | forward | backward", flush=True)
        for kind in KINDS:
            subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.base_weights", kind], check=False)
        return
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config, _ = compose(["model=smollm2_135m", "data=shakespeare"])
    assert isinstance(config.model, GgufWheelConfig)
    windows, folder = Session().eval_windows(config.data, config.model), config.model.converted()
    ids = torch.from_numpy(windows.ids[:1, :TOKENS].astype("int64"))
    paths = [*linear_layers(config.model.skeleton())]
    print(measure(kinds[0], folder, ids, reference, paths), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
