"""Figures of gradient profiles: how far back through time a gradient lives, cell against cell.

    python -c "from rnn_jax.report.profiles import draw_profiles; draw_profiles('runs/...')"

Frames end at 10^-12 of the largest value, and say so: a curve that runs down to 10^-300 would flatten all
that can be compared.
"""

import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.style import COLUMN, legend_below, line_style, paper, save_figure

_FLOOR = -12.0
_E, _THOUSAND = -math.log10(math.e), -3.0  # where the horizons are read off: 1/e and 1/1000
_LAG = "lag  T \N{MINUS SIGN} t  (steps back from the end)"
_LAG_OF_EACH = "lag  T \N{MINUS SIGN} t  (steps back from the end of each sequence)"
_NORM = "‖∂L/∂carry$_t$‖"
_RATIO = f"log$_{{10}}$ of {_NORM} / its largest value"
# What a panel is called, for each value of the column "stage" of summary.csv.
_STAGES = {"initialization": "at initialization", "trained": "after training"}

_PROFILES_CAPTION = (
    "How large the gradient of the loss with respect to the carry is, against the lag: how many steps before the end."
    " Each line is the median over seeds, each band their range, over the largest value along the sequence. A line that"
    " falls steeply is a gradient that vanishes: what happened so long ago cannot be learned from. A flat line reaches"
    " back over all steps. The legend has the lag at which it has fallen to 1/1000."
)
_TRAINING_CAPTION = (
    "The same gradient along training: a row for each logged step, from the first at the bottom, the lag to the right;"
    " the darker, the smaller. A white mark stands where a row falls below 1/1000 of its largest value for good: if it"
    " moves to the right on the way up, the network has learned to reach further back."
)


class _Curve(NamedTuple):
    """One layer of one cell: it has a line, or a heat map, of its own."""

    label: str
    cell: str
    layer: str
    log10_ratio_LST: np.ndarray


def plot_profile(ax: Axes, log10_norm_ST: np.ndarray, *, label: str, color: str, **style: Any) -> Axes:
    """Draws a gradient profile against the lag: a line for the median over seeds, a band for their range.

    Exact zeros (-inf; always at t = T when the loss reads outputs only) and NaN are left out.

    Args:
      ax: where to draw.
      log10_norm_ST: [seeds, time].
      label: the line's name in a legend.
      color: of line and band.
      **style: of the line.
    """
    lags_T = _lags(log10_norm_ST)
    median_T, low_T, high_T = over_seeds(log10_norm_ST)
    ax.plot(lags_T, median_T, label=label, color=color, **{"linewidth": 1.4, **style})
    if len(log10_norm_ST) > 1:
        ax.fill_between(lags_T, low_T, high_T, color=color, alpha=0.15, linewidth=0)
    ax.set_xlabel(_LAG)
    ax.set_ylabel(f"log$_{{10}}$ {_NORM}")
    return ax


def plot_training(ax: Axes, steps_L: np.ndarray, log10_ratio_LST: np.ndarray, *, floor: float) -> AxesImage:
    """Draws profiles along training as a heat map: median over seeds, a row a logged step, lag to the right.

    A white mark shows where a row falls below 1/1000 of its largest value for good. Zeros and NaN stay grey.

    Args:
      ax: where to draw.
      steps_L: [L], the logged steps.
      log10_ratio_LST: [L, seeds, time], log10 of the norm over its largest value in the sequence.
      floor: the value of the darkest color.
    """
    median_LT = np.array([over_seeds(ratio_ST)[0][::-1] for ratio_ST in log10_ratio_LST])  # by lag
    rows, time = median_LT.shape
    ax.set_facecolor("0.8")
    image = ax.imshow(
        np.ma.masked_invalid(median_LT),
        aspect="auto",
        origin="lower",
        extent=(-0.5, time - 0.5, -0.5, rows - 0.5),
        interpolation="nearest",
        cmap="magma",
        vmin=floor,
        vmax=0,
    )
    for row, median_T in enumerate(median_LT):
        last = np.flatnonzero(median_T >= _THOUSAND).max(initial=-1)
        if 0 <= last < time - 1:
            ax.vlines(last + 0.5, row - 0.5, row + 0.5, color="white", linewidth=1.2)
    ticks = np.unique(np.linspace(0, rows - 1, min(rows, 6)).round().astype(int))
    ax.set_yticks(ticks, [str(step) for step in np.asarray(steps_L)[ticks]])
    ax.fmt_ydata = lambda row: f"training step {steps_L[round(row)]}"
    return image


