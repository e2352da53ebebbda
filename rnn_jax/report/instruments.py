"""Figures of the instruments that `experiments.measure` has run over the networks of a run, a figure for each.

A second one shows what an instrument found along training, where it has measured networks on the way.

    python -c "from rnn_jax.report.instruments import draw_instruments; draw_instruments('runs/...')"

Each network (a cell; where it has several layers, each of them) has a color and a marker of its own. Lines are medians
over seeds and sequences, bands reach from the tenth to the ninetieth percentile.
"""

import math
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.profiles import plot_profile
from rnn_jax.report.style import COLORS, COLUMN, MARKERS, TEXT_WIDTH, legend_below, mark_every, paper, save_figure

# cell, stage, layer -> quantity -> [seeds, ...]
Found = Mapping[tuple[str, str, str], Mapping[str, np.ndarray]]

_FLOOR = -16.0  # of log10 of singular values: what lies deeper would flatten the rest
_LOST = -6.5  # log10 of the share of the largest below which one step in float32 leaves rounding errors


def _networks(found: Found) -> dict[tuple[str, str], str]:
    """Names each layer of each cell, in their order; the layer is left out where a cell has one alone."""
    layers = list(dict.fromkeys((cell, layer) for cell, _, layer in found))
    cells = [cell for cell, _ in layers]
    return {(cell, layer): cell if cells.count(cell) == 1 else f"{cell} {layer}" for cell, layer in layers}


def _stages(found: Found) -> list[str]:
    """The first stage of training that was measured, and the last."""
    stages = sorted({stage for _, stage, _ in found}, key=_when)
    return stages if len(stages) < 3 else [stages[0], stages[-1]]


def _when(stage: str) -> float:
    """The step of a stage, as far as its name tells it: "trained" is behind all others."""
    known = {"initialization": 0.0, "trained": math.inf}
    return known[stage] if stage in known else float(stage.rpartition("_")[2])


def _title(stage: str) -> str:
    titles = {"initialization": "at initialization", "trained": "trained"}
    return titles.get(stage) or f"after {stage.rpartition('_')[2]} steps"


def _stage_line(found: Found, stage: str) -> Any:
    return "-" if stage == _stages(found)[-1] else (0, (4, 2))


