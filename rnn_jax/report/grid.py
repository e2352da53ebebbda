"""The figure of a Grid LSTM: what was learned, and how far the gradient reached along each dimension of the grid.

    python -c "from rnn_jax.report.grid import draw_grid; draw_grid('runs/...')"

is for runs of `experiments.grid_lstm`, which leave grid_profile.csv: network, stage, seed, dimension, place, lag,
log10_norm. The lag of a place counts from the end of its dimension: steps back from the last, levels below the top.
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.learning import LearningCurve, learning_curves, plot_learning
from rnn_jax.report.profiles import over_seeds
from rnn_jax.report.style import COLORS, MARKERS, TEXT_WIDTH, mark_every, paper, save_figure

# (network, stage, dimension) -> log10 norms [seeds, places]
GridProfiles = Mapping[tuple[str, str, str], np.ndarray]

_STAGES = {"initialization": (0, (4, 2)), "trained": "-"}  # the lines
_CAPTION = (
    "Left: the score on held-out examples along training, a line for each network. Beside it: how much of the gradient"
    " reaches each place along each dimension of the grid, over its largest value, before training (dashed) and after"
    " it (solid), the median over seeds. A line that stays near 0 is a dimension along which the gradient lives."
)
_LAGS = {
    "time": "steps back from the end",
    "rows": "rows back from the last",
    "columns": "columns back from the last",
    "depth": "levels below the top",
}


def load_grid_profiles(run_dir: read.StrPath) -> dict[tuple[str, str, str], np.ndarray]:
    """Reads grid_profile.csv.

    Raises:
      ValueError: if the run wrote none.
    """
    path = pathlib.Path(run_dir) / "grid_profile.csv"
    if not path.exists():
        raise ValueError(f"{str(run_dir)!r} has no grid_profile.csv; allowed: a run of experiments.grid_lstm.")
    by_key: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            key = row["network"], row["stage"], row["dimension"]
            by_key.setdefault(key, {}).setdefault(int(row["seed"]), []).append(float(row["log10_norm"]))
    return {key: np.array(list(seeds.values())) for key, seeds in by_key.items()}


def plot_along(ax: Axes, profiles: GridProfiles, dimension: str, colors: Mapping[str, str]) -> Axes:
    """Draws the profiles along one dimension, each over its largest value: dashed before training, solid after."""
    markers = dict(zip(colors, MARKERS[1:] * len(colors)))
    for (network, stage, of), norm_SP in profiles.items():
        if of != dimension:
            continue
        largest = np.max(norm_SP, axis=-1, keepdims=True, where=np.isfinite(norm_SP), initial=-np.inf)
        with np.errstate(invalid="ignore"):  # a profile of zeros has no largest value
            median_P, low_P, high_P = over_seeds(norm_SP - largest)
        lags_P = np.arange(norm_SP.shape[-1])[::-1]
        style: dict[str, Any] = {"color": colors[network], "linestyle": _STAGES[stage], "marker": markers[network]}
        style |= {"markersize": 3.5, "markevery": mark_every(len(lags_P)), "linewidth": 1.3}
        ax.plot(lags_P, median_P, **style, label=f"_{network}, {stage}")
        if stage == "trained" and len(norm_SP) > 1:
            ax.fill_between(lags_P, low_P, high_P, color=colors[network], alpha=0.15, linewidth=0)
    ax.set_xlabel(_LAGS[dimension])
    ax.set_title(f"gradient along {dimension}")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return ax


@paper()
def grid_figure(
    curves: Sequence[LearningCurve], rows: Sequence[Mapping[str, str]], profiles: GridProfiles, title: str = ""
) -> Figure:
    """The learning curves of all networks, and beside them a panel for each dimension.

    Args:
      curves: of the networks.
      rows: of summary.csv, for baseline_score.
      profiles: as `load_grid_profiles`.
      title: of the figure.
    """
    networks = list(dict.fromkeys(network for network, _, _ in profiles))
    seen = {dimension for _, _, dimension in profiles}
    dimensions = [dimension for dimension in _LAGS if dimension in seen]
    colors = {network: COLORS[k % len(COLORS)] for k, network in enumerate(networks)}
    panels = 1 + len(dimensions)
    figure = Figure(figsize=(TEXT_WIDTH, 2.6), layout="constrained")
    figure.suptitle(title)
    first, *beside = figure.subplots(1, panels)
    for curve in curves:
        marker = MARKERS[1 + networks.index(curve.cell)] if curve.cell in networks else ""
        style = {"marker": marker, "markersize": 3.5, "markevery": mark_every(len(curve.steps))}
        plot_learning(first, curve, color=colors.get(curve.cell, "0.4"), **style)
    for score in {float(row["baseline_score"]) for row in rows}:
        first.axhline(score, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        first.annotate(
            f"ignoring the input: {score:.3g}", (1, score), (0, 4), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=7, color="0.4",
        )  # fmt: skip
    first.set_title("what was learned")
    first.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax, dimension in zip(beside, dimensions, strict=True):
        plot_along(ax, profiles, dimension, colors)
    beside[0].set_ylabel("log$_{10}$ of ‖adjoint‖ / its largest value")
    handles, labels = first.get_legend_handles_labels()
    handles += [first.plot([], [], color="0.4", linestyle=style)[0] for style in _STAGES.values()]
    labels += ["gradient before training", "gradient after training"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def draw_grid(run_dir: read.StrPath) -> list[pathlib.Path]:
    """Draws a run of `experiments.grid_lstm` into its figures/grid_lstm.png and returns that path.

    Raises:
      ValueError: the run directory has no config.json, no metrics.csv or no grid_profile.csv.
    """
    config = read.load_config(run_dir)
    flags, rows = config.get("flags", {}), read.load_table(run_dir)
    curves = learning_curves(read.load_metrics(run_dir))
    sizes = {row["network"]: f"{row['network']}, {int(row['parameters']):,} parameters" for row in rows}
    title = f"{flags['task']}, {flags['depth']} levels, {flags['seeds']} seed{'s' if flags['seeds'] > 1 else ''}"
    profiles = {
        (sizes.get(network, network), stage, dimension): norms
        for (network, stage, dimension), norms in load_grid_profiles(run_dir).items()
    }
    named = [LearningCurve(sizes.get(c.cell, c.cell), c.metric, c.steps, c.scores_LS) for c in curves]
    figure = grid_figure(named, rows, profiles, title)
    path = pathlib.Path(run_dir) / "figures" / "grid_lstm.png"
    return [save_figure(figure, path, caption=_CAPTION, source=command(config))]
