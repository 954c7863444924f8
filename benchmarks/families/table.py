"""docs/models.md from the outcomes of all families."""

import re
import textwrap
from collections.abc import Mapping

from transformers import __version__

from benchmarks.families.contract import DESIGNS, Kind, Outcome
from benchmarks.families.tiny import class_name

Found = Mapping[str, Mapping[str, Outcome] | str]
"""Per family the outcomes of all designs, or why it has no tiny model."""

_INTRODUCTION = f"""# Models

Any causal language model of transformers can be the base model: `model=folder model.folder=<path>`,
`model=hub model.repo=<owner/name>`, or the Python API. What is adapted is found by structure:

- **Default targets**: query, key, value and output projections of attention, under whatever names the architecture has
  them. `target_modules=[...]` names others, `[all-linear]` means every linear layer except the output head and those
  that score experts (routers, gates). Experts that are modules of their own (`nn.Linear`) can be targets; experts that
  transformers keeps as one fused parameter cannot, and the audit says which share of the weights that leaves out.
- **Landmarks after the final norm** need a norm whose output the output head reads, used once per pass.
- **Per-layer landmarks** need an FFN whose output is read before the residual is added.
- **Attention landmarks** and prefixes need attention that calls a function of transformers' registry.
- **The position bias** needs target layers that read one vector per token of the pass, or per token that is attended
  to; an expert, which reads the tokens that were sent to it, is refused.

The table shows what comes of each on every family of transformers {__version__}: a tiny model with random weights is
built from the family's config, every tensor is perturbed, and every kind of component is attached in turn and put
through the [audit](audit.md) (identity, causality, cached decoding, padding, gradients, counts). Losses without logits,
fused kernels and the restored base model are compared as well. Last, low-rank update, position bias and landmarks
together run on the model in bfloat16: a training pass and generation.

`python -m benchmarks.families --write` makes this page; a test compares it with the installed transformers.

- **yes**: works
- **no**: refused before the first step, for the numbered reason
- **flagged**: runs, but the audit marks its row in every table: the check that fails is named below
- **base**: the model's own code has this fault without any adapter, which the audit marks as well

"""


def page(found: Found) -> str:
    """The page as Markdown."""
    tried = {family: outcome for family, outcome in found.items() if not isinstance(outcome, str)}
    reasons: dict[str, int] = {}
    columns = list(DESIGNS)
    lines = [f"| family | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for family, outcomes in tried.items():
        cells = [_cell(outcomes.get(design), reasons) for design in columns]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    rest = [f"- {family}: {textwrap.shorten(why, 100)}" for family, why in found.items() if isinstance(why, str)]
    counts = _counts(tried)
    parts = [_INTRODUCTION + counts, "\n".join(lines), "Reasons:\n\n" + "\n".join(notes)]
    if rest:
        parts.append("## Not tried\n\nNo tiny model of these could be built:\n\n" + "\n".join(rest))
    return "\n\n".join(parts) + "\n"


def _counts(tried: Mapping[str, Mapping[str, Outcome]]) -> str:
    causal = {family: each for family, each in tried.items() if each["base"].kind is not Kind.refused}
    classes = len({class_name(family) for family in tried})
    kinds = {design: [each[design].kind for each in causal.values() if design in each] for design in DESIGNS}
    working = {design: found.count(Kind.works) for design, found in kinds.items()}
    shares = ", ".join(f"{design} {count}" for design, count in working.items() if design != "base")
    said = (
        f"{len(tried)} families ({classes} classes); {len(tried) - len(causal)} are refused because they read later "
        f"tokens. Of the other {len(causal)}, so many work with: {shares}."
    )
    return textwrap.fill(said, 120)


def _cell(outcome: Outcome | None, reasons: dict[str, int]) -> str:
    if outcome is None:
        return ""
    if outcome.kind is Kind.works:
        return outcome.kind.value
    number = reasons.setdefault(reason(outcome), len(reasons) + 1)
    return f"{outcome.kind.value} ({number})"


def reason(outcome: Outcome) -> str:
    """Why, without the names of classes and layers, so that one reason stands once."""
    if outcome.kind in (Kind.flagged, Kind.base) and "bfloat16" not in outcome.why:
        return f"audit: {outcome.why.replace('_', ' ')}"
    text = re.sub(
        r"\b\w+(ForCausalLM|LMHeadModel|ModelWithLMHead|ForConditionalGeneration)\b", "the model", outcome.why
    )
    text = re.sub(r"^\d+ of width \d+, .*", "its keys and values have other heads than its config says", text)
    text = re.sub(r"^settings that \w+ accepts on this model: ", "peft: ", text)
    text = re.sub(r"; its linear layers are .*| under the names .*|; it has .*", "", text)
    text = re.sub(r"layer \d+ of the model has (\d+|no)", "a layer has \\1", text)
    text = re.sub(r"(the smaller side of) .*", "\\1 a layer", text)
    return re.sub(
        r"^a model (with a final norm|with an FFN in every layer|that takes an attention function); ", "", text
    )
