"""Values at the pointer: what an SVG file shows of a figure's data where the pointer rests, without a program.

Over each panel lie invisible shapes with a `<title>`, which every browser shows: a strip for each place along the
lines, a disk for each mark without a line, a rectangle for each cell of a heat map.
"""

import itertools
import math
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

_STRIPS = 128  # of a panel, at most; where a line has more points, evenly spaced ones are shown
_CELLS = 20  # of a heat map, along each axis, at most
_RADIUS = 4.0  # of a disk, in points
_POINTS = 72.0  # to an inch
_UNNAMED = re.compile(r"_child\d+|_nolegend_|")  # what matplotlib calls lines without a label

_SVG = "http://www.w3.org/2000/svg"


# What the marks of a line say, one text each, where its label is not all.
_TEXTS: weakref.WeakKeyDictionary[Line2D, Sequence[str]] = weakref.WeakKeyDictionary()


def say(line: Line2D, texts: Sequence[str]) -> None:
    """Gives each mark of a line without a stroke its own words, in the place of its label and coordinates."""
    _TEXTS[line] = texts


class _Shape(NamedTuple):
    """A rectangle in points from the upper left corner of the figure, and what it says."""

    left: float
    top: float
    width: float
    height: float
    text: str
    disk: bool = False


def with_hover(figure: Figure, svg: bytes) -> bytes:
    """Returns the SVG of a figure with the values of its lines, marks and heat maps as titles.

    A line has the name of its label; a label that begins with "_" names it here and not in the legend; a
    remark behind two blanks is left out. Lines
    without a label, and lines across a panel (`axhline`), are passed over. Where the ticks of an axis are names,
    `ax.fmt_xdata` or `ax.fmt_ydata` gives the words for a place on it.

    Args:
      figure: as it was drawn for `svg`.
      svg: what `figure.savefig(..., format="svg")` wrote.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    for ax in figure.axes:
        if not ax.get_visible():
            continue
        group = ElementTree.SubElement(
            root, f"{{{_SVG}}}g", {"class": "hover", "fill": "none", "pointer-events": "all"}
        )
        for shape in _shapes(figure, ax):
            _append(group, shape)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _append(group: ElementTree.Element, shape: _Shape) -> None:
    names = ("cx", "cy", "r") if shape.disk else ("x", "y", "width", "height")
    numbers = (shape.left, shape.top, shape.width) if shape.disk else shape[:4]
    kind = "circle" if shape.disk else "rect"
    place = {name: f"{number:.1f}" for name, number in zip(names, numbers)}
    ElementTree.SubElement(
        ElementTree.SubElement(group, f"{{{_SVG}}}{kind}", place), f"{{{_SVG}}}title"
    ).text = shape.text


def _shapes(figure: Figure, ax: Axes) -> Iterator[_Shape]:
    for image in ax.images:
        yield from _cells(figure, ax, image)
    lines = _named_lines(ax)
    along = {name: line for name, line in lines if line.get_linestyle() not in ("None", "none", "", " ")}
    yield from _strips(figure, ax, along)
    for name, line in lines:  # on top of the strips
        if name not in along or along[name] is not line:
            yield from _disks(figure, ax, name, line)


def _named_lines(ax: Axes) -> list[tuple[str, Line2D]]:
    named = [(str(line.get_label()), line) for line in ax.lines]
    return [
        (name.lstrip("_").split("  ")[0], line)
        for name, line in named
        if line.get_transform() == ax.transData and (line in _TEXTS or not _UNNAMED.fullmatch(name))
    ]


def _data(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata(), np.float64), np.asarray(line.get_ydata(), np.float64)


def _strips(figure: Figure, ax: Axes, lines: dict[str, Line2D]) -> Iterator[_Shape]:
    data = {name: _data(line) for name, line in lines.items()}
    low, high = sorted(ax.get_xlim())
    places = np.unique(np.concatenate([[], *(xs[np.isfinite(ys)] for xs, ys in data.values())]))
    places = places[(places >= low) & (places <= high)]
    if not len(places):
        return
    places = places[np.unique(np.linspace(0, len(places) - 1, min(len(places), _STRIPS)).round().astype(int))]
    values: dict[str, dict[float, float]] = {
        name: dict(zip(xs.tolist(), ys.tolist())) for name, (xs, ys) in data.items()
    }
    left, top, right, bottom = _frame(figure, ax)
    across = [_place(figure, ax, x, ax.get_ylim()[0])[0] for x in places]
    edges = [left, *((a + b) / 2 for a, b in itertools.pairwise(across)), right]
    for x, start, end in zip(places.tolist(), edges, edges[1:]):
        found = [f"{name}: {_number(ys[x])}" for name, ys in values.items() if math.isfinite(ys.get(x, math.nan))]
        yield _Shape(min(start, end), top, abs(end - start), bottom - top, "\n".join([_said(ax, ax.xaxis, x), *found]))


def _disks(figure: Figure, ax: Axes, name: str, line: Line2D) -> Iterator[_Shape]:
    left, top, right, bottom = _frame(figure, ax)
    for k, (x, y) in enumerate(zip(*map(np.ndarray.tolist, _data(line)))):
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        across, down = _place(figure, ax, x, y)
        if left - 1 <= across <= right + 1 and top - 1 <= down <= bottom + 1:
            words = [name, _said(ax, ax.yaxis, y), _said(ax, ax.xaxis, x)]
            text = _TEXTS[line][k] if line in _TEXTS else "\n".join(filter(None, words))
            yield _Shape(across, down, _RADIUS, _RADIUS, text, disk=True)


def _cells(figure: Figure, ax: Axes, image: AxesImage) -> Iterator[_Shape]:
    array = image.get_array()
    if array is None or array.ndim != 2:
        return
    left, right, bottom, top = image.get_extent()
    if image.origin == "upper":
        bottom, top = top, bottom
    (rows, columns), values = array.shape, np.ma.filled(np.ma.asarray(array, np.float64), np.nan)
    x_edges, y_edges = np.linspace(left, right, columns + 1), np.linspace(bottom, top, rows + 1)
    edges = [np.unique(np.linspace(0, count, min(count, _CELLS) + 1).round().astype(int)) for count in (rows, columns)]
    x_low, x_high = sorted(ax.get_xlim())
    for row, next_row in zip(edges[0], edges[0][1:]):
        for column, next_column in zip(edges[1], edges[1][1:]):
            if not x_low <= x_edges[column : column + 2].mean() <= x_high:
                continue
            value = values[row, column]
            first = _place(figure, ax, x_edges[column], y_edges[row])
            second = _place(figure, ax, x_edges[next_column], y_edges[next_row])
            down, across = y_edges[row : row + 2].mean(), x_edges[column : column + 2].mean()
            yield _Shape(
                min(first[0], second[0]),
                min(first[1], second[1]),
                abs(first[0] - second[0]),
                abs(first[1] - second[1]),
                "\n".join(
                    [
                        _said(ax, ax.yaxis, down),
                        _said(ax, ax.xaxis, across),
                        _number(value) if math.isfinite(value) else "none",
                    ]
                ),
            )


def _place(figure: Figure, ax: Axes, x: float, y: float) -> tuple[float, float]:
    """In points from the upper left corner of the figure, as SVG counts."""
    across, up = ax.transData.transform((x, y)) * (_POINTS / figure.dpi)
    return float(across), float(figure.get_figheight() * _POINTS - up)


def _frame(figure: Figure, ax: Axes) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a panel."""
    box, scale, height = ax.get_window_extent(), _POINTS / figure.dpi, figure.get_figheight() * _POINTS
    return box.x0 * scale, height - box.y1 * scale, box.x1 * scale, height - box.y0 * scale


def _said(ax: Axes, axis: Axis, value: float) -> str:
    """A place on an axis in words: as `ax.fmt_xdata` or `ax.fmt_ydata` says it, else the axis and the number."""
    own = ax.fmt_xdata if axis is ax.xaxis else ax.fmt_ydata
    return own(value) if own is not None else f"{_axis_name(axis)} {_number(value)}".strip()


def _axis_name(axis: Axis) -> str:
    """The first words of an axis label, up to a remark."""
    text = re.sub(r"\$[_^]\{?(.*?)\}?\$", r"\1", axis.get_label_text())
    return re.split(r"[:(,\n]|  ", text.strip())[0].strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
