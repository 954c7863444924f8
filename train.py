"""The one entry point: compose a configuration and run it.

python train.py                                            one cell: the defaults of conf/config.yaml
python train.py method=dora method.low_rank.rank=16        one cell, with overrides
python train.py -m method=landmark_pa,landmark_learnable   a sweep: one cell per value, one report
python train.py study=ablation                             a study of experiments/
"""

import hydra
from omegaconf import DictConfig

from hylo.cli import main as cli


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> float | None:
    """Run what the command line composes; in a sweep, return the cell's perplexity."""
    return cli.main(composed)


if __name__ == "__main__":
    with cli.command_line():
        main()
