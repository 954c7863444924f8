"""Published claims that studies test: experiments/claims.csv, one row per published number.

    id, study, source, cell, reference, metric, value, unit, note

`value` is the improvement of `cell` over `reference` in percent, positive for lower perplexity. A claim about an
absolute value (metric ppl) names a model and a text, and can only be tested with those.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hylo.core.errors import ConfigError, problem
from hylo.evaluation.metrics import all_metrics

FILE = "claims.csv"


@dataclass(frozen=True)
class Claim:
    """A published improvement."""

    id: str
    study: str
    source: str
    cell: str
    reference: str
    metric: str
    value: float
    unit: str
    note: str


def read_claims(experiments: Path) -> list[Claim]:
    """All published claims.

    Raises:
        ConfigError: an id is duplicated or a metric unknown.
    """
    path = experiments / FILE
    table = pd.read_csv(path, keep_default_na=False, dtype={"value": float})
    claims = [Claim(**row) for row in table.to_dict("records")]  # pyright: ignore[reportCallIssue]
    if repeated := sorted({claim.id for claim in claims if sum(other.id == claim.id for other in claims) > 1}):
        raise ConfigError(f"{path}: duplicate ids {', '.join(repeated)}")
    allowed = [*(f"{metric.name}_improvement" for metric in all_metrics()), *(metric.name for metric in all_metrics())]
    for claim in claims:
        if claim.metric not in allowed:
            raise ConfigError(
                f"{path}: {problem(f'metric of {claim.id}', claim.metric, ', '.join(allowed), 'correct it')}"
            )
    return claims


def claim_problems(ids: Collection[str], cells: Collection[str], experiments: Path) -> Iterator[str]:
    """Messages about unknown claim ids and claims about cells that a study lacks."""
    if not ids:
        return
    claims = {claim.id: claim for claim in read_claims(experiments)}
    for name in ids:
        if name not in claims:
            yield problem("claims", name, f"one of {', '.join(claims)}", "correct the id")
            continue
        for cell in (claims[name].cell, claims[name].reference):
            if cell and cell not in cells:
                yield problem(f"claim {name}", cell, f"a cell of the study: {', '.join(cells)}", "add the cell")
