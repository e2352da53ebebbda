"""How figures look and how they are saved: at the size of a paper's column, color-blind safe and readable in grey.

A figure is saved twice, as PNG and as SVG of the same name. The SVG carries the caption as its description and shows
values where the pointer rests; `rnn_jax.report.run_report` puts it into the report as it is.
"""

import io
import pathlib
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from rnn_jax.report.hover import with_hover

# Okabe and Ito's colors, which differ for every eye, without their yellow: too pale for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
LINESTYLES = ("-", "--", "-.", ":")
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")

TEXT_WIDTH = 7.0  # inches: of both columns of a page
COLUMN = 3.4  # inches: of one

_DPI = 200
_PAPER: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "figure.titlesize": 9,
    "figure.labelsize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7.5,
    "legend.frameon": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",  # the same letters on every machine
}


def paper() -> Any:
    """Sizes of text and lines at which a figure is read in print: a context, and a decorator."""
    return matplotlib.rc_context(_PAPER)


def line_style(number: int, points: int) -> dict[str, Any]:
    """Returns color, linestyle and marker of line `number` of a figure; no two of 32 look alike, also in grey.

    Args:
      number: from 0.
      points: of the line that are seen: where they are many, a marker stands at few of them.
    """
    turn = number // len(COLORS)
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": LINESTYLES[(number + turn) % len(LINESTYLES)],
        "marker": MARKERS[number // len(LINESTYLES) % len(MARKERS)],
        "markersize": 3.5,
        "markevery": mark_every(points),
    }


def mark_every(points: int) -> int:
    """Returns at every which point of a line a marker stands: about eight of them do."""
    return max(1, points // 8)


def legend_below(ax: Axes, **options: Any) -> None:
    """Puts the legend of a panel below the label of its x axis."""
    below = ax.transAxes + ScaledTranslation(0, -0.36, ax.figure.dpi_scale_trans)  # inches: ticks and label
    place = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below, "borderaxespad": 0}
    ax.legend(**place, **{"handlelength": 3.5, **options})


def save_figure(figure: Figure, path: pathlib.Path, *, caption: str, source: str = "") -> pathlib.Path:
    """Writes a figure to `path`, a PNG, and beside it as SVG; makes the folder if need be, and returns `path`.

    Args:
      figure: drawn under `paper`.
      path: of the PNG file.
      caption: what to see in it.
      source: the command that made its data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    with matplotlib.rc_context({**_PAPER, "svg.hashsalt": path.stem}):
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)  # once for both files; with an engine, even an idle one, each is drawn twice
        figure.set_layout_engine(None)
        figure.savefig(path, dpi=_DPI, metadata={"Source": source, "Description": caption})
        figure.savefig(
            drawn, format="svg", metadata={"Source": source, "Description": caption, "Date": None, "Creator": None}
        )
    path.with_suffix(".svg").write_bytes(with_hover(figure, drawn.getvalue()))
    return path
