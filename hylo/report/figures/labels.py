"""Placement of point labels without overlaps."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hylo.report.figures.style import LINE, SMALL, text_size

_FAR = 0.15  # inches: a label further from its point gets a thin leader line
_DISTANCES = np.arange(0.08, 2.4, 0.06)  # inches, the nearest first
_ANGLES = np.deg2rad([0, 180, 45, -45, 135, -135, 90, -90, 20, -20, 160, -160])
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_CROSSING = 0.03  # square inches: penalty for a line across a label or point, or a label across a line

_STEPS = np.linspace(0, 1, 60)  # sample points on a line, to see what it crosses

# Boxes are [left, bottom, right, top] in inches.


def place_names(axes: Any, names: Sequence[str], points: np.ndarray, colours: Sequence[str], line: np.ndarray) -> None:
    """Label each point at the nearest spot not taken by another label, point or whisker.

    Greedy, from right to left. The figure must already be laid out; labels take no space in its layout.

    Args:
        axes: holds the points.
        names: with line breaks, as they will be drawn.
        points: [names, 4] in data units: x, y, and both ends of the vertical whisker (NaN if there is none).
        colours: of the labels.
        line: [points, 2] in data units, a line that labels avoid where they can.
    """
    figure = axes.get_figure()
    in_inches = axes.transData + figure.dpi_scale_trans.inverted()
    frame = axes.bbox.transformed(figure.dpi_scale_trans.inverted()).extents
    at, lows, highs = (in_inches.transform(points[:, [0, up]]) for up in (1, 2, 3))
    taken = [_around(point, (0.08, 0.08)) for point in at]
    whiskers = [(low, high) for low, high in zip(lows, highs, strict=True) if np.isfinite([*low, *high]).all()]
    taken += [_around((low + high) / 2, (0.03, high[1] - low[1])) for low, high in whiskers]
    corners = in_inches.transform(line) if len(line) else line
    lines = np.array([start + (end - start) * part for start, end in itertools.pairwise(corners) for part in _STEPS])
    lines = lines.reshape(-1, 2)
    for place in sorted(range(len(names)), key=lambda place: tuple(-at[place])):
        box = _free(at[place], text_size(names[place]), np.array(taken), lines, frame)
        taken.append(box)
        far = np.hypot(*(_nearest(at[place], box) - at[place])) > _FAR
        if far:
            lines = np.concatenate([lines, _way(at[place], box)])
        style = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        note = axes.annotate(
            names[place],
            points[place, :2],
            xytext=tuple(72 * ((box[:2] + box[2:]) / 2 - at[place])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL,
            linespacing=LINE,
            color=colours[place],
            zorder=4,
            arrowprops=style if far else None,
        )
        note.set_in_layout(False)


def _free(
    point: np.ndarray, size: tuple[float, float], taken: np.ndarray, lines: np.ndarray, frame: np.ndarray
) -> np.ndarray:
    """Nearest box of a size around a point that covers nothing and stays in the frame, or else the one covering least.

    Args:
        point: x and y.
        size: width and height.
        taken: [boxes, 4], boxes to keep clear.
        lines: [points, 2], points of lines to keep clear.
        frame: box to stay in.
    """
    best, least = _around(point, size), np.inf
    boxes_DA4 = _around(point + (_DISTANCES[:, None, None] + np.array(size) / 2) * _DIRECTIONS, size)
    inside = _shared(boxes_DA4, frame[None])
    for distance, boxes, covered in zip(
        _DISTANCES, boxes_DA4, size[0] * size[1] - inside + _shared(boxes_DA4, taken), strict=True
    ):
        covered += _CROSSING * (_holding(lines[None], boxes).any(axis=1))
        if distance > _FAR:
            covered += _CROSSING * _crossed(point, boxes, taken)
        if (free := np.flatnonzero(covered < 1e-9)).size:
            return boxes[free[0]]
        if covered.min() < least:
            best, least = boxes[covered.argmin()], covered.min()
    return best


def _around(centre: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Boxes [..., 4] of a size around centres [..., 2]."""
    return np.concatenate([centre - np.array(size) / 2, centre + np.array(size) / 2], axis=-1)


def _shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that each box [..., 4] shares with others [others, 4], [...]."""
    low, high = np.maximum(boxes[..., None, :2], others[:, :2]), np.minimum(boxes[..., None, 2:], others[:, 2:])
    return np.maximum(high - low, 0).prod(axis=-1).sum(axis=-1)


def _nearest(point: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The point of a box nearest to another point."""
    return np.clip(point, box[:2], box[2:])


def _way(point: np.ndarray, box: np.ndarray) -> np.ndarray:
    """[points, 2] on the line from a point to the middle of a box, excluding the point's mark and the box."""
    ways, kept = _ways(point, box[None])
    return ways[0, kept[0]]


def _ways(point: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [boxes, steps, 2] on the lines to the middles of boxes, and whether they are part of the way (`_way`)."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    ways = point + _STEPS[:, None] * (middles - point)[:, None]
    within = ((ways > boxes[:, None, :2]) & (ways < boxes[:, None, 2:])).all(axis=2)
    return ways, ~within & (np.abs(ways - point).max(axis=2) > 0.06)


def _crossed(point: np.ndarray, boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the others [others, 4] the way from a point to each of the boxes [boxes, 4] crosses, [boxes]."""
    ways, kept = _ways(point, boxes)
    held = _holding(ways[:, None], others[None])
    return (held & kept[:, None]).any(axis=2).sum(axis=1)


def _holding(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether each box [..., 4] contains each of the points [..., points, 2], [..., points]."""
    x, y = points[..., 0], points[..., 1]
    left, bottom, right, top = (boxes[..., None, side] for side in range(4))
    return (x > left) & (x < right) & (y > bottom) & (y < top)