def _style(number: int) -> dict[str, Any]:
    """Color and marker of a network; its linestyle says something else."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[1 + number % (len(MARKERS) - 1)],
        "markersize": 3,
        "linewidth": 1.2,
    }


def _over_all(values: np.ndarray, axes: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, tenth and ninetieth percentile over all axes but the last `axes`; NaN where nothing is finite."""
    flat = np.asarray(values, np.float64).reshape(-1, *values.shape[values.ndim - axes :])
    flat = np.where(np.isfinite(flat), flat, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of places without a finite value
        low, median, high = np.nanpercentile(flat, [10, 50, 90], axis=0)
    return median, low, high


def _line(ax: Axes, xs: np.ndarray, values: np.ndarray, label: str, *, band: bool = True, **style: Any) -> None:
    median, low, high = _over_all(values)
    ax.plot(xs, median, label=label, markevery=mark_every(len(xs)), **style)
    if band:
        ax.fill_between(xs, low, high, color=style["color"], alpha=0.13, linewidth=0)


def _panels(found: Found, rows: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with a column for each stage; axes `[rows, stages]`."""
    stages = _stages(found)
    legend = 0.15 * len(_networks(found)) + 0.5
    width = TEXT_WIDTH if len(stages) > 1 else COLUMN + 0.4
    figure = Figure(figsize=(width, rows * height + legend), layout="constrained")
    axes = figure.subplots(rows, len(stages), sharex="row", sharey="row", squeeze=False)
    for ax, stage in zip(axes[0], stages):
        ax.set_title(_title(stage))
    return figure, axes


@paper()
def profile_figure(found: Found) -> Figure:
    """The gradient profile of whole carries, and what each step adds to the gradient of the parameters."""
    networks = _networks(found)
    figure, axes = _panels(found, 2, 1.7)
    for column, stage in enumerate(_stages(found)):
        norm_ax, share_ax = axes[:, column]
        for number, ((cell, layer), name) in enumerate(networks.items()):
            if (cell, stage, layer) not in found:
                continue
            of = found[cell, stage, layer]
            certain = _certain(of)
            norm_ST, share_ST = of["log10_norm"][:, certain], of["log10_share"][:, certain]
            style = {"markevery": mark_every(norm_ST.shape[-1]), **_style(number)}
            plot_profile(norm_ax, norm_ST, label=name, **style)
            plot_profile(share_ax, share_ST, label=name, **style)
        for ax in (norm_ax, share_ax):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        norm_ax.set(xlabel="", ylabel="" if column else "log$_{10}$ ‖∂L/∂carry$_t$‖")
        share_ax.set_ylabel("" if column else "log$_{10}$ ‖share of ∂L/∂θ‖")
        legend_below(share_ax)
    return figure


def _certain(of: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which steps of a profile at least half of its sequences reach, bool `[time]`."""
    counts_T = of["sequences"][0] if "sequences" in of else np.ones(of["log10_norm"].shape[-1])
    return 2 * counts_T >= np.max(counts_T)


@paper()
def jacobian_figure(found: Found) -> Figure:
    """Singular values of d carry_lag / d carry_0: the largest, the middle and the smallest; and the local radius."""
    networks = _networks(found)
    figure, axes = _panels(found, 2, 1.7)
    lowest, highest = 0.0, 0.0
    for column, stage in enumerate(_stages(found)):
        values_ax, radius_ax = axes[:, column]
        for number, ((cell, layer), name) in enumerate(networks.items()):
            if (cell, stage, layer) not in found:
                continue
            of = found[cell, stage, layer]
            lags, inside, style = of["lags"][0], of["inside"], _style(number)
            log10_values = np.where(inside[..., None], of["log10_values"], np.nan)
            kept = _directions_kept(log10_values)
            for linestyle, place in {"-": 0, "--": kept // 2, ":": kept - 1}.items():
                label = f"_{name}" if linestyle != "-" else name
                if place == 0:
                    highest = max(highest, np.nanmax(_over_all(log10_values[..., 0])[2], initial=0.0))
                _line(values_ax, lags, log10_values[..., place], label, linestyle=linestyle, band=place == 0, **style)
                lowest = min(lowest, np.nanmin(_over_all(log10_values[..., place])[0], initial=0.0))
            _line(radius_ax, lags, np.where(inside, of["spectral_radius"], np.nan), f"_{name}", **style)
        values_ax.axhline(0, color="0.6", linewidth=0.5, zorder=1)
        radius_ax.axhline(1, color="0.6", linewidth=0.5, zorder=1)
        for ax in (values_ax, radius_ax):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        radius_ax.set_xlabel("lag  (steps, from a quarter of the run on)")
        legend_below(radius_ax, handles=[*values_ax.get_legend_handles_labels()[0], *_kinds()], ncols=2)
    axes[0, 0].set_ylim(max(1.1 * lowest, _FLOOR), highest + 0.05 * (highest - max(lowest, _FLOOR)) + 0.1)
    axes[0, 0].set_ylabel("log$_{10}$ singular values")
    axes[1, 0].set_ylabel("spectral radius of a step")
    return figure


def _directions_kept(log10_values: np.ndarray) -> int:
    """Returns how many directions half of the sequences keep in the first step, above rounding error.

    An attending cell forgets its last glimpse at once: half of its directions would be lines of rounding errors.

    Args:
      log10_values: `[..., lags, n]`, the largest first.
    """
    first = log10_values[..., 0, :].reshape(-1, log10_values.shape[-1])
    kept = np.sum(first > first[:, :1] + _LOST, axis=-1)[np.isfinite(first[:, 0])]
    return max(1, int(np.median(kept))) if len(kept) else 1


def _kinds() -> list[Line2D]:
    words: dict[Any, str] = {"-": "largest", "--": "middle", ":": "smallest"}
    return [Line2D([], [], color="0.3", linestyle=line, label=word) for line, word in words.items()]


@paper()
def lyapunov_figure(found: Found) -> Figure:
    """Lyapunov exponents by their rank."""
    networks = _networks(found)
    figure, axes = _panels(found, 1, 2.1)
    for ax, stage in zip(axes[0], _stages(found)):
        for number, ((cell, layer), name) in enumerate(networks.items()):
            if (cell, stage, layer) not in found:
                continue
            of = found[cell, stage, layer]
            exponents = of["exponents"]
            largest = _over_all(exponents)[0][0]
            remark = f"  (largest {largest:.3g}, dimension {np.median(of['dimension']):.3g})"
            _line(ax, np.arange(1, exponents.shape[-1] + 1), exponents, name + remark, **_style(number))
        ax.axhline(0, color="0.6", linewidth=0.5, zorder=1)
        ax.set_xlabel("rank of the exponent")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(ax)
    axes[0, 0].set_ylabel("exponent, nats a step")
    return figure


@paper()
def gates_figure(found: Found) -> Figure:
    """A row for each network, of a grid for each level: gates over the steps, and the time constants of units."""
    networks, stages = _networks(found), _stages(found)
    rows = [
        (f"{name} {level}".strip(), cell, layer, f"{level}/" if level else "")
        for (cell, layer), name in networks.items()
        for level in _levels(found, cell, layer)
    ]
    gates = list(dict.fromkeys(name.rpartition(" ")[0].rpartition("/")[2] for of in found.values() for name in of))
    size = (TEXT_WIDTH, 0.6 + 1.6 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(stages) + 1, squeeze=False)
    for ax in axes[:, :-1].ravel()[1:]:
        ax.sharey(axes[0, 0])
    for row, (name, cell, layer, level) in zip(axes, rows):
        for ax, stage in zip(row, stages):
            all_gates = found.get((cell, stage, layer), {})
            of = {word.removeprefix(level): array for word, array in all_gates.items() if word.startswith(level)}
            for number, gate in enumerate(gates):
                if f"{gate} mean" not in of:
                    continue
                mean_ST, style = of[f"{gate} mean"], _style(number)
                steps = np.arange(1, mean_ST.shape[-1] + 1)
                _line(ax, steps, mean_ST, gate, **style)
                if f"{gate} low" in of:
                    near_ST = of[f"{gate} low"] + of[f"{gate} high"]
                    _line(ax, steps, near_ST, f"_{gate}, saturated", band=False, linestyle=":", **style)
                if f"{gate} time_constant" in of:
                    constants = np.sort(of[f"{gate} time_constant"].reshape(len(mean_ST), -1), axis=-1)[:, ::-1]
                    ranks, label = np.arange(1, constants.shape[-1] + 1), f"_{gate}, {_title(stage)}"
                    _line(row[-1], ranks, constants, label, linestyle=_stage_line(found, stage), **style)
            ax.set_ylabel("\n".join(name.split(" ", 1)) if ax is row[0] else "")
        _scale_steps(row[-1])
    for ax, stage in zip(axes[0], stages):
        ax.set_title(_title(stage))
    axes[0, -1].set_title("time constants of units")
    for ax in axes[-1, :-1]:
        ax.set_xlabel("step of the run")
    axes[-1, -1].set_xlabel("rank of the unit")
    handles = [Line2D([], [], label=gate, **_style(number)) for number, gate in enumerate(gates)]
    handles.append(Line2D([], [], color="0.3", linestyle=":", label="share of a gate's values near an end"))
    handles += [
        Line2D([], [], color="0.3", linestyle=_stage_line(found, stage), label=_title(stage)) for stage in stages
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _scale_steps(ax: Axes) -> None:
    """Scales an axis of time constants by the lines and bands in it; without any, there is no axis."""
    spans = [value for line in ax.lines for value in np.asarray(line.get_ydata()) if np.isfinite(value)]
    if spans:
        spans += [y for band in ax.collections for path in band.get_paths() for y in np.asarray(path.vertices)[:, 1]]
        is_wide = max(spans) > 10 * min(spans) > 0
        ax.set(ylabel="steps", **({"yscale": "log"} if is_wide else {"ylim": (0, 1.1 * max(spans))}))
    else:
        ax.set_axis_off()


def _levels(found: Found, cell: str, layer: str) -> list[str]:
    """Returns the levels that the gates of a network are named by, "0" of `0/time_forget`; of many the outermost two.

    Of a cell without levels that is "" alone.
    """
    words = [
        word for (of_cell, _, of_layer), of in found.items() if (of_cell, of_layer) == (cell, layer) for word in of
    ]
    levels = list(dict.fromkeys(word.rpartition("/")[0] for word in words))
    return levels if len(levels) <= 4 else [levels[0], levels[-1]]


@paper()
def truncation_figure(found: Found) -> Figure:
    """Cosine and norm ratio of the truncated gradient and the whole one, against the truncation length."""
    figure = Figure(figsize=(TEXT_WIDTH, 2.4 + 0.13 * len(_networks(found))), layout="constrained")
    axes = figure.subplots(1, 2)
    cells = list(dict.fromkeys(cell for cell, _, _ in found))
    labels = {"cosine": "cosine to the whole gradient", "norm_ratio": "norm / that of the whole gradient"}
    for ax, (quantity, name) in zip(axes, labels.items()):
        for (cell, stage, layer), of in sorted(found.items(), key=lambda item: _when(item[0][1])):
            if layer or stage not in _stages(found):  # of the whole network alone
                continue
            style = {**_style(cells.index(cell)), "linestyle": _stage_line(found, stage)}
            ratio = f"  (signal / noise {np.median(of['signal_to_noise']):.2g})"
            _line(ax, of["every"][0], of[quantity], f"{cell}, {_title(stage)}{ratio}", **style)
        ax.axhline(1, color="0.6", linewidth=0.5, zorder=1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set(xlabel="truncation length, steps", ylabel=name)
    legend_below(axes[0])
    return figure


@paper()
def memory_figure(found: Found) -> Figure:
    """How much of the input of each lag a linear map reads back from the carry, the mean over input features."""
    networks = _networks(found)
    figure, axes = _panels(found, 1, 2.1)
    for ax, stage in zip(axes[0], _stages(found)):
        for number, ((cell, layer), name) in enumerate(networks.items()):
            if (cell, stage, layer) in found:
                of = found[cell, stage, layer]
                remark = f"  (capacity {np.median(of['capacity'].sum(-1)):.3g} of {of['fit'][0].size})"
                _line(ax, of["lags"][0], of["fit"].mean(-1), name + remark, **_style(number))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="lag  (steps before the carry)", ylim=(-0.1, 1.05))
        legend_below(ax)
    axes[0, 0].set_ylabel("input read back, R$^2$ on held-out steps")
    return figure


def _growth(of: Mapping[str, np.ndarray]) -> np.ndarray:
    """log10 of the factor a step by which the most stretched direction grows, up to the last lag inside."""
    largest, lags = of["log10_values"][..., 0], of["lags"][0]
    last = np.maximum(np.sum(of["inside"], axis=-1, keepdims=True) - 1, 0)
    return np.take_along_axis(largest, last, -1)[..., 0] / lags[last[..., 0]]


def _mean_radius(of: Mapping[str, np.ndarray]) -> np.ndarray:
    inside = of["inside"]
    return np.sum(np.where(inside, of["spectral_radius"], 0), axis=-1) / np.maximum(np.sum(inside, axis=-1), 1)


def _middle(of: Mapping[str, np.ndarray]) -> int:
    """Which of the truncation lengths is the middle one."""
    return (of["every"].shape[-1] - 1) // 2


def _middle_cosine(of: Mapping[str, np.ndarray]) -> np.ndarray:
    return of["cosine"][:, _middle(of)]


# What is drawn along training: for each instrument the panels, each a name and a function of what was found of one
# network at one stage, to one number a seed, or a seed and a sequence.
_Panel = tuple[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]]
_ALONG: dict[str, tuple[_Panel, ...]] = {
    "jacobian": (
        ("log$_{10}$ largest singular value / lag", _growth),
        ("spectral radius of a step", _mean_radius),
    ),
    "lyapunov": (
        ("largest exponent, nats a step", lambda of: of["exponents"][..., 0]),
        ("median exponent, nats a step", lambda of: np.median(of["exponents"], axis=-1)),
    ),
    "truncation": (
        ("cosine to the whole gradient", _middle_cosine),
        ("signal / noise of the gradient", lambda of: of["signal_to_noise"]),
    ),
    "memory": (("memory capacity", lambda of: of["capacity"].sum(-1)),),
}
_ALONG_CAPTIONS = {
    "jacobian": "Left: the decay rate of the recurrence: log10 of its largest singular value over the longest lag,"
    " divided by that lag. At 0 a gradient passes undiminished; at -0.1 it loses a factor of ten in ten steps. Right:"
    " the largest modulus of an eigenvalue of a single step, the mean over the run.",
    "lyapunov": "Left: the largest Lyapunov exponent of the run on its inputs; above 0 small changes grow, and"
    " gradients explode; one near 0 remembers. Right: the exponent that half of the directions lie below: how fast most"
    " of what the carry holds is forgotten.",
    "truncation": "Left: the cosine between the whole gradient and the one truncated at the middle one of the lengths"
    " measured: where it falls, the network has begun to use what lies further back. Right: the norm of the gradient of"
    " the batch over what its examples scatter.",
    "memory": "How much of all earlier inputs a linear map reads back from the carry, summed over lags and features.",
    "gates": "Left: the mean of each gate over sequences, steps and units. Right: over how many steps a unit forgets to"
    " 1/e, as its forget or update gate implies: the median over units, and the band from the tenth to the ninetieth"
    " percentile.",
}
_ALONG_CAPTION = (
    " Along training, from the networks as they were drawn (step 0) on; a point for each measurement, the median over"
    " seeds and sequences, and the band from the tenth to the ninetieth percentile."
)


def _along_training(found: Found, steps: Mapping[str, int]) -> dict[str, list[tuple[int, Mapping[str, np.ndarray]]]]:
    """Returns, by the name of a network, what was found of it at each step; without those of one step alone.

    At initialization it is the same at every learning rate, and stands under the name of the cell alone.
    """
    along = {}
    for (cell, layer), name in _networks(found).items():
        points = []
        for stage, step in steps.items():
            cells = (cell, cell.rpartition(" at ")[0]) if stage == "initialization" else (cell,)
            points += [(step, found[of, stage, layer]) for of in cells if (of, stage, layer) in found][:1]
        if len(points) > 1:
            along[name] = sorted(points, key=lambda point: point[0])
    return along


def _line_along(ax: Axes, steps: list[int], values: list[np.ndarray], label: str, **style: Any) -> None:
    median, low, high = np.array([_over_all(value, axes=0) for value in values]).T
    ax.plot(steps, median, label=label, **style)
    ax.fill_between(steps, low, high, color=style["color"], alpha=0.13, linewidth=0)


@paper()
def along_figure(name: str, found: Found, steps: Mapping[str, int]) -> Figure:
    """What an instrument found of each network along training, in one panel for each number.

    Args:
      name: of the instrument.
      found: by it.
      steps: of each stage.
    """
    if name == "truncation":  # of the whole network alone
        found = {key: of for key, of in found.items() if not key[2]}
    along, panels = _along_training(found, steps), _ALONG[name]
    width = TEXT_WIDTH if len(panels) > 1 else COLUMN + 0.4
    figure = Figure(figsize=(width, 2.6 + 0.15 * len(along)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (label, number) in zip(axes, panels):
        for k, (network, points) in enumerate(along.items()):
            at = [step for step, _ in points]
            _line_along(ax, at, [number(of) for _, of in points], network, **_style(k))
        if name in ("jacobian", "lyapunov"):  # what neither grows nor shrinks
            ax.axhline(1 if number is _mean_radius else 0, color="0.6", linewidth=0.5, zorder=1)
        if number is _middle_cosine:
            of = next(iter(found.values()))
            label = f"{label}\nof pieces of {of['every'][0][_middle(of)]} steps"
        ax.set(xlabel="training step", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    legend_below(axes[0])
    return figure


@paper()
def gates_along_figure(found: Found, steps: Mapping[str, int]) -> Figure:
    """A row for each network: the means of its gates along training, and the time constants of its units."""
    along = _along_training(found, steps)
    gates = list(dict.fromkeys(key.rpartition(" ")[0] for of in found.values() for key in of))
    figure = Figure(figsize=(TEXT_WIDTH, 0.7 + 1.5 * len(along)), layout="constrained")
    axes = figure.subplots(len(along), 2, sharex=True, squeeze=False)
    for ax in axes[1:, 0]:
        ax.sharey(axes[0, 0])
    for (mean_ax, constant_ax), (network, points) in zip(axes, along.items()):
        at = [step for step, _ in points]
        for k, gate in enumerate(gates):
            for ax, quantity in ((mean_ax, "mean"), (constant_ax, "time_constant")):
                if all(f"{gate} {quantity}" in of for _, of in points):
                    _line_along(ax, at, [of[f"{gate} {quantity}"] for _, of in points], gate, **_style(k))
        mean_ax.set_ylabel(network)
        _scale_steps(constant_ax)
        if not constant_ax.lines:
            place = {"transform": constant_ax.transAxes, "ha": "center", "fontsize": 7, "color": "0.4"}
            constant_ax.text(0.5, 0.5, "names no gate that forgets", **place)
    axes[0, 0].set_title("mean of a gate")
    axes[0, 1].set_title("time constants of units")
    for ax in axes[-1]:
        ax.set_xlabel("training step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    handles = [Line2D([], [], label=gate, **_style(k)) for k, gate in enumerate(gates)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


INSTRUMENTS: dict[str, tuple[Callable[[Found], Figure], str]] = {
    "profile": (
        profile_figure,
        "Above: how large the gradient of the loss with respect to the carry is, against the lag. A line that falls"
        " steeply is a gradient that vanishes, one that rises a gradient that explodes. Below: the norm of what each"
        " step alone adds to the gradient of the cell's parameters: from which lags learning really comes (of sequences"
        " of different lengths, lags from the end of the longest).",
    ),
    "jacobian": (
        jacobian_figure,
        "Above: by which factor the recurrence stretches a small change of the carry, in the direction where it does so"
        " most, least, and in the middle (log10 of singular values of the Jacobian over a growing lag). Near 0 a"
        " gradient passes undiminished; directions that fall are forgotten, and those that the first step loses to"
        " rounding are not counted. Below: the largest modulus of an eigenvalue"
        " of a single step; above 1, the step can magnify.",
    ),
    "lyapunov": (
        lyapunov_figure,
        "Lyapunov exponents of the run on its inputs, by rank: the mean rate at which small changes grow (above 0) or"
        " shrink. A positive largest exponent is chaos: gradients explode. One near 0 remembers; -0.1 forgets a factor"
        " of e in ten steps. Dimension: that of Kaplan and Yorke, how many directions stay alive.",
    ),
    "gates": (
        gates_figure,
        "Gates over the steps of the run, the mean over sequences and units, and dotted the share of a gate's values"
        " within 0.05 of an end of its range: a gate that stays there passes no gradient of its own. Right: over how"
        " many steps each unit forgets to 1/e, as its forget or update gate implies. What lies much further back than"
        " the largest of them is not kept.",
    ),
    "truncation": (
        truncation_figure,
        "What truncated backpropagation loses: the cosine between its gradient and the whole one (left), and the ratio"
        " of their norms (right), for each truncation length. Where the cosine is near 1, longer pieces only cost time."
        " Signal / noise: the norm of the gradient of this batch over what its examples scatter; near 1, a batch of"
        " this size says little.",
    ),
    "memory": (
        memory_figure,
        "How much of the input of an earlier step a linear map reads back from the carry: the share of its variance, on"
        " held-out steps, the mean over input features. 1 is all of it, 0 and less is nothing. Capacity: the sum over"
        " lags and features. What is needed and not kept here cannot be learned by the layers above.",
    ),
}


_OF_EACH = (
    " The sequences differ in length: above, the lag counts from the end of each, and lags that fewer than half of them"
    " reach are left out; below, it counts from the end of the longest."
)


def draw_instruments(run_dir: read.StrPath) -> list[pathlib.Path]:
    """Draws what each instrument left in a run directory into its figures/ and returns the paths written.

    Raises:
      ValueError: the run directory has no config.json.
    """
    config, folder = read.load_config(run_dir), pathlib.Path(run_dir)
    source = command(config)
    paths = []
    for name, (draw, caption) in INSTRUMENTS.items():
        if not (folder / f"{name}.npz").exists():
            continue
        found = read.load_instrument(folder, name)
        if any("sequences" in of for of in found.values()):
            caption += _OF_EACH
        path = folder / "figures" / f"{name}.png"
        paths.append(save_figure(draw(found), path, caption=caption, source=source))
        steps = _steps(folder, config, found)
        on_the_way = any(stage.startswith("step_") for stage in steps)
        if name in _ALONG_CAPTIONS and on_the_way and _along_training(found, steps):
            figure = gates_along_figure(found, steps) if name == "gates" else along_figure(name, found, steps)
            caption, path = _ALONG_CAPTIONS[name] + _ALONG_CAPTION, path.with_name(f"{name}_training.png")
            paths.append(save_figure(figure, path, caption=caption, source=source))
    return paths


def _steps(folder: pathlib.Path, config: Mapping[str, Any], found: Found) -> dict[str, int]:
    """Returns the step of each stage that was measured, but that of "trained" where the run does not tell it."""
    rows = read.load_table(folder)
    trained = rows[0].get("best_step") if rows else None  # of experiments.train
    trained = trained or config.get("flags", {}).get("steps")
    steps = {stage: _when(stage) for _, stage, _ in found}
    if "trained" in steps and trained is not None:
        steps["trained"] = float(trained)
    return {stage: int(step) for stage, step in steps.items() if step < math.inf}


def measured(run_dir: pathlib.Path) -> bool:
    """Whether an instrument has left something in a run directory."""
    return any((run_dir / f"{name}.npz").exists() for name in INSTRUMENTS)
