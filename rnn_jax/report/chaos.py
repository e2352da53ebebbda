"""Figure of the transition from order to chaos: the largest Lyapunov exponent against the gain.

    python -c "from rnn_jax.report.chaos import draw_chaos; draw_chaos('runs/...')"

is for runs of `experiments.order_and_chaos`.
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.style import COLORS, COLUMN, legend_below, paper, save_figure

_CAPTION = (
    "The largest Lyapunov exponent of random tanh networks that run free, against the gain of their recurrent matrix:"
    " the median over seeds, a bar from the least to the largest, and the theory for infinitely many units. Below 0 a"
    " small change dies out, and the gradient vanishes; above 0 it grows, and the gradient explodes. The sign changes"
    " at gain 1."
)


@paper()
def chaos_figure(rows: Sequence[Mapping[str, str]], title: str = "") -> Figure:
    """Draws exponents against gains.

    Args:
      rows: of order_and_chaos.csv: gain, seed, exponent, theory.
      title: of the figure.
    """
    gains = sorted({float(row["gain"]) for row in rows})
    found = [np.array([float(row["exponent"]) for row in rows if float(row["gain"]) == gain]) for gain in gains]
    theory = [next(float(row["theory"]) for row in rows if float(row["gain"]) == gain) for gain in gains]
    medians = np.array([np.median(values) for values in found])
    bars = [medians - [values.min() for values in found], [values.max() for values in found] - medians]
    figure = Figure(figsize=(COLUMN, 3.0), layout="constrained")
    figure.suptitle(title)
    ax = figure.subplots()
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.axvline(1, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    ax.plot(gains, theory, color=COLORS[1], linestyle="--", linewidth=1.2, label="theory, infinitely many units")
    ax.errorbar(gains, medians, yerr=bars, color=COLORS[0], linestyle="", linewidth=1, label="_range")
    ax.plot(gains, medians, "o", color=COLORS[0], markersize=4, label="median over seeds")
    ax.set(xlabel="gain g", ylabel="largest Lyapunov exponent, nats a step")
    legend_below(ax)
    return figure


def draw_chaos(run_dir: read.StrPath) -> list[pathlib.Path]:
    """Draws order_and_chaos.csv of a run into its figures/ and returns the path written.

    Raises:
      ValueError: the run directory has no config.json.
    """
    config, folder = read.load_config(run_dir), pathlib.Path(run_dir)
    flags = config["flags"]
    with (folder / "order_and_chaos.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    title = f"{flags.get('hidden')} units, {flags.get('seeds')} seeds"
    path = folder / "figures" / "order_and_chaos.png"
    return [save_figure(chaos_figure(rows, title), path, caption=_CAPTION, source=command(config))]
