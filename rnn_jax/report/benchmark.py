"""The figure of the benchmark: what each library takes, as a ratio to ours.

    python -c "from rnn_jax.report.benchmark import draw_benchmark; draw_benchmark('runs/...')"

and, from a table alone, as docs/benchmark.png was drawn:

    python -c "from rnn_jax.report.benchmark import draw_table
    draw_table('docs/benchmark.csv', 'docs/benchmark.png', machine='2 cores')"
"""

import csv
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.hover import say
from rnn_jax.report.style import COLUMN, TEXT_WIDTH, paper, save_figure

# Colour and marker of each library; Okabe and Ito's colors, which differ for every eye.
_STYLES = {
    "torch": ("#D55E00", "s"),
    "flax.nnx": ("#0072B2", "o"),
    "flax.linen": ("#56B4E9", "D"),
    "equinox": ("#009E73", "^"),
    "keras": ("#CC79A7", "v"),
    "profile": ("#0072B2", "o"),
}
_PASSES = {"forward": "outputs alone", "gradient": "loss and gradients", "step": "training step"}  # titles of panels

_CAPTION = (
    "What each library takes, as a ratio to ours: a mark for each size of batch, sequence, input and state; the bar and"
    " the number at the right are the geometric mean. To the right of the line at 1, ours takes less. The size and the"
    " quartiles over rounds stand at the pointer."
)


def plot_ratios(ax: Axes, rows: Sequence[Mapping[str, str]], groups: Sequence[tuple[str, str]]) -> Axes:
    """Draws the ratios to ours of one pass: a line a cell and library, a mark a point of the grid, a bar at their mean.

    The mean is geometric, and stands in figures at the right. The line at 1 is ours.

    Args:
      ax: where to draw.
      rows: of benchmark.csv, of one pass.
      groups: cell and library of each line, from top to bottom.
    """
    ax.axvline(1, color="black", linewidth=0.8)
    for place, (cell, library) in enumerate(groups):
        chosen = [row for row in rows if (row["cell"], row["library"], row["chosen"]) == (cell, library, "True")]
        chosen = [row for row in chosen if math.isfinite(float(row["ratio"]))]
        if not chosen:
            continue
        color, marker = _STYLES[library]
        ratios = [float(row["ratio"]) for row in chosen]
        (marks,) = ax.plot(
            ratios,
            [place] * len(ratios),
            marker,
            color=color,
            markersize=3,
            markerfacecolor="none",
            markeredgewidth=0.7,
        )
        say(marks, [_words(row) for row in chosen])
        mean = float(np.exp(np.mean(np.log(ratios))))
        ax.plot([mean, mean], [place - 0.38, place + 0.38], color=color, linewidth=2)
        ax.annotate(
            f"{mean:.2f}", (1, place), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=6.5,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yticks(range(len(groups)), [library for _, library in groups])
    ax.set_ylim(max(len(groups), 1) - 0.5, -0.5)  # none, where no peer computes the same
    for place, ((cell, _), (above, _)) in enumerate(zip(groups[1:], groups), 1):
        if cell != above:
            ax.axhline(place - 0.5, color="0.75", linewidth=0.6, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


def _words(row: Mapping[str, str]) -> str:
    """Names a measurement: library, cell, point, ratio, and its quartiles where there are any."""
    spread = f" ({float(row['ratio_q25']):.2f} to {float(row['ratio_q75']):.2f})" if row["ratio_q25"] else ""
    return f"{row['library']}, {row['cell']}, {row['pass']}\n{row['point']}\n{float(row['ratio']):.2f}{spread}"


@paper()
def ratios_figure(rows: Sequence[Mapping[str, str]], title: str, *, memory: bool) -> Figure:
    """A panel for each pass, a line in it for each cell and library.

    Args:
      rows: of benchmark.csv.
      title: says what 1 is.
      memory: whether the ratios are of memory, and not of time.
    """
    cells, passes, points = (list(dict.fromkeys(row[column] for row in rows)) for column in ("cell", "pass", "point"))
    libraries = [name for name in _STYLES if any(row["library"] == name for row in rows)]
    measured = {(row["cell"], row["library"]) for row in rows}
    groups = [(cell, name) for cell in cells for name in libraries if (cell, name) in measured]
    width = TEXT_WIDTH if len(passes) > 1 else COLUMN + 0.6
    figure = Figure(figsize=(width, 1.1 + 0.15 * len(groups)), layout="constrained")
    axes = figure.subplots(1, len(passes), sharex=True, sharey=True, squeeze=False)[0]
    for ax, what in zip(axes, passes):
        plot_ratios(ax, [row for row in rows if row["pass"] == what], groups)
        ax.set_title(_PASSES.get(what, what))
    for cell in dict.fromkeys(cell for cell, _ in groups):
        places = [place for place, (of, _) in enumerate(groups) if of == cell]
        axes[0].annotate(
            cell, (0, sum(places) / len(places)), (-46, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", ha="right", rotation=90, fontsize=8,
        )  # fmt: skip
    set_log_ticks(axes[0])
    less, more = ("ours needs less", "ours needs more") if memory else ("ours is faster", "ours is slower")
    label = "added memory / ours" if memory else "time / ours"
    of_points = f"{len(points)} sizes" if len(points) > 1 else points[0]
    figure.supxlabel(f"{label}, {of_points}     ({more} \N{LEFTWARDS ARROW} 1 \N{RIGHTWARDS ARROW} {less})")
    figure.suptitle(title)
    return figure


def set_log_ticks(ax: Axes) -> None:
    """Puts the ticks of a logarithmic x axis at whole and half numbers inside its limits, without a power of ten."""
    low, high = ax.get_xlim()
    low, high = min(low, 0.9), max(high, 1.15)
    ax.set_xlim(low, high)
    every = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    if high / low < 4:
        every = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 2.5, 3]
    ticks = [tick for tick in every if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def draw_benchmark(run_dir: read.StrPath) -> list[pathlib.Path]:
    """Draws the ratios of a run of `experiments.benchmark` into its figures/benchmark.png and returns that path.

    Raises:
      ValueError: the run directory has no config.json or no benchmark.csv.
    """
    config = read.load_config(run_dir)
    device = config["device"]
    machine = f"{config['cpu_count']} cores"
    machine += "" if device["platform"] == "cpu" else f" and {device['kind']}"
    path, table = (pathlib.Path(run_dir) / name for name in ("figures/benchmark.png", "benchmark.csv"))
    if not table.exists():
        raise ValueError(f"{os.fspath(run_dir)!r} has no benchmark.csv; allowed: a run of experiments.benchmark.")
    return [draw_table(table, path, machine=machine, memory=config["flags"]["memory"], source=command(config))]


def draw_table(
    table: read.StrPath, path: read.StrPath, *, machine: str, memory: bool = False, source: str = ""
) -> pathlib.Path:
    """Draws a benchmark.csv to `path`, a PNG file (and an SVG file beside it), and returns it.

    Args:
      table: the file.
      path: of the figure.
      machine: what it was measured on.
      memory: whether the ratios are of memory, and not of time.
      source: the command that made the table.
    """
    with pathlib.Path(table).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    version = next((row["version"] for row in rows if row["library"] == "ours"), "")
    figure = ratios_figure(rows, f"rnn_jax {version} = 1, on {machine}", memory=memory)
    return save_figure(figure, pathlib.Path(path), caption=_CAPTION, source=source)