def lag_text(lags: ArrayLike, time_steps: int) -> str:
    """Writes the median of horizons: a lag, "never" where it is the length of the sequence, or "not finite"."""
    if np.min(lags) < 0:
        return "not finite"
    lag = np.median(np.asarray(lags))
    return f"{lag:g}" if lag < time_steps else "never"


@paper()
def profiles_figure(profiles: read.Profiles, horizons: Sequence[Mapping[str, str]], title: str = "") -> Figure:
    """Profiles over their largest value, at the first logged step and at the last, a line for each layer.

    Args:
      profiles: of a run.
      horizons: the rows of its summary.csv: cell, layer, part, stage ("initialization" or "trained"), seed and
        horizon_1000: a lag, or the length of the sequence if the gradient never falls so low, or -1 if it
        is not finite. A layer without rows is named without its horizon.
      title: of the figure.
    """
    curves = _curves(profiles)
    panels = [("initialization", 0), ("trained", -1)]
    if len(profiles.steps) == 1:
        panels = panels[:1] if profiles.steps[0] == 0 else panels[1:]
    figure = Figure(figsize=(len(panels) * COLUMN + 0.2, 2.7 + 0.14 * len(curves)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    reach = _reach(curves)
    for ax, (stage, row) in zip(axes, panels, strict=True):
        for i, curve in enumerate(curves):
            plot_profile(
                ax,
                curve.log10_ratio_LST[row],
                label=curve.label + _horizon(horizons, curve, stage),
                **line_style(i, reach),
            )
        if profiles.sequences:
            ax.set_xlabel(_LAG_OF_EACH)
        for name, level in (("1/e", _E), ("1/1000", _THOUSAND)):
            ax.axhline(level, color="0.4", linewidth=0.5, zorder=1)
            place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            ax.annotate(name, (1, level), (4, 0), **place, va="center", fontsize=7, color="0.4")
        ax.set_title(f"{_STAGES[stage]} (step {profiles.steps[row]})")
        ax.set_ylabel(_RATIO if ax is axes[0] else "")
        ax.set_xlim(0, reach)
        legend_below(ax)

    lowest = _lowest(curves)
    axes[0].set_ylim(np.clip(lowest, _FLOOR, _THOUSAND - 0.5), 0.3)
    if lowest < _FLOOR:
        note = f"The frame ends at 10$^{{{_FLOOR:.0f}}}$; the lowest value is 10$^{{{lowest:.0f}}}$."
        figure.supxlabel(note, fontsize=7, color="0.4")
    return figure


@paper()
def training_figure(profiles: read.Profiles, title: str = "") -> Figure:
    """Profiles over their largest value, all along training: a heat map a layer, all on one color scale."""
    curves = _curves(profiles)
    rows = math.ceil(len(curves) / 4)
    columns = math.ceil(len(curves) / rows)
    figure = Figure(figsize=((1.0 + 1.5 * max(columns, 1.6)), 0.9 + 1.5 * rows), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    lowest = _lowest(curves)
    for i, (ax, curve) in enumerate(zip(axes, curves, strict=False)):
        image = plot_training(ax, profiles.steps, curve.log10_ratio_LST, floor=np.clip(lowest, _FLOOR, _THOUSAND - 0.5))
        ax.set_title(curve.label)
        ax.spines[["top", "right"]].set_visible(True)
        ax.tick_params(labelbottom=i + columns >= len(curves))
        ax.set_ylabel("" if i % columns else "training step")
    for ax in axes[len(curves) :]:
        ax.remove()
    axes[0].set_xlim(-0.5, _reach(curves) + 0.5)
    lag = _LAG_OF_EACH if profiles.sequences else _LAG
    figure.supxlabel(f"{lag}\nwhite: below 1/1000 from here on    grey: exactly zero, or NaN")
    bar = figure.colorbar(image, ax=list(axes[: len(curves)]), extend="min" if lowest < _FLOOR else "neither")
    bar.set_label(_RATIO, fontsize=7)
    return figure


def draw_profiles(run_dir: read.StrPath) -> list[pathlib.Path]:
    """Draws the gradient profiles of a run into its figures/ and returns the paths written.

    gradient_flow.png shows the profiles before and after training; gradient_flow_training.png, if the run
    logged more than one, the way between. Both hold the run's command line as "Source" in their metadata.

    Raises:
      ValueError: the run directory has no config.json or no gradient_flow.npz.
    """
    config = read.load_config(run_dir)
    profiles = read.load_profiles(run_dir)
    title = run_title(config.get("flags", {}), profiles)
    of_each = _of_each(profiles)
    figures = {
        "gradient_flow.png": (profiles_figure(profiles, read.load_table(run_dir), title), _PROFILES_CAPTION + of_each),
    }
    if len(profiles.steps) > 1:
        figures["gradient_flow_training.png"] = training_figure(profiles, title), _TRAINING_CAPTION + of_each
    folder = pathlib.Path(run_dir) / "figures"
    return [
        save_figure(figure, folder / name, caption=caption, source=command(config))
        for name, (figure, caption) in figures.items()
    ]


def _of_each(profiles: read.Profiles) -> str:
    """Says, of sequences that differ in length, from where lags count and how many sequences they rest on."""
    counts = [count_T for layers in profiles.sequences.values() for count_T in layers.values()]
    if not counts:
        return ""
    shortest = min(counts, key=len)
    first, last = int(shortest[-1]), int(shortest[0])
    reached = (
        f"all lags rest on {first} sequences"
        if first == last
        else f"lag 0 rests on {first} sequences, and lag {len(shortest) - 1}, the last that is shown, on {last} of them"
    )
    return (
        f" The sequences differ in length. The lag counts from the end of each: {reached}; lags that fewer than half"
        " reach are left out."
    )


def _curves(profiles: read.Profiles) -> list[_Curve]:
    """Of whole carries; a layer's path is in the label where a cell has several."""
    curves = []
    for cell in profiles.log10_norm:
        layers = profiles.whole_carries(cell)
        for layer, log10_norm in layers.items():
            label = cell if len(layers) == 1 else f"{cell} {layer}"
            curves.append(_Curve(label, cell, layer, _ratio(log10_norm)))
    return curves


def _ratio(log10_norm: np.ndarray) -> np.ndarray:
    """[..., time], divided (in log10) by its largest finite value over time."""
    largest = np.max(log10_norm, axis=-1, keepdims=True, where=np.isfinite(log10_norm), initial=-np.inf)
    with np.errstate(invalid="ignore"):  # a profile of zeros only has no largest value: NaN
        return log10_norm - largest


def _lags(log10_norm: np.ndarray) -> np.ndarray:
    return np.arange(log10_norm.shape[-1])[::-1]


def over_seeds(values_ST: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, smallest and largest over seeds; NaN where there is nothing to draw. Zeros enter the median."""
    finite_ST = np.where(np.isfinite(values_ST), values_ST, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of steps where all seeds are NaN
        median_T = np.nanmedian(values_ST, axis=0)
        low_T, high_T = np.nanmin(finite_ST, axis=0), np.nanmax(finite_ST, axis=0)
    return np.where(np.isfinite(median_T), median_T, np.nan), low_T, high_T


def _lowest(curves: Sequence[_Curve]) -> float:
    return min(np.min(c.log10_ratio_LST, where=np.isfinite(c.log10_ratio_LST), initial=0.0) for c in curves)


def _reach(curves: Sequence[_Curve]) -> int:
    """The largest lag that is inside the frame of any curve."""
    return max(
        int(_lags(c.log10_ratio_LST)[(c.log10_ratio_LST >= _FLOOR).any(axis=(0, 1))].max(initial=1)) for c in curves
    )


def _horizon(rows: Sequence[Mapping[str, str]], curve: _Curve, stage: str) -> str:
    key = (curve.cell, curve.layer, "", stage)
    lags = [float(row["horizon_1000"]) for row in rows if (row["cell"], row["layer"], row["part"], row["stage"]) == key]
    time = curve.log10_ratio_LST.shape[-1]
    if not lags:
        return ""
    finite = [lag for lag in lags if lag >= 0]  # the seeds that the line is of
    if not finite:
        return "  (not finite)"
    lag = np.median(finite)
    return f"  (1/1000 at lag {lag:g})" if lag < time else f"  (never within {time} steps)"


def run_title(flags: Mapping[str, Any], profiles: read.Profiles) -> str:
    words = [str(flags["task"])] if flags.get("task") else []
    words += [f"{flags['hidden']} hidden units"] if flags.get("hidden") else []
    seeds = max(array.shape[1] for parts in profiles.log10_norm.values() for array in parts.values())
    return ", ".join([*words, f"{seeds} seed{'s' if seeds > 1 else ''}"])
