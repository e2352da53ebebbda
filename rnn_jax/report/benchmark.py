"""The figure of the benchmark: what each library takes, as a ratio to ours.

python -c "from rnn_jax.report.benchmark import benchmark; benchmark('runs/...')"
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

# Colour and marker of each library; Okabe and Ito's colors, which differ for every eye.
_STYLES = {
    "torch": ("#D55E00", "s"),
    "flax.nnx": ("#0072B2", "o"),
    "flax.linen": ("#56B4E9", "D"),
    "equinox": ("#009E73", "^"),
    "keras": ("#CC79A7", "v"),
    "profile": ("#0072B2", "o"),
}


def plot_ratios(ax: Axes, rows: Sequence[Mapping[str, str]], points: Sequence[str], libraries: Sequence[str]) -> Axes:
    """Draws the ratio to ours of each library at each point, with its quartiles; the line at 1 is ours.

    Args:
      ax: where to draw.
      rows: of benchmark.csv, of one cell and pass.
      points: from top to bottom.
      libraries: in the order of the legend.
    """
    ax.axvline(1, color="black", linewidth=1)
    for k, name in enumerate(libraries):
        color, marker = _STYLES[name]
        offset = 0.7 * ((k + 0.5) / len(libraries) - 0.5)
        chosen = [row for row in rows if row["library"] == name and row["chosen"] == "True"]
        chosen = [row for row in chosen if math.isfinite(float(row["ratio"]))]
        ratios = np.array([float(row["ratio"]) for row in chosen])
        # Memory has no quartiles.
        low = np.array([float(row["ratio_q25"] or row["ratio"]) for row in chosen])
        high = np.array([float(row["ratio_q75"] or row["ratio"]) for row in chosen])
        places = [points.index(row["point"]) + offset for row in chosen]
        errors = np.abs([ratios - low, high - ratios]) if chosen else None
        ax.errorbar(ratios, places, xerr=errors, fmt=marker, color=color, markersize=4, elinewidth=1, label=name)
    ax.set_xscale("log")
    ax.set_yticks(range(len(points)), points)
    ax.set_ylim(len(points) - 0.5, -0.5)
    for edge in range(1, len(points)):
        ax.axhline(edge - 0.5, color="0.9", linewidth=0.7, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def ratios_figure(rows: Sequence[Mapping[str, str]], title: str, *, memory: bool) -> Figure:
    """A panel for each cell (columns) and pass (rows).

    Args:
      rows: of benchmark.csv.
      title: of the legend.
      memory: whether the ratios are of memory, and not of time.
    """
    cells, passes, points = (list(dict.fromkeys(row[column] for row in rows)) for column in ("cell", "pass", "point"))
    libraries = [name for name in _STYLES if any(row["library"] == name for row in rows)]
    height = 0.075 * max(4, len(libraries)) * len(points) + 0.6
    figure = Figure(figsize=(2.2 + 3.6 * len(cells), 1.5 + height * len(passes)), dpi=150, layout="constrained")
    axes = figure.subplots(len(passes), len(cells), sharex=True, sharey=True, squeeze=False)
    for axes_of_pass, what in zip(axes, passes):
        for ax, cell in zip(axes_of_pass, cells):
            plot_ratios(ax, [row for row in rows if (row["cell"], row["pass"]) == (cell, what)], points, libraries)
            ax.set_title(f"{cell}, {what}", fontsize=10)
            ax.tick_params(labelsize=8)
    set_log_ticks(axes[0, 0])
    less, more = ("ours needs less", "ours needs more") if memory else ("ours is faster", "ours is slower")
    label = "added memory / ours" if memory else "time / ours"
    figure.supxlabel(f"{label}     ({more} \N{LEFTWARDS ARROW} 1 \N{RIGHTWARDS ARROW} {less})", fontsize=9)
    figure.supylabel("batch x time x inputs x hidden", fontsize=9)
    handles = axes[0, 0].get_legend_handles_labels()
    columns = 6 if len(cells) > 1 else 3
    figure.legend(*handles, title=title, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
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


def benchmark(run_dir: read.StrPath) -> pathlib.Path:
    """Draws the ratios of a run of `experiments.benchmark` into its figures/benchmark.png and returns that path.

    The figure holds the run's command line as "Source" in its metadata.

    Raises:
      ValueError: the run directory has no config.json or no benchmark.csv.
    """
    config = read.load_config(run_dir)
    table = pathlib.Path(run_dir) / "benchmark.csv"
    if not table.exists():
        raise ValueError(f"{os.fspath(run_dir)!r} has no benchmark.csv; allowed: a run of experiments.benchmark.")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    version = next((row["version"] for row in rows if row["library"] == "ours"), "")
    device = config["device"]
    title = f"rnn_jax {version} = 1, on {config['cpu_count']} cores"
    title += "" if device["platform"] == "cpu" else f" and {device['kind']}"

    folder = pathlib.Path(run_dir) / "figures"
    folder.mkdir(exist_ok=True)
    figure = ratios_figure(rows, title, memory=config["flags"]["memory"])
    figure.savefig(folder / "benchmark.png", dpi="figure", metadata={"Source": " ".join(config["argv"])})
    return folder / "benchmark.png"
