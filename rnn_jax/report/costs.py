"""Figures of what computing costs: many seeds in one program, and a step of a long sequence.

    python -c "from rnn_jax.report.costs import draw_costs; draw_costs('runs/...')"

is for runs of `experiments.ensembles` and of `experiments.long_sequences`.
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.hover import say
from rnn_jax.report.style import COLORS, COLUMN, TEXT_WIDTH, legend_below, paper, save_figure

_ENSEMBLES_CAPTION = (
    "Seconds to train all seeds, compilation included: one program for all of them (filled), and one run after another"
    " (open). The number is how many times faster the one program was."
)
_LENGTHS_CAPTION = (
    "Left: the time that the gradient and its profile take for each step of a sequence; a level line is a cost that"
    " does not grow with the length. Right: the most memory that the process has held so far."
)


@paper()
def ensembles_figure(rows: Sequence[Mapping[str, str]], title: str = "") -> Figure:
    """Both times of each cell.

    Args:
      rows: of ensembles.csv: cell, seconds_together, seconds_alone, ratio.
      title: of the figure.
    """
    figure = Figure(figsize=(COLUMN, 1.3 + 0.25 * len(rows)), layout="constrained")
    figure.suptitle(title)
    ax = figure.subplots()
    for place, row in enumerate(rows):
        together, alone = float(row["seconds_together"]), float(row["seconds_alone"])
        ax.plot([together, alone], [place, place], color="0.7", linewidth=1, zorder=1)
        ways = ((together, COLORS[0], "one program for all"), (alone, "white", "one run after another"))
        for seconds, face, name in ways:
            label = name if place == 0 else f"_{name}"
            (mark,) = ax.plot([seconds], [place], "o", color=COLORS[0], markerfacecolor=face, markersize=5, label=label)
            say(mark, [f"{row['cell']}, {name}\n{seconds:.1f} s"])
        ax.annotate(
            f"{float(row['ratio']):.2f}", (1, place), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=7,
        )  # fmt: skip
    ax.set_yticks(range(len(rows)), [row["cell"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("seconds")
    legend_below(ax, handlelength=1.2)
    return figure


@paper()
def lengths_figure(rows: Sequence[Mapping[str, str]], title: str = "") -> Figure:
    """Time a step and peak memory against the length of the sequence.

    Args:
      rows: of long_sequences.csv: steps, microseconds_a_step, peak_bytes.
      title: of the figure.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 2.3), layout="constrained")
    figure.suptitle(title)
    steps = [int(row["steps"]) for row in rows]
    panels = {
        "microseconds a step": [float(row["microseconds_a_step"]) for row in rows],
        "peak memory, GB": [float(row["peak_bytes"]) / 1e9 for row in rows],
    }
    for ax, (name, values) in zip(figure.subplots(1, 2), panels.items()):
        ax.plot(steps, values, marker="o", color=COLORS[0], markersize=4, linewidth=1.4, label=f"_{name}")
        ax.set(xscale="log", xlabel="steps in the sequence", ylabel=name, ylim=(0, 1.15 * max(values)))
    return figure


def draw_costs(run_dir: read.StrPath) -> list[pathlib.Path]:
    """Draws ensembles.csv or long_sequences.csv of a run into its figures/ and returns the paths written.

    Raises:
      ValueError: the run directory has no config.json.
    """
    config, folder = read.load_config(run_dir), pathlib.Path(run_dir)
    flags, source = config.get("flags", {}), command(config)
    paths = []
    for name, draw, caption in (
        ("ensembles", ensembles_figure, _ENSEMBLES_CAPTION),
        ("long_sequences", lengths_figure, _LENGTHS_CAPTION),
    ):
        if not (folder / f"{name}.csv").exists():
            continue
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        told = ("cell", "seeds", "steps", "hidden", "batch")
        title = ", ".join(f"{flag} {flags[flag]}" for flag in told if flag in flags)
        path = folder / "figures" / f"{name}.png"
        paths.append(save_figure(draw(rows, title), path, caption=caption, source=source))
    return paths
