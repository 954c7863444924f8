"""What a landmark alone costs beside LoRA, and what nine learning rates of it cost: cells that act after the final norm
begin at stored states of the frozen layers (hylo/kernels/frozen_states.py).

Whole runs of train.py, one after the other with all threads: start, the base model's own cell (the first row),
loading, audit, training, two evaluations, record and report.
"""

import shutil
from collections.abc import Iterator

from benchmarks.results import Row, measured
from benchmarks.scripts import hylo_seconds, prepared
from benchmarks.settings import Settings
from hylo.core.cache import cache_folder
from hylo.kernels.frozen_states import FOLDER

PART = "sharing"
LANDMARK = ("method=landmark_pa", "method.low_rank=null")
RATES = "trainer.learning_rate=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2,0.128,0.256"


def rows(settings: Settings) -> Iterator[Row]:
    """Seconds of each, in `settings.rounds` rounds; the states are thrown away before a run that shall compute them."""
    runs = {
        "base model": (["-m", "method=none"], True),
        "lora": (["-m", "method=lora"], True),
        "landmark alone, nothing stored": (["-m", *LANDMARK, "trainer.states_gib=0"], True),
        "landmark alone": (["-m", *LANDMARK], True),
        "landmark alone, again": (["-m", *LANDMARK], False),
        "landmark alone, nine rates": (["-m", *LANDMARK, RATES], True),
    }
    with prepared(settings.subject) as inputs:
        for run, (name, (arguments, anew)) in enumerate(runs.items()):
            found = []
            for number in range(settings.rounds):
                if anew:
                    shutil.rmtree(cache_folder() / FOLDER, ignore_errors=True)
                outputs = inputs.folder / f"outputs-{run}-{number}"
                found.append(hylo_seconds(inputs, outputs, [*arguments, "workers=1"]))
            yield measured(PART, name, "seconds_in_all", found)
