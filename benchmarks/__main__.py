"""python -m benchmarks: hylo and peft + transformers in alternating rounds, and the floor of both.

    make bench                                        everything, on the default model
    make bench ARGS='--only step,memory'              some parts; the rows of the others stay
    make bench DEVICE=cuda MODEL=random_7b WEIGHTS=bfloat16 OUT=h100 ARGS='--only step,memory,evaluation'
    make bench DEVICE=cuda WEIGHTS=bfloat16 OUT=h100_liger ARGS='--peft liger --only step,memory,evaluation'
    python -m benchmarks --model tiny_llama --shapes 1x16 --steps 1 --out somewhere      a quick check

MODEL is a choice of conf/model/, or random_1b or random_7b: usual sizes with random weights, made on the device.

Each row is written as soon as it is measured, so an interrupted run loses only the current one. Not a test: nothing
here asserts a time.
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks import ablation, evaluation, lines, memory, scaling, sharing, steps
from benchmarks.random_models import RANDOM
from benchmarks.report import write_report
from benchmarks.results import Results
from benchmarks.settings import DEVICES, PEFT, ROOT, WEIGHTS, Settings, Shape, Subject
from hylo.cli.main import readable_errors
from hylo.core.devices import Device, device_problems
from hylo.core.errors import ConfigError, problem
from hylo.kernels import liger

PARTS = {part.PART: part.rows for part in (steps, memory, evaluation, scaling, ablation, lines, sharing)}


def main() -> None:
    """Measure the chosen parts and write results.json, results.md and the figures."""
    options = arguments()
    unknown = [name for name in options.only if name not in PARTS]
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")
    with readable_errors():
        subject = Subject(options.model, options.device, options.weights, options.peft)
        if problems := [*device_problems(Device[subject.device]), *peft_problems(subject)]:
            raise ConfigError(*problems)
        settings = Settings(subject, tuple(options.shapes), options.steps)
        results, began, written = Results.of(subject, options.out), time.monotonic(), []
        for number, name in enumerate(options.only, 1):
            print(f"[{number}/{len(options.only)}] {name}, after {time.monotonic() - began:.0f} s", flush=True)
            for row in PARTS[name](settings):
                results.add(row)
                results.write(options.out)
            written = write_report(options.out)
        print("\n".join(map(str, written)))


def peft_problems(subject: Subject) -> list[str]:
    """What is wrong with the choice of peft's side."""
    if subject.peft == "liger" and not liger.usable(torch.device(subject.device)):
        return [problem("--peft", "liger", "plain, compiled; liger with --device cuda", "pip install 'hylo[liger]'")]
    return []


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2_135m", help=f"a choice of conf/model/, or {', '.join(RANDOM)}")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where both sides compute")
    parser.add_argument("--weights", choices=WEIGHTS, default="float32", help="dtype of the base model; nf4: 4 bits")
    parser.add_argument("--peft", choices=PEFT, default=PEFT[0], help="how transformers computes on peft's side")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS))
    parser.add_argument("--shapes", type=_shapes, default=_shapes("4x256,2x1024,1x2048"), help="windows x tokens")
    parser.add_argument("--steps", type=int, default=3, help="measured rounds, after a warm-up round")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder of the results")
    return parser.parse_args()


def _shapes(text: str) -> list[Shape]:
    return [Shape.parse(each) for each in text.split(",")]


if __name__ == "__main__":
    main()
