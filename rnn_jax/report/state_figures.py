"""Figures of the state along a text, from what `experiments.inspect_state` wrote: the best unit of each property.

python -c "from rnn_jax.report.state_figures import draw_state; draw_state('runs/...')"
python -c "from rnn_jax.report.state_figures import draw_memory; draw_memory('runs/a', 'runs/b')"
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.report import read
from rnn_jax.report.state_page import StateArrays, load_probes, load_state
from rnn_jax.report.style import COLORS, LINESTYLES

_SENTENCES = 3  # drawn of words
_ROW, _ROWS = 76, 6  # characters in a row, and rows


def plot_sentences(ax: Axes, words: Sequence[Sequence[str]], values: Sequence[np.ndarray]) -> Axes:
    """Draws a value along sentences, a line each; they are aligned at their ends.

    Args:
      ax: where to draw.
      words: of each sentence.
      values: at each word, `[words]` each.
    """
    longest = max(words, key=len)
    for k, (sentence, value) in enumerate(zip(words, values)):
        x = np.arange(len(sentence)) + len(longest) - len(sentence)
        style: dict[str, Any] = {"color": COLORS[k % len(COLORS)], "linestyle": LINESTYLES[k % len(LINESTYLES)]}
        ax.plot(x, value, marker="o", markersize=3.5, label=" ".join(sentence[:4]) + " ...", **style)
    ax.set_xticks(range(len(longest)), longest, rotation=60)
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    return ax


def plot_text(ax: Axes, symbols: Sequence[str], values: np.ndarray, scale: float) -> Axes:
    """Draws characters in rows on the color of a unit's value: blue below 0, red above.

    Args:
      ax: where to draw.
      symbols: characters.
      values: of the unit, `[characters]`.
      scale: the value of the darkest color.
    """
    cells = np.full(-(-len(symbols) // _ROW) * _ROW, np.nan)
    cells[: len(symbols)] = values
    ax.imshow(cells.reshape(-1, _ROW), cmap="RdBu_r", vmin=-scale, vmax=scale, aspect="auto", alpha=0.75)
    for t, symbol in enumerate(symbols):
        shown = "\N{RETURN SYMBOL}" if symbol == "\n" else symbol
        ax.text(
            t % _ROW, t // _ROW, shown.replace("$", r"\$"), ha="center", va="center", family="monospace", fontsize=7
        )
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def plot_memory(ax: Axes, rows: Sequence[Mapping[str, str]], column: str, **style: Any) -> Axes:
    """Draws an accuracy of state_memory.csv against the words since the subject."""
    known = [(int(row["distance"]), float(row[column])) for row in rows if row[column] != ""]
    ax.plot(*zip(*known), **style)
    ax.set(xlabel="words since the subject", ylabel="accuracy", ylim=(0.45, 1.02), xticks=range(0, known[-1][0] + 1, 5))
    return ax


def draw_state(run_dir: read.StrPath, layer: str | None = None) -> list[pathlib.Path]:
    """Saves figures/state.png: the best unit of each property of a run along the text that is shown; none without one.

    Args:
      run_dir: with state.npz and state_probes.csv.
      layer: of which units are drawn; by default that of the first part.

    Raises:
      ValueError: if there is no state.npz.
    """
    state = load_state(run_dir)
    layer = next(iter(state.parts))[0] if layer is None else layer
    part = next(part for name, part in state.parts if name == layer)
    best: dict[str, dict[str, str]] = {}
    for row in load_probes(run_dir):
        if (row["layer"], row["part"], row["probe"]) == (layer, part, "unit"):
            best.setdefault(row["property"], row)
    best = {name: row for name, row in best.items() if name in state.labels}
    if not best:
        return []
    draw = _draw_words if state.kind == "word" and len(np.unique(state.sequences)) >= _SENTENCES else _draw_text
    figure = draw(state, layer, part, best)
    path = pathlib.Path(run_dir) / "figures" / "state.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    return [path]


def _draw_words(state: StateArrays, layer: str, part: str, best: Mapping[str, Mapping[str, str]]) -> Figure:
    which = [np.flatnonzero(state.sequences == number) for number in range(_SENTENCES)]
    words = [[state.symbols[t] for t in rows] for rows in which]
    gates = [gate for gate in ("forget", "input") if (layer, gate) in state.gates]
    figure = Figure(figsize=(5.2 * len(best), 2.6 + 1.5 * len(gates)), layout="constrained")
    ratios = [2.0] + [1.0] * len(gates)
    axes = figure.subplots(1 + len(gates), len(best), squeeze=False, sharex=True, sharey="row", height_ratios=ratios)
    for column, (name, row) in zip(axes.T, best.items()):
        unit = int(row["unit"])
        values = state.parts[layer, part]
        plot_sentences(column[0], words, [values[rows, unit] for rows in which])
        share = f"held-out accuracy {float(row['accuracy']):.3f}, chance {float(row['chance']):.3f}"
        column[0].set_title(f"{name}: unit {unit} of {part or 'the carry'}\n{share}", fontsize=10)
        column[0].axhline(float(row["threshold"]), color="0.4", linewidth=0.8, linestyle=":", zorder=0)
        for ax, gate in zip(column[1:], gates):
            plot_sentences(ax, words, [state.gates[layer, gate][rows, unit] for rows in which])
            ax.set_ylim(-0.05, 1.05)
    axes[0, 0].set_ylabel("value; dotted: threshold")
    for ax, gate in zip(axes[1:, 0], gates):
        ax.set_ylabel(f"{gate} gate")
    axes[0, 0].legend(fontsize=8)
    return figure


def _draw_text(state: StateArrays, layer: str, part: str, best: Mapping[str, Mapping[str, str]]) -> Figure:
    count = min(len(state.symbols), _ROW * _ROWS)
    figure = Figure(figsize=(9, 0.45 + 1.45 * len(best)), layout="constrained")
    for ax, (name, row) in zip(figure.subplots(len(best), 1, squeeze=False)[:, 0], best.items()):
        labels, unit = state.labels[name], int(row["unit"])
        # The stretch in which the label changes most often.
        moves = np.concatenate([[0], np.cumsum(np.diff(labels) != 0)])
        last = len(state.symbols) - count
        start = int(np.argmax([moves[t + count - 1] - moves[t] for t in range(last + 1)]))
        values = state.parts[layer, part][:, unit]
        plot_text(ax, state.symbols[start : start + count], values[start : start + count], float(np.abs(values).max()))
        ax.set_title(
            f"{name} ({row['label']}): unit {unit} of {part or 'the carry'}, held-out accuracy"
            f" {float(row['accuracy']):.3f}, chance {float(row['chance']):.3f}, control {float(row['control']):.3f}",
            fontsize=9,
        )
    return figure


def draw_memory(*run_dirs: read.StrPath, out: read.StrPath | None = None) -> pathlib.Path:
    """Saves state_memory.png: how long the best unit and the linear probe read each property, for several runs.

    Args:
      *run_dirs: of the task agreement, looked at by `experiments.inspect_state`.
      out: the folder; the figures of the first run by default.

    Raises:
      ValueError: if a run has no state_memory.csv.
    """
    tables: dict[str, list[dict[str, str]]] = {}
    for run_dir in run_dirs:
        path = pathlib.Path(run_dir) / "state_memory.csv"
        if not path.exists():
            raise ValueError(
                f"{str(run_dir)!r} has no state_memory.csv;"
                f" run first: python -m experiments.inspect_state --run={run_dir}, of the task agreement"
            )
        with path.open(newline="", encoding="utf-8") as table:
            tables[read.load_config(run_dir)["flags"]["cell"]] = list(csv.DictReader(table))
    names = list(dict.fromkeys(row["property"] for rows in tables.values() for row in rows))
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for k, (cell, rows) in enumerate(tables.items()):
            mine = [row for row in rows if row["property"] == name]
            color = COLORS[k % len(COLORS)]
            unit = f"{cell}: unit {mine[0]['unit']}"
            plot_memory(ax, mine, "unit_accuracy", label=unit, color=color, marker="o", markersize=3)
            plot_memory(ax, mine, "linear_accuracy", label=f"{cell}: linear", color=color, linestyle="--")
        plot_memory(ax, mine, "chance", label="chance", color="0.5", linestyle=":")
        ax.set_title(name)
        ax.legend(fontsize=8)
    folder = pathlib.Path(run_dirs[0]) / "figures" if out is None else pathlib.Path(out)
    folder.mkdir(exist_ok=True)
    path = folder / "state_memory.png"
    figure.savefig(path, dpi=150)
    return path
