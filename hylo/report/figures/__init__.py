"""The figures of a study, one file each: functions of records or tables that read no files.

`study_figures` draws every figure registered in this folder (`hylo.report.figures.base`) that the study has data for.
Files that register none hold shared code, or figures drawn on request (`loss`). No pyplot; the same input gives the
same bytes; every mark has a tooltip when the figure is saved as SVG (`hylo.report.render.files.save`).
"""

import sys

from hylo.core.registry import import_all
from hylo.report.figures.base import all_figures, study_figures

__all__ = ["all_figures", "study_figures"]

import_all(sys.modules[__name__])
