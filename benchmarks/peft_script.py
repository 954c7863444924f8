"""One cell of the ablation as a standalone script: peft, and the Trainer of transformers. Uses nothing of hylo.

What a careful user would write: the same plays and windows in the same order, the same steps, batch, schedule and
layers; evaluation keeps no logits. Prints one line of JSON. `benchmarks/scripts.py` prepares its inputs.

    python benchmarks/peft_script.py --model folder --train folder --test folder --method rslora_dora
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

METHODS = ("none", "lora", "rslora", "dora", "rslora_dora")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in the hub's format")
    parser.add_argument("--train", type=Path, required=True, help="folder of texts to train on")
    parser.add_argument("--test", type=Path, required=True, help="folder of texts to evaluate on")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup-steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--eval-windows", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def windows(folder: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> np.ndarray:
    """Every text cut into windows of `length` tokens from its start, [W, L]; a remainder is dropped."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    parts = [np.array(ids[: len(ids) // length * length]).reshape(-1, length) for ids in encoded]
    return np.concatenate(parts)


def examples(chosen: np.ndarray) -> list[dict[str, Tensor]]:
    """The examples that the Trainer reads."""
    return [{"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(ids)} for ids in chosen]


def main() -> None:
    """Train, unless the method is `none`, and evaluate."""
    options = arguments()
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    if options.method != "none":
        adapter = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            use_rslora=options.method.startswith("rslora"),
            use_dora=options.method.endswith("dora"),
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapter)
    train, test = (windows(folder, tokenizer, options.context_length) for folder in (options.train, options.test))
    order = np.random.default_rng([options.seed, 1]).permutation(len(train))
    sampled = np.sort(np.random.default_rng(0).permutation(len(test))[: options.eval_windows])
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            output_dir=scratch,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=8,
            learning_rate=options.learning_rate,
            warmup_steps=options.warmup_steps,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            train_sampling_strategy="sequential",
            prediction_loss_only=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=options.seed,
        )
        trainer = Trainer(
            model=model,
            args=settings,
            train_dataset=examples(train[order[: options.steps * options.batch_size]]),  # pyright: ignore
            eval_dataset=examples(test[sampled]),  # pyright: ignore
            data_collator=default_data_collator,
        )
        if options.method != "none":
            trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    print(json.dumps({"method": options.method, "perplexity": math.exp(loss)}))


if __name__ == "__main__":
    main()
