"""Where the search of each tuned cell starts: at the initial grid, or where that of its reference ended.

With equal numbers of trials, a cell with a second key has fewer left for its learning rate than the cell without the
component, and may miss a rate at which that one is best. So it starts at that rate. Own design.
"""

from collections.abc import Iterator, Mapping, Sequence

from hylo.studies.grid_search import Bounds, moved
from hylo.studies.spec import ContrastConfig

Grids = dict[str, list[float]]
"""The initial grid of each key."""


def starts_of(cells: Sequence[str], contrasts: Sequence[ContrastConfig]) -> dict[str, str]:
    """The cell at whose chosen values each cell starts: the earlier one of the first contrast of a component with one.

    Args:
        cells: the tuned cells, in the order of the study. The first has nothing to start at, nor do peers, which differ
            in more than a component; both are left out.
        contrasts: those of the study.
    """
    found: dict[str, str] = {}
    for place, cell in enumerate(cells):
        for contrast in contrasts:
            other = contrast.reference if contrast.cell == cell else contrast.cell
            if contrast.component and cell in (contrast.cell, contrast.reference) and other in cells[:place]:
                found[cell] = other
                break
    return found


def waves(cells: Sequence[str], starts: Mapping[str, str], at_once: int) -> Iterator[list[str]]:
    """The cells to search together: each after the cell that it starts at, and no more than `at_once`."""
    depths: dict[str, int] = {}
    for cell in cells:
        depths[cell] = depths[starts[cell]] + 1 if cell in starts else 0
    for depth in sorted({*depths.values()}):
        level = [cell for cell in cells if depths[cell] == depth]
        yield from (level[place : place + at_once] for place in range(0, len(level), at_once))


def moved_grids(grids: Grids, chosen: Mapping[str, float], ranges: Bounds) -> Grids:
    """Grids that begin at chosen values: the first key's has its value in the middle, another key's at its start.

    Args:
        grids: of a cell.
        chosen: values by key; a key that is missing, or whose moved grid would leave its range, keeps its grid.
        ranges: the lowest and highest allowed value of each key.
    """
    result = dict(grids)
    for place, (key, grid) in enumerate(grids.items()):
        anchor = sorted(grid)[(len(grid) - 1) // 2] if place == 0 else grid[0]
        if key in chosen:
            there = moved(grid, anchor, chosen[key])
            low, high = ranges[place]
            result[key] = there if low <= min(there) and max(there) <= high else grid
    return result
