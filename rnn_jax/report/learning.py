"""Figures of what was learned: the score along training, and how far back the gradient reached.

    python -c "from rnn_jax.report.learning import draw_learning; draw_learning('runs/...')"

is for runs of `experiments.gradient_flow`, many networks in one figure; `draw_training` is for a run of
`experiments.train`, one network, with its loss.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.profiles import over_seeds, run_title
from rnn_jax.report.style import COLORS, COLUMN, TEXT_WIDTH, legend_below, line_style, paper, save_figure

_HORIZONS = {"horizon_e": ("o", "1/e"), "horizon_1000": ("D", "1/1000")}  # of summary.csv: marker and name
_STAGES = ("initialization", "trained")
_NAME = re.compile(r"(?P<cell>.+)/seed(?P<seed>\d+)/held_out_(?P<metric>.+)")
_FRAME = 30  # times the baseline score: where the axis ends if a network's errors explode
# Metrics that are shares: the larger, the better, on a linear axis. Errors fall by powers of ten, on a logarithmic one.
SHARES = ("accuracy", "exact match", "word overlap")

_LEARNING_CAPTION = (
    "Left: the score on held-out examples along training, the median over seeds and, as a band, their range; the dashed"
    " line is the score of ignoring the input: a curve that stays there has learned nothing. Right: the lag at which"
    " the gradient has fallen to 1/e and to 1/1000, before training (open) and after it (filled), a line from the least"
    " to the largest seed. What is to be remembered must lie within this reach of the gradient."
)
_TRAINING_CAPTION = (
    "From left to right, as far as the run has it: the loss on training batches; the score on the validation split, and"
    " on the test split where a diamond stands, against that of ignoring the input (dashed); and how far back the"
    " gradient reached, each layer's lag at which it has fallen to 1/e. A loss that falls while the validation score"
    " turns is a network that learns its examples by heart."
)


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """The score of one cell on held-out examples, along its training.

    Attributes:
      cell: its label.
      metric: what the score is called.
      steps: [L], how many updates the cell had seen.
      scores_LS: [L, seeds].
    """

    cell: str
    metric: str
    steps: np.ndarray
    scores_LS: np.ndarray


def learning_curves(metrics: Mapping[str, Mapping[int, float]]) -> list[LearningCurve]:
    """Returns the curves that `metrics.csv` holds as <cell>/seed<k>/held_out_<metric>, in its order."""
    by_cell: dict[tuple[str, str], list[Mapping[int, float]]] = {}
    for name, values in metrics.items():
        if found := _NAME.fullmatch(name):
            by_cell.setdefault((found["cell"], found["metric"]), []).append(values)
    curves = []
    for (cell, metric), seeds in by_cell.items():
        steps = sorted(set.intersection(*(set(values) for values in seeds)))  # a killed run may have cut the last
        scores_LS = np.array([[values[step] for values in seeds] for step in steps]).reshape(len(steps), len(seeds))
        curves.append(LearningCurve(cell, metric, np.array(steps), scores_LS))
    return curves


def plot_learning(ax: Axes, curve: LearningCurve, *, color: str, **style: Any) -> Axes:
    """Draws a score against the training step: a line for the median over seeds, a band for their range.

    Seeds whose score is not finite are left out, and counted in the legend.
    """
    median_L, low_L, high_L = over_seeds(np.where(np.isfinite(curve.scores_LS), curve.scores_LS, np.nan).T)
    seeds, lost = curve.scores_LS.shape[1], int(np.sum(~np.isfinite(curve.scores_LS[-1:])))
    label = curve.cell + (f"  (diverged: {lost} of {seeds} seeds)" if lost else "")
    ax.plot(curve.steps, median_L, label=label, color=color, **{"linewidth": 1.4, **style})
    if seeds > 1:
        ax.fill_between(curve.steps, low_L, high_L, color=color, alpha=0.15, linewidth=0)
    ax.set_xlabel("training step")
    ax.set_ylabel(f"{curve.metric} on held-out examples")
    return ax


def plot_horizons(ax: Axes, rows: Sequence[Mapping[str, str]], *, y: float, color: str) -> Axes:
    """Draws the horizons of one layer about the height y: open before training, filled after it, a line for all seeds.

    A seed whose training diverged has none after it, and one whose gradient is not finite (-1) has none.

    Args:
      ax: where to draw.
      rows: those of the layer in summary.csv.
      y: where.
      color: of the marks.
    """
    for k, (column, (marker, name)) in enumerate(_HORIZONS.items()):
        for j, stage in enumerate(_STAGES):
            seen = [row for row in rows if row["stage"] == stage and (stage == _STAGES[0] or _finite(row))]
            lags_S = [float(row[column]) for row in seen if float(row[column]) >= 0]
            if not lags_S:
                continue
            height = y + 0.08 - 0.26 * k - 0.12 * j
            face = color if stage == "trained" else "white"
            ax.plot([min(lags_S), max(lags_S)], [height, height], color=color, linewidth=1.0, zorder=2)
            ax.plot(
                [np.median(lags_S)], [height], marker, color=color, markerfacecolor=face, markersize=4, clip_on=False,
                label=f"_{rows[0]['cell']}, to {name}, {stage}",
            )  # fmt: skip
    return ax


@paper()
def learning_figure(
    curves: Sequence[LearningCurve], rows: Sequence[Mapping[str, str]], time: int | None = None, title: str = ""
) -> Figure:
    """Scores along training, all cells in one panel, and beside it the horizons of each before and after.

    Args:
      curves: of the cells, at least one.
      rows: of summary.csv: cell, layer, part, stage, horizon_e, horizon_1000, test_score, baseline_score. Without
        rows there is one panel.
      time: steps in a sequence, where a horizon says that the gradient lives over all of it.
      title: of the figure.
    """
    layers = _layers(rows)
    panels = 2 if layers else 1
    figure = Figure(
        figsize=(COLUMN * panels + 0.2, 1.7 + 0.34 * max(len(curves), len(layers), 3)), layout="constrained"
    )
    figure.suptitle(title)
    ax, *beside = figure.subplots(1, panels, squeeze=False)[0]

    for i, curve in enumerate(curves):
        plot_learning(ax, curve, **line_style(i, len(curve.steps)))
    baseline = {float(row["baseline_score"]) for row in rows if row.get("baseline_score")}
    for score in baseline:
        ax.axhline(score, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            f"ignoring the input: {score:.4g}", (1, score), (0, 4), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=7, color="0.4",
        )  # fmt: skip
    if not any(curve.metric in SHARES or np.any(curve.scores_LS <= 0) for curve in curves):
        ax.set_yscale("log")
        highest = max(np.max(c.scores_LS, where=np.isfinite(c.scores_LS), initial=0.0) for c in curves)
        frame = _FRAME * max(baseline, default=np.inf)
        lowest = min(np.min(c.scores_LS, where=np.isfinite(c.scores_LS), initial=frame) for c in curves)
        lowest = min([lowest, *baseline])
        if highest > frame:
            ax.set_ylim(0.7 * lowest, frame)
            note = f"The left frame ends at {frame:.2g}; the highest value is {highest:.2g}."
            figure.supxlabel(note, fontsize=7, color="0.4")
    ax.set_xlim(0, max(curve.steps.max(initial=1) for curve in curves))
    legend_below(ax)
    ax.set_title("what was learned")

    if beside:
        colors = {curve.cell: COLORS[i % len(COLORS)] for i, curve in enumerate(curves)}
        _draw_horizons(beside[0], layers, colors, time)
    return figure


def _draw_horizons(
    ax: Axes, layers: Mapping[tuple[str, str], Sequence[Mapping[str, str]]], colors: Mapping[str, str], time: int | None
) -> None:
    cells = [cell for cell, _ in layers]
    labels = [cell if cells.count(cell) == 1 else f"{cell} {layer}" for cell, layer in layers]
    for i, ((cell, _), rows) in enumerate(layers.items()):
        plot_horizons(ax, rows, y=-i, color=colors.get(cell, "0.4"))
        ax.annotate(
            labels[i], (0, 0.5 - i), (4, -2), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="top", fontsize=7, color=colors.get(cell, "0.4"),
        )  # fmt: skip
    ax.set_yticks([])
    ax.set_ylim(-len(labels) + 0.5, 0.5)
    ax.fmt_ydata = lambda _: ""
    ax.set_title("how far back the gradient reaches")
    ax.set_xlabel("horizon: lag at which ‖∂L/∂carry$_t$‖ has fallen")
    for boundary in range(1, len(labels)):
        ax.axhline(0.5 - boundary, color="0.9", linewidth=0.8, zorder=0)
    if time is not None:
        ax.axvline(time, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.set_xlim(0, time)
        ax.annotate(
            f"never within {time} steps", (time, 0.5), (-5, -3), textcoords="offset points",
            ha="right", va="top", fontsize=7, color="0.4",
        )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines["left"].set_visible(False)
    keys = [
        Line2D([], [], color="0.3", marker=marker, linestyle="", markerfacecolor=face, label=f"to {name}, {stage}")
        for marker, name in _HORIZONS.values()
        for stage, face in (("before training", "white"), ("after", "0.3"))
    ]
    legend_below(ax, handles=keys, ncols=2, handlelength=1.2, columnspacing=1)


def draw_learning(run_dir: read.StrPath, *others: read.StrPath, out: read.StrPath | None = None) -> list[pathlib.Path]:
    """Draws the learning curves of a run into its figures/learning.png and returns that path.

    It returns no path, and draws nothing, if the run scored no held-out examples.

    Args:
      run_dir: of the run.
      others: of more runs, of the same task, to be drawn in the same figure. Where their learning rates differ, names
        tell them.
      out: another path for the figure.

    Raises:
      ValueError: a run directory has no config.json or no metrics.csv.
    """
    run_dirs = (run_dir, *others)
    configs = [read.load_config(folder) for folder in run_dirs]
    rates = [config.get("flags", {}).get("learning_rate") for config in configs]
    curves: list[LearningCurve] = []
    rows: list[Mapping[str, str]] = []
    for folder, own_rates in zip(run_dirs, rates, strict=True):
        unlike = any(of_other != own_rates for of_other in rates)
        suffix = f" at {float(own_rates[0]):g}" if unlike and own_rates and len(own_rates) == 1 else ""  # else in names
        curves += [
            dataclasses.replace(curve, cell=curve.cell + suffix) for curve in learning_curves(read.load_metrics(folder))
        ]
        rows += [{**row, "cell": row["cell"] + suffix} for row in read.load_table(folder)]
    if not curves:
        return []
    time, title = None, ""
    if (pathlib.Path(run_dir) / "gradient_flow.npz").exists():
        profiles = read.load_profiles(run_dir)
        time = max(array.shape[-1] for parts in profiles.log10_norm.values() for array in parts.values())
        title = run_title(configs[0].get("flags", {}), profiles)
    figure = learning_figure(curves, rows, time, title)
    path = pathlib.Path(run_dir) / "figures" / "learning.png" if out is None else pathlib.Path(out)
    source = "; ".join(command(config) for config in configs)
    return [save_figure(figure, path, caption=_LEARNING_CAPTION, source=source)]


def plot_loss(ax: Axes, steps: Sequence[int], losses: Sequence[float]) -> Axes:
    """Draws the training loss against the training step, on a logarithmic axis if it falls below a tenth."""
    ax.plot(steps, losses, color=COLORS[0], linewidth=1.4, label="_loss")
    _scale(ax, losses)
    ax.set_xlabel("training step")
    ax.set_ylabel("loss on training batches")
    return ax


def plot_scores(
    ax: Axes,
    metric: str,
    validation: Mapping[int, float],
    *,
    test: tuple[int, float] | None = None,
    baseline: float | None = None,
) -> Axes:
    """Draws the scores of one network against the training step.

    Args:
      ax: where to draw.
      metric: what the score is called.
      validation: step -> score on the validation split; empty without one.
      test: the step of the weights that were tested, and their score.
      baseline: score of the input-independent baseline.
    """
    if validation:
        steps, scores = list(validation), list(validation.values())
        ax.plot(steps, scores, color=COLORS[0], linewidth=1.4, marker=".", label="validation")
    if test is not None:
        label = f"test, at step {test[0]}: {test[1]:.4g}"
        ax.plot(*([value] for value in test), "D", color=COLORS[1], markersize=5, clip_on=False, label=label)
    if baseline is not None:
        label = f"ignoring the input: {baseline:.4g}"
        ax.axhline(baseline, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label=label)
    if metric not in SHARES:
        others = [*([] if test is None else test[1:]), *([] if baseline is None else [baseline])]
        _scale(ax, [*validation.values(), *others])
    ax.set_xlabel("training step")
    ax.set_ylabel(metric)
    return ax


def plot_reach(ax: Axes, steps_L: np.ndarray, log10_norm: Mapping[str, np.ndarray]) -> Axes:
    """Draws against the training step the lag from which on the gradient stays below 1/e of its largest value.

    A line for each layer; none where a profile is not finite.

    Args:
      ax: where to draw.
      steps_L: [L], the logged steps.
      log10_norm: by layer, [L, time].
    """
    lags = {layer: reach(profile_LT) for layer, profile_LT in log10_norm.items()}
    for i, (layer, lags_L) in enumerate(lags.items()):
        ax.plot(steps_L, lags_L, label=layer, **{**line_style(i, len(steps_L)), "linewidth": 1.4})
    time = max(profile_LT.shape[-1] for profile_LT in log10_norm.values())
    furthest = max(np.max(lags_L, where=np.isfinite(lags_L), initial=0.0) for lags_L in lags.values())
    if furthest < time / 4:  # to show all steps would flatten it
        ax.set_ylim(0, 1.25 * max(furthest, 1))
    else:
        ax.set_ylim(0, 1.08 * time)
        ax.axhline(time, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            f"never within {time} steps", (1, time), (0, 4), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=7, color="0.4",
        )  # fmt: skip
    ax.set_xlabel("training step")
    ax.set_ylabel(f"horizon: lag, of {time} steps, at which\n‖∂L/∂carry$_t$‖ has fallen to 1/e")
    return ax


def reach(log10_norm: np.ndarray) -> np.ndarray:
    """Returns the lag from which on a norm stays below 1/e of its largest value; NaN if it is not finite.

    Args:
      log10_norm: [..., time].

    Returns:
      [...], time if it never falls so low.
    """
    by_lag = log10_norm[..., ::-1]
    largest = np.max(by_lag, axis=-1, keepdims=True)
    above = (by_lag >= largest - math.log10(math.e)) & (by_lag > -np.inf)
    lags = np.max(np.where(above, np.arange(1, by_lag.shape[-1] + 1), 0), axis=-1)
    return np.where(largest[..., 0] < np.inf, lags, np.nan)


@paper()
def training_figure(
    metrics: Mapping[str, Mapping[int, float]],
    rows: Sequence[Mapping[str, str]],
    profiles: read.Profiles | None = None,
    title: str = "",
) -> Figure:
    """One network's loss, its scores, and how far back its gradient reached, along training: a panel each.

    Args:
      metrics: of metrics.csv: train/loss, and validation/<metric> if there is such a split.
      rows: of summary.csv: test_score, baseline_score, best_step. None if the run is not finished.
      profiles: of the run; None without recurrent layers.
      title: of the figure.
    """
    metric = next((name.partition("/")[2] for name in metrics if name.startswith(("validation/", "test/"))), None)
    panels = 1 + (metric is not None) + (profiles is not None)
    figure = Figure(figsize=((TEXT_WIDTH if panels > 1 else COLUMN), 2.9), layout="constrained")
    figure.suptitle(title)
    ax, *beside = figure.subplots(1, panels, squeeze=False)[0]

    losses = metrics.get("train/loss", {})
    plot_loss(ax, list(losses), list(losses.values()))
    ax.set_title("training loss")
    if metric is not None:
        ax = beside.pop(0)
        test, baseline = None, None
        if rows:
            test = int(rows[0]["best_step"]), float(rows[0]["test_score"])
            baseline = float(rows[0]["baseline_score"])
        plot_scores(ax, metric, metrics.get(f"validation/{metric}", {}), test=test, baseline=baseline)
        ax.set_title("what was learned")
    if profiles is not None:
        (network,) = profiles.log10_norm
        layers = profiles.whole_carries(network)
        plot_reach(beside[0], profiles.steps, {layer: array_LST[:, 0] for layer, array_LST in layers.items()})
        beside[0].set_title("reach of the gradient")

    last = max((step for values in metrics.values() for step in values), default=0)
    for ax in figure.axes:
        ax.set_xlim(0, max(last, 1))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(ax.get_legend_handles_labels()[0]) > (ax in beside):  # the name of a lone layer says nothing
            legend_below(ax)
    return figure


def draw_training(run_dir: read.StrPath) -> list[pathlib.Path]:
    """Draws the training of a run of `experiments.train` into its figures/learning.png and returns that path.

    Raises:
      ValueError: the run directory has no config.json or no metrics.csv.
    """
    config, metrics, rows = read.load_config(run_dir), read.load_metrics(run_dir), read.load_table(run_dir)
    flags = config.get("flags", {})
    folder = pathlib.Path(run_dir)
    profiles = read.load_profiles(folder) if (folder / "gradient_flow.npz").exists() else None
    network = flags["cell"] if flags["recurrent"] else "bag of embeddings"
    title = f"{flags['task']}, {network}" + (f", {flags['hidden']} hidden units" if flags["recurrent"] else "")
    path, source = folder / "figures" / "learning.png", command(config)
    figure = training_figure(metrics, rows, profiles, title)
    return [save_figure(figure, path, caption=_TRAINING_CAPTION, source=source)]


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """Makes the y axis logarithmic if positive values lie further apart than a power of ten."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
        ax.set_yscale("log")


def _finite(row: Mapping[str, str]) -> bool:
    return math.isfinite(float(row["test_score"]))


def _layers(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], list[Mapping[str, str]]]:
    """The rows of whole carries, by cell and layer."""
    by_layer: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        if not row["part"]:
            by_layer.setdefault((row["cell"], row["layer"]), []).append(row)
    return by_layer
