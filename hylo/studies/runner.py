"""A whole study: settings are tuned first if the study asks for it, then its seeds run, fixed or until it is decided.

`seeds=until_decided` looks at the study after each of the seed counts of `hylo.stats.looks`, at the confidence level
that the rule assigns to that look, and stops when every contrast and claim is decided or the maximum number of seeds is
reached. Its error rate is that of `hylo.stats.sequential`.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from hylo import stats
from hylo.analysis.contrasts import contrasts_of, effect_of, improvement_of, threshold_of
from hylo.analysis.verdicts import DROP
from hylo.core.devices import is_main_process
from hylo.core.errors import ConfigError, problem
from hylo.runs.config import UNTIL_DECIDED, Config
from hylo.runs.record import StudyRecord
from hylo.runs.shared import Session
from hylo.runs.store import study_of
from hylo.studies.manifest import manifest, report_plan
from hylo.studies.part import part_names
from hylo.studies.plan import (
    Compose,
    Plan,
    check_plan,
    freeze,
    part_of_plan,
    plan_study,
    run_checked,
    run_or_stop,
    with_base_cells,
)
from hylo.studies.tuning import tune

SMALL = -math.log1p(-DROP / 100)
"""Nats per token. An effect certain to be smaller than this counts as decided: the component is not worth having."""


def run_study(config: Config, overrides: Sequence[str], compose: Compose, session: Session) -> bool:
    """Run a study of experiments/ and report it. Complete cells are not run again.

    Returns:
        Whether all cells are complete.

    Raises:
        ConfigError: as `plan_study` and `check_plan`; nothing has run by then.
    """
    plan = plan_study(config, overrides, compose, seeds=_first_seeds(config))
    only = [*part_names(plan.cells, config.cells, session), *(config.add or [])] if config.cells else None
    plan = part_of_plan(plan, only) if only else plan
    check_plan(plan, session)
    if config.seeds == UNTIL_DECIDED and plan.study and not (plan.study.contrasts or plan.study.claims):
        allowed = "explicit seeds: this study has no contrast or claim to decide"
        raise ConfigError(problem("seeds", UNTIL_DECIDED, allowed, "'seeds=[0,1,2]', or contrasts in its study.yaml"))
    chosen, notes, trials = tune(plan, config, overrides, compose, session)
    if config.seeds != UNTIL_DECIDED:
        plan = plan_study(config, overrides, compose, chosen=chosen, only=only) if chosen else plan
        return run_checked(dataclasses.replace(plan, notes=plan.notes | notes, trials=trials), session)
    looks = stats.looks(config.most_seeds)
    for look, level in stats.levels(looks).items():
        plan = plan_study(config, overrides, compose, seeds=range(look), chosen=chosen, only=only)
        rule = {"rule": UNTIL_DECIDED, "looks": list(looks), "level": level}
        plan = dataclasses.replace(plan, notes=plan.notes | notes | rule, trials=trials)
        plan = freeze(with_base_cells(plan, session), session)
        run_or_stop(plan, session)
        open_ = list(undecided(recorded(plan, session)))
        if is_main_process():
            state = f"undecided: {'; '.join(open_)}" if open_ else "every contrast is decided"
            print(f"{plan.group}: {look} seeds, intervals of {100 * level:.4g} %: {state}", flush=True)
        if not open_:
            break
    return report_plan(plan, session) if is_main_process() else True


def _first_seeds(config: Config) -> Sequence[int] | None:
    return range(stats.looks(config.most_seeds)[0]) if config.seeds == UNTIL_DECIDED else None


def recorded(plan: Plan, session: Session) -> StudyRecord:
    """A plan's runs as a study record, before a report is written."""
    return study_of(plan.folder, manifest(plan, session))


def undecided(study: StudyRecord) -> Iterator[str]:
    """The contrasts and claims whose interval, at the study's level, still leaves their question open.

    A contrast asks whether its effect is 0 or too small to matter (below 2 %); a claim, whether at least half of the
    published effect is present.
    """
    for contrast in contrasts_of(study):
        effect = effect_of(study, contrast["cell"], contrast["reference"])
        if effect is None or not stats.decided(effect, threshold=0.0, smallest=SMALL):
            yield f"{contrast['cell']} against {contrast['reference']}"
    for claim in study.manifest["claims"]:
        if metric := improvement_of(claim["metric"]):
            effect = effect_of(study, claim["cell"], claim["reference"], metric)
            threshold = threshold_of(study, claim, metric) if effect else 0.0
            if effect is None or not stats.decided(effect, threshold=threshold, smallest=0.0):
                yield f"claim {claim['id']}"
