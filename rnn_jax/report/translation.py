"""Figures of translation: where a decoder looked, and what attention does for long sources and for the gradient.

    python -c "from rnn_jax.report.translation import draw_effect; draw_effect('runs/dates', 'runs/dates-none')"

`draw_effect` reads run directories that `experiments.translate --evaluate` has been run on.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.report import read
from rnn_jax.report.profiles import plot_profile
from rnn_jax.report.style import TEXT_WIDTH, legend_below, line_style, paper, save_figure

_TABLE = "translations.csv"
_MAP_CAPTION = (
    "Where the decoder looked: for each token of the answer (row), the weight that each token of the source (column)"
    " had; the darker, the more."
)
_EFFECT_CAPTION = (
    "Left: the share of sources that are answered exactly, against their length. Beside it: the gradient that reaches"
    " each step of the encoder, before training and after it. Attention gives every step of the source a short way."
)
_GROUPS = 6  # of sources by length


@dataclasses.dataclass(frozen=True)
class LengthGroup:
    """The sources of about one length.

    Attributes:
      shortest, longest: length in tokens.
      count: of sources.
      exact: share of answers that are right, token for token.
      chrf: mean chrF of single answers, 0 to 100.
    """

    shortest: int
    longest: int
    count: int
    exact: float
    chrf: float


def load_translations(run_dir: read.StrPath) -> list[dict[str, Any]]:
    """Reads translations.csv: length, exact (0 or 1), source, answer and given, a row a source.

    Raises:
      ValueError: there is none.
    """
    path = pathlib.Path(run_dir) / _TABLE
    if not path.exists():
        raise ValueError(
            f"{os.fspath(run_dir)!r} has no {_TABLE};"
            f" run first: python -m experiments.translate --run={run_dir} --evaluate"
        )
    with path.open(newline="", encoding="utf-8") as table:
        return [{**row, "length": int(row["length"]), "exact": int(row["exact"])} for row in csv.DictReader(table)]


def by_length(rows: Sequence[Mapping[str, Any]]) -> list[LengthGroup]:
    """Groups sources by their length, about as many in each group; all of one length are in one."""
    from sacrebleu.metrics import CHRF  # here: half a second of import that only this needs

    chrf = CHRF()
    lengths = np.array([row["length"] for row in rows])
    borders = np.unique(np.quantile(lengths, np.linspace(0, 1, _GROUPS + 1)[1:], method="lower"))
    groups, below = [], -1
    for border in borders:
        members = [row for row in rows if below < row["length"] <= border]
        below = border
        chrfs = [chrf.sentence_score(str(row["given"]), [str(row["answer"])]).score for row in members]
        exact = float(np.mean([row["exact"] for row in members]))
        of_group = [row["length"] for row in members]
        groups.append(LengthGroup(min(of_group), max(of_group), len(members), exact, float(np.mean(chrfs))))
    return groups


def plot_attention(ax: Axes, weights_US: np.ndarray, source: Sequence[str], answer: Sequence[str]) -> Axes:
    """Draws the weights of attention, `[U, S]`: a row a token of the answer, a column a token of the source."""
    ax.imshow(weights_US, cmap="Greys", vmin=0.0, vmax=1.0, aspect="equal")
    ax.set_xticks(range(len(source)), list(map(_shown, source)))
    ax.set_yticks(range(len(answer)), list(map(_shown, answer)))
    if max(map(len, source)) > 2:
        ax.tick_params(axis="x", labelrotation=90)
    ax.xaxis.tick_top()
    ax.spines[["top", "right"]].set_visible(True)
    ax.fmt_xdata = lambda at: f"source: {_shown(source[round(at)])}"
    ax.fmt_ydata = lambda at: f"answer: {_shown(answer[round(at)])}"
    ax.tick_params(length=0)
    return ax


@paper()
def draw_attention(
    path: pathlib.Path, weights_US: np.ndarray, source: Sequence[str], answer: Sequence[str]
) -> pathlib.Path:
    """Saves the figure of `plot_attention`."""
    size = 0.17
    figure = Figure(figsize=(1.0 + size * len(source), 0.9 + size * len(answer)), layout="constrained")
    ax = plot_attention(figure.add_subplot(), weights_US, source, answer)
    ax.set_ylabel("answer, token by token")
    ax.set_xlabel("source; the darker, the more weight")
    return save_figure(figure, path, caption=_MAP_CAPTION)


def _shown(symbol: str) -> str:
    """Returns a token as a label: a blank is seen."""
    return symbol.replace(" ", "\N{OPEN BOX}").replace("\N{LOWER ONE EIGHTH BLOCK}", "\N{OPEN BOX}")


def plot_by_length(ax: Axes, groups: Sequence[LengthGroup], *, exact: bool, **style: Any) -> Axes:
    """Draws exact match, or else chrF, against the mean length of the sources of a group."""
    middle = [(group.shortest + group.longest) / 2 for group in groups]
    ax.plot(middle, [group.exact if exact else group.chrf for group in groups], **{"marker": "o", **style})
    ax.set_xlabel("length of the source, tokens")
    ax.set_ylabel("exact match" if exact else "chrF")
    return ax


@paper()
def draw_effect(*run_dirs: read.StrPath, out: read.StrPath | None = None) -> pathlib.Path:
    """Saves the figure of what attention does: score against length, and the gradient in the encoder.

    Args:
      *run_dirs: of `experiments.train`, evaluated by `experiments.translate`.
      out: the path of the figure, a PNG file; figures/translation_attention.png of the first run directory by default.

    Raises:
      ValueError: if a folder holds no such run.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 3.0), layout="constrained")
    score_ax, start_ax, trained_ax = figure.subplots(1, 3)
    start_ax.sharey(trained_ax)
    for k, run_dir in enumerate(run_dirs):
        flags = read.load_config(run_dir)["flags"]
        label = f"attention: {flags['attention'] or 'additive'}, {flags['steps']:,} updates"
        rows = load_translations(run_dir)
        style = line_style(k, 1)
        plot_by_length(
            score_ax, by_length(rows), exact=True, label=label, color=style["color"], linestyle=style["linestyle"]
        )
        profiles = read.load_profiles(run_dir)
        (cell,) = profiles.log10_norm
        layers = profiles.whole_carries(cell)
        layer = next(name for name in layers if name.startswith("encoder") and "backward" not in name)
        for ax, number in ((start_ax, 0), (trained_ax, -1)):
            plot_profile(ax, layers[layer][number], label=label, **style)
    score_ax.set(ylim=(-0.03, 1.03), title="score on the test split")
    start_ax.set_title("encoder, at initialization")
    trained_ax.set(title="encoder, after training", ylabel="")
    for ax in (start_ax, trained_ax):
        ax.set_xlabel("lag  T \N{MINUS SIGN} t, steps")
    legend_below(score_ax)
    path = pathlib.Path(run_dirs[0], "figures", "translation_attention.png") if out is None else pathlib.Path(out)
    return save_figure(figure, path, caption=_EFFECT_CAPTION)
