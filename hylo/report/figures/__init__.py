"""The figures of a study, one file each. They are functions of records or of tables; none reads a file.

`study_figures` draws all that a study has something for: every file of this folder that registers a figure
(`hylo.report.figures.base`). Files without one are what figures share, or drawn on request (`loss`). No pyplot, the
same bytes for the same input, and every mark shows its value on pointing where the figure is saved as SVG
(`hylo.report.render.files.save`).
"""

import sys

from hylo.core.registry import import_all
from hylo.report.figures.base import all_figures, study_figures

__all__ = ["all_figures", "study_figures"]

import_all(sys.modules[__name__])
