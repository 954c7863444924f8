"""results.md and the figures, from results.json alone. `python -m benchmarks.report benchmarks` rewrites them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import ratios_figure, scaling_figure
from benchmarks.metrics import METRICS
from benchmarks.results import Results, Row

FIGURES = {"ratios": ratios_figure, "scaling": scaling_figure}
MISSING = "–"
HEADERS = ("work", "metric", "hylo / peft", "hylo / floor", "spread", "hylo", "peft", "floor")
TITLES = {
    "step": (
        "A training step",
        "Forward, backward, clipping and AdamW on one batch; a low-rank update of rank 8 in all linear layers. Each "
        "method and shape runs in a separate process, with both sides in the same rounds. peft has no counterpart of "
        "`hylorada`: it is compared with peft's rsLoRA, its low-rank part without position bias and landmarks. `time "
        "over hylo's LoRA` comes from the same rounds and shows what a method costs on top.",
    ),
    "memory": (
        "Peak memory",
        "Peak resident memory of two training steps, minus that with weights, adapters, text and libraries loaded; "
        "each in a separate process, one measurement.",
    ),
    "evaluation": (
        "Evaluation",
        "The same windows with LoRA attached, no gradients. hylo uses the batch size that its memory budget of 1 GiB "
        "allows, and forms no logits; peft's side takes 2,048 tokens at a time, and the cross-entropy of the logits. "
        "The floor is that of the forward pass.",
    ),
    "scaling": (
        "How the cost grows",
        "LoRA. `context`: a step of 2,048 tokens in windows of that length. `rank`: a step of 4x256. Each in a "
        "separate process. `cells`: wall time of one `train.py -m` with that many cells of 2 steps, divided by their "
        "number, including the base model's evaluation, audits and report; compared with one peft script per cell.",
    ),
    "scale": (
        "Many cells",
        "`python -m benchmarks.scale`: CPU seconds and peak memory of one process, imports included, single "
        "measurements; nothing is trained. `plan`: composing and checking the cells of a sweep, adding the base model, "
        "writing the plan, looking for finished runs. `report`: `python -m hylo.report` on copies of one published "
        "record with other numbers, one seed per cell unless said otherwise.",
    ),
    "ablation": (
        "The whole ablation",
        "`train.py study=ablation` from an empty folder of records, compared with one script per cell "
        "(`benchmarks/peft_script.py`: peft and the Trainer of transformers), one process each, with the same windows, "
        "steps and schedule; one measurement. For the cells with position bias or landmarks, which peft does not have, "
        "the script trains rsLoRA with DoRA. Model and plays are converted beforehand on both sides; hylo reads its "
        "cached tokens, a script tokenises. The perplexities show that both do the same work (the first warm-up step "
        "differs: the Trainer's has a learning rate of zero).",
    ),
    "lines": (
        "Useful tokens",
        "Tokens of text per second. `packed`: windows full of text. `lines`: the published protocol, one line of a "
        "play per sample, padded to 512 tokens, with loss on the padding. `packed beside lines` compares hylo on the "
        "former with peft on the latter.",
    ),
    "sharing": (
        "Cells that act after the final norm",
        "Whole runs of `train.py` at the default settings, one cell at a time, from start to report: a landmark alone "
        "computes the frozen layers once for each batch and begins there afterwards, also at another learning rate.",
    ),
}
"""Heading and explanation of each part, in the order of the page."""


HOW = {
    "rounds": "both sides share weights and one process, and each side runs once per round; a warm-up round is not "
    "counted. Values are medians over the rounds, ratios the medians of the rounds' ratios: whatever slows the machine "
    "for a while slows both sides of a ratio",
    "spread": "of the rounds' ratios to peft (of hylo's values if there is no ratio): half their interquartile range "
    "over their median, or half their whole range over it for fewer than four rounds; none for a single measurement",
    "floor": "the matrix products alone (2 N operations per token forward, 2 N backward to the inputs, and those of "
    "attention) at the rate at which this machine multiplies the model's own shapes in the same rounds: "
    "`benchmarks/floor.py`",
    "ratios": "of seconds and bytes: below 1, hylo takes less; of tokens per second: above 1, hylo is faster. Parts of "
    "different dates may come from different machines of one name: compare their ratios, not their seconds",
    "kernels": "hylo's are the default of a run: since 2026-11-27 those that `trainer.kernels=auto` chooses on the "
    "machine, before that the fused functions",
    "not_measured": "other models and devices than the one named, gradient checkpointing, several processes; no GPU "
    "was available so far",
}
"""How to read the page: the same for every run."""


def write_report(folder: Path) -> list[Path]:
    """Write results.md and the figures from a folder's results.json.

    Returns:
        The files written.
    """
    results = Results.read(folder)
    assert results is not None, f"{folder} has no results"
    written = []
    for name, make in FIGURES.items():
        if (figure := make(results)) is not None:
            (folder / "figures").mkdir(exist_ok=True)
            for kind in ("png", "svg"):
                path = folder / "figures" / f"{name}.{kind}"
                metadata: Any = {"Date": None} if kind == "svg" else None
                figure.savefig(path, metadata=metadata)
                written.append(path)
    page = folder / "results.md"
    shown = [path.relative_to(folder) for path in written if path.suffix == ".png"]
    page.write_text("\n".join(_page(results, shown)) + "\n", encoding="utf-8")
    return [page, *written]


def _page(results: Results, figures: list[Path]) -> Iterator[str]:
    yield "# hylo compared with peft + transformers\n"
    yield "Written by `make bench`; `results.json` holds the same numbers.\n"
    yield from _how(results)
    yield from (f"\n![{path.stem}]({path.as_posix()})" for path in figures)
    for part, (title, text) in TITLES.items():
        if found := [row for row in results.rows if row.part == part]:
            about = results.parts[part]
            yield f"\n## {title}\n\n{text}\n"
            yield from table(found)
            yield f"\nMeasured {about['date']}, revision {about['git_revision'] or 'unknown'}."


def _how(results: Results) -> Iterator[str]:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']}; " if machine.get("gpu") else ""
    known = {
        "machine": f"{gpu}{machine['cpu']}, cores: {machine['cores']}, threads: {machine['threads']}; {versions}",
        "model": str(results.subject),
    }
    yield from (f"- **{name.replace('_', ' ').capitalize()}:** {text}." for name, text in (known | HOW).items())


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of a Markdown table, ratios first."""
    yield "| " + " | ".join(HEADERS) + " |"
    yield "|---|---|" + "---:|" * (len(HEADERS) - 2)
    for row in rows:
        metric = METRICS[row.metric]
        ratios = [_shown(value, "{:.2f}") for value in (row.ratio_to_peft, row.ratio_to_floor)]
        values = [MISSING if value is None else metric.show(value) for value in (row.hylo, row.peft, row.floor)]
        yield "| " + " | ".join([row.work, metric.title, *ratios, _shown(row.spread, "± {:.1%}"), *values]) + " |"


def _shown(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


if __name__ == "__main__":
    for written_path in write_report(Path(sys.argv[1])):
        print(written_path)
