"""Several runs side by side: what each network came to over its seeds, from run directories of `experiments.train`.

docs/results.png was drawn from its table:

    python -c "from rnn_jax.report.comparison import draw_scores
    draw_scores('docs/results.csv', 'docs/results.png',
                {'TF-IDF of characters': 0.930, 'TF-IDF of words': 0.858})"
"""

import collections
import csv
import dataclasses
import io
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.report.hover import say
from rnn_jax.report.learning import SHARES
from rnn_jax.report.style import COLORS, MARKERS, TEXT_WIDTH, legend_below, paper, save_figure

_OF_A_RUN = ("seed", "out", "resume")  # flags in which runs of one network may differ
_STAGES = ("initialization", "trained")
_LEVELS = ("horizon_e", "horizon_1000")
_CAPTION = (
    "The score of each network on the same test examples: a mark at the mean over its seeds, a line from the least to"
    " the largest of them; the best on top. Upright lines are what other methods reach. Networks whose lines overlap"
    " cannot be told apart by these seeds."
)


@dataclasses.dataclass(frozen=True)
class Horizon:
    """How far back a gradient lives: a lag, NaN if it is not finite, or that it never falls so low in the sequence."""

    lag: float
    within: bool

    def __str__(self) -> str:
        if math.isnan(self.lag):
            return "not finite"
        return f"{'' if self.within else '≥ '}{self.lag:g}"


@dataclasses.dataclass(frozen=True)
class Result:
    """Runs that differ in nothing but their seed.

    Attributes:
      label: the cell, and the flags that set the network apart.
      command: what made the runs, less --seed and --out.
      seeds: of the runs.
      run_dirs: their folders, in this order.
      test_S, validation_S: scores on the splits, `[seeds]`; NaN where there is no validation split.
      seconds_S: of training and evaluation, compilation included.
      parameters: of the network.
      horizons: "horizon_e" (to 1/e) and "horizon_1000" (to 1/1000), of "initialization" and "trained": of the layer
        whose gradient reaches furthest, the median over seeds, not finite if one of them is not. Empty for a network
        without recurrent layers.
    """

    label: str
    command: str
    seeds: tuple[int, ...]
    run_dirs: tuple[read.StrPath, ...]
    test_S: np.ndarray
    validation_S: np.ndarray
    seconds_S: np.ndarray
    parameters: int
    horizons: dict[tuple[str, str], Horizon]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results on one task and one test split.

    Attributes:
      task: its name.
      metric: what the score is called.
      baseline_score: of the input-independent baseline.
      machine: what the runs ran on.
      results: in the order in which their first runs were given.
    """

    task: str
    metric: str
    baseline_score: float
    machine: str
    results: list[Result]


def compare(run_dirs: Iterable[read.StrPath]) -> Comparison:
    """Reads finished runs of `experiments.train` and puts those together that differ in their seed alone.

    Raises:
      ValueError: if there is none, a folder is no finished run, two have the same flags and seed, or they were not
        tested on the same examples of one task.
    """
    runs = [_Run.load(folder) for folder in run_dirs]
    if not runs:
        raise ValueError("there is nothing to compare; allowed: one run directory or more.")
    first = runs[0]
    for run in runs:
        for what in ("task", "metric", "test_sha256"):
            if getattr(run, what) != getattr(first, what):
                file = "metrics.csv" if what == "metric" else "config.json"
                raise ValueError(
                    f"{os.fspath(run.folder)!r} has {what} {getattr(run, what)} in {file}, and"
                    f" {os.fspath(first.folder)!r} has {getattr(first, what)}; allowed: runs tested on the same"
                    " examples."
                )
    groups: dict[str, list[_Run]] = collections.defaultdict(list)
    for run in runs:
        alike = groups[repr(sorted((name, run.flags[name]) for name in run.flags if name not in _OF_A_RUN))]
        for other in alike:
            if other.seed == run.seed:
                raise ValueError(
                    f"{os.fspath(run.folder)!r} has the flags and the seed of {os.fspath(other.folder)!r} in"
                    " config.json; allowed: each seed once."
                )
        alike.append(run)
    labels = _labels([alike[0] for alike in groups.values()])
    results = [_result(label, sorted(alike, key=lambda run: run.seed)) for label, alike in zip(labels, groups.values())]
    machine = "; ".join(dict.fromkeys(run.machine for run in runs))
    return Comparison(first.task, first.metric, first.baseline_score, machine, results)


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns a row for each network, of plain numbers and texts, as CSV has them."""
    table = []
    for result in comparison.results:
        row: dict[str, Any] = {"task": comparison.task, "metric": comparison.metric, "network": result.label}
        for split, scores_S in (("test", result.test_S), ("validation", result.validation_S)):
            least, most = float(scores_S.min()), float(scores_S.max())
            row |= {f"{split}_mean": float(scores_S.mean()), f"{split}_least": least, f"{split}_most": most}
        row |= {
            "baseline_score": comparison.baseline_score,
            "seeds": " ".join(map(str, result.seeds)),
            "parameters": result.parameters,
            "seconds": float(np.median(result.seconds_S)),
        }
        for level in _LEVELS:
            for stage in _STAGES:
                row[f"{level}_{stage}"] = str(result.horizons.get((level, stage), ""))
        table.append({**row, "command": result.command})
    return table


def markdown(comparison: Comparison, baselines: Mapping[str, float] | None = None) -> str:
    """Returns the table for people, with the commands below it.

    Args:
      comparison: the results.
      baselines: name -> score of what was measured elsewhere; a row each.
    """
    header = ["network", f"test {comparison.metric}", "validation", "parameters", "seconds", "to 1/e", "to 1/1000"]
    lines = ["| " + " | ".join(header) + " |", "| --- " + "| ---: " * (len(header) - 1) + "|"]
    for result in comparison.results:
        horizons = horizon_texts(result)
        cells = [result.label, spread(result.test_S), spread(result.validation_S), f"{result.parameters:,}"]
        lines.append("| " + " | ".join([*cells, f"{np.median(result.seconds_S):.0f}", *horizons]) + " |")
    for name, score in ({} if baselines is None else baselines).items():
        lines.append(f"| {name} | {score:.3f} |  |  |  |  |  |")
    lines.append(f"| ignoring the input | {comparison.baseline_score:.3f} |  |  |  |  |  |")
    lines += ["", table_note(comparison), ""]
    lines += [f"- {result.label}: `{result.command}`" for result in comparison.results]
    return "\n".join(lines) + "\n"


def horizon_texts(result: Result) -> list[str]:
    """Writes for 1/e and for 1/1000 the horizon before → after training."""
    return [
        " → ".join(str(result.horizons[level, stage]) for stage in _STAGES if (level, stage) in result.horizons)
        for level in _LEVELS
    ]


def table_note(comparison: Comparison) -> str:
    """Says what the columns of the table are."""
    seeds = sorted({seed for result in comparison.results for seed in result.seeds})
    return (
        f"Mean over the seeds {', '.join(map(str, seeds))}, the least and the most in brackets; seconds of a run, the"
        f" median, compilation included, on {comparison.machine}. To 1/e and to 1/1000: the lags at which the gradient"
        " with respect to the carry has fallen so far, before → after training, in the layer where it reaches"
        " furthest, the median over seeds; ≥ where it never falls so far."
    )


def plot_scores(
    ax: Axes, table: Sequence[Mapping[str, Any]], baselines: Mapping[str, float] | None = None, *, score: str = "test"
) -> Axes:
    """Draws the score of each network as its mean and the range over its seeds, the best on top, baselines as lines.

    At the left stand the cells and, a column each, the flags in which the networks differ; at the right the scores.

    Args:
      ax: where to draw.
      table: as `rows` makes it, or as comparison.csv has it.
      baselines: name -> score.
      score: of the split: "test" or "validation".
    """
    metric = table[0]["metric"]
    ordered = sorted(table, key=lambda row: float(row[f"{score}_mean"]), reverse=metric in SHARES)
    networks = [_words(row["network"]) for row in ordered]
    cells = list(dict.fromkeys(words["cell"].partition("(")[0] for words in networks))
    for place, (row, words) in enumerate(zip(ordered, networks)):
        mean, least, most = (float(row[f"{score}_{what}"]) for what in ("mean", "least", "most"))
        kind = cells.index(words["cell"].partition("(")[0])
        color, marker = COLORS[kind % len(COLORS)], MARKERS[1 + kind % (len(MARKERS) - 1)]
        ax.axhline(place, color="0.93", linewidth=0.6, zorder=0)
        ax.plot([least, most], [place, place], color=color, linewidth=1.4)
        (mark,) = ax.plot([mean], [place], marker, color=color, markersize=4.5)
        spread = "" if least == most else f" [{least:.3f}, {most:.3f}]"
        say(mark, [f"{row['network']}\n{score} {metric} {mean:.4g}{spread}\nseeds {row['seeds']}"])
        _write(ax, f"{mean:.3f}{spread}", 1, place, 5, ha="left")
    lines = {**({} if baselines is None else baselines), "ignoring the input": float(table[0]["baseline_score"])}
    _draw_baselines(ax, ordered, lines, score)
    _write_columns(ax, networks)
    ax.set_yticks([])
    ax.set_ylim(len(ordered) - 0.5, -0.5)
    ax.set_xlabel(f"{score} {metric}")
    ax.spines["left"].set_visible(False)
    return ax


def _draw_baselines(ax: Axes, table: Sequence[Mapping[str, Any]], scores: Mapping[str, float], score: str) -> None:
    """Draws baselines as lines, those too far away from the networks as words in the legend alone."""
    ends = [float(row[f"{score}_{what}"]) for row in table for what in ("least", "most")]
    low, high = min(ends), max(ends)
    room = max(high - low, 0.02 * abs(high))
    styles = iter(("--", ":", "-.", (0, (1, 3))) * len(scores))
    seen = [low, high]
    for name, value in sorted(scores.items(), key=lambda item: item[1]):
        if low - room <= value <= high + room:
            seen.append(value)
            ax.axvline(
                value, color="0.35", linewidth=0.9, linestyle=next(styles), zorder=1, label=f"{name}: {value:.3f}"
            )
        else:
            ax.plot([], [], " ", label=f"{name}: {value:.3f}, {'left' if value < low else 'right'} of the frame")
    ax.set_xlim(min(seen) - 0.06 * room, max(seen) + 0.06 * room)


def _write_columns(ax: Axes, networks: Sequence[Mapping[str, str]]) -> None:
    """Writes the flags of each network at the left of its line, a column a flag."""
    names = list(dict.fromkeys(name for words in networks for name in words))
    right = -8.0
    for name in reversed(names):
        texts = [words.get(name, "") for words in networks]
        _write(ax, name, 0, -0.85, right, ha="right", color="0.4")
        for place, text in enumerate(texts):
            _write(ax, text, 0, place, right, ha="right")
        right -= 3.8 * max(map(len, [name, *texts])) + 8


def _write(ax: Axes, text: str, side: float, place: float, points: float, **style: Any) -> None:
    ax.annotate(
        text, (side, place), (points, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
        fontsize=7, annotation_clip=False, **style,
    )  # fmt: skip


def _words(network: str) -> dict[str, str]:
    """Takes the name of a network apart: its cell, and flag -> value; "✓" for a flag that is only named."""
    cell, *flags = re.split(r", (?![^()]*\))", network)
    words = {"cell": cell}
    for flag in flags:
        name, equals, value = flag.partition("=")
        words[name] = re.sub(r"^(\d+)\.0$", r"\1", value) if equals else "\N{CHECK MARK}"
    return words


@paper()
def comparison_figure(
    table: Sequence[Mapping[str, Any]], baselines: Mapping[str, float] | None = None, *, score: str = "test"
) -> Figure:
    """The figure of `plot_scores`, with its legend."""
    figure = Figure(
        figsize=(TEXT_WIDTH, 1.0 + 0.2 * len(table) + 0.14 * (1 + len(baselines or ()))), layout="constrained"
    )
    ax = plot_scores(figure.subplots(), table, baselines, score=score)
    legend_below(ax)
    return figure


def draw_scores(
    table: read.StrPath,
    path: read.StrPath,
    baselines: Mapping[str, float] | None = None,
    *,
    score: str = "test",
    source: str = "",
) -> pathlib.Path:
    """Draws a comparison.csv to `path`, a PNG file (and an SVG file beside it), and returns it.

    Args:
      table: the file.
      path: of the figure.
      baselines, score: as in `plot_scores`.
      source: the command that made the table.
    """
    with pathlib.Path(table).open(newline="", encoding="utf-8") as file:
        figure = comparison_figure(list(csv.DictReader(file)), baselines, score=score)
    return save_figure(figure, pathlib.Path(path), caption=_CAPTION, source=source)


def save(
    folder: read.StrPath, comparison: Comparison, baselines: Mapping[str, float] | None = None
) -> list[pathlib.Path]:
    """Writes comparison.csv, comparison.md and comparison.png, and returns their paths.

    The folder may hold other files. Those of these names are replaced where the first is a comparison of this kind.

    Raises:
      ValueError: a file of these names is something else, or nothing can be written there.
    """
    out = pathlib.Path(folder).expanduser()
    paths = [out / f"comparison.{ending}" for ending in ("csv", "md", "png")]
    written = rows(comparison)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if path.exists() and not _is_comparison(paths[0], list(written[0])):
                raise ValueError(
                    f"--out={os.fspath(folder)!r} holds a {path.name} that is no comparison; allowed: a folder without"
                    " such a file."
                )
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, written[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
        _replace(paths[0], text.getvalue().encode())
        _replace(paths[1], markdown(comparison, baselines).encode())
        draw_scores(paths[0], paths[2], baselines)
    except OSError as error:
        raise ValueError(
            f"--out={os.fspath(folder)!r} cannot be written ({error.strerror}); allowed: a writable folder."
        ) from error
    return paths


def _is_comparison(path: pathlib.Path, columns: Sequence[str]) -> bool:
    try:
        with path.open(newline="", encoding="utf-8") as table:
            return next(csv.reader(table), None) == list(columns)
    except (OSError, ValueError, csv.Error):
        return False


def _replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file; a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Run:
    folder: read.StrPath
    config: dict[str, Any]
    flags: dict[str, Any]
    table: list[dict[str, str]]
    metric: str
    time: int

    @classmethod
    def load(cls, folder: read.StrPath) -> "_Run":
        config = read.load_config(folder)
        table = read.load_table(folder)
        if not table:
            raise ValueError(
                f"{os.fspath(folder)!r} has no summary.csv and so holds no test score; allowed: finished runs of"
                " experiments.train."
            )
        metrics = [name for name in read.load_metrics(folder) if name.startswith("test/")]
        if not metrics:
            raise ValueError(
                f"{os.fspath(folder)!r} holds no test score in metrics.csv; allowed: finished runs of"
                " experiments.train."
            )
        _check(folder, config["flags"], table)
        time = 0
        if table[0]["layer"]:
            profiles = read.load_profiles(folder).log10_norm
            time = next(array.shape[-1] for parts in profiles.values() for array in parts.values())
        return cls(folder, config, config["flags"], table, metrics[0].removeprefix("test/"), time)

    @property
    def task(self) -> str:
        return self.flags["task"]

    @property
    def test_sha256(self) -> str | None:
        return self.flags.get("data", {}).get("test_sha256")

    @property
    def seed(self) -> int:
        return self.flags["seed"]

    @property
    def baseline_score(self) -> float:
        return float(self.table[0]["baseline_score"])

    @property
    def machine(self) -> str:
        device = self.config["device"]
        if device["platform"] == "cpu":
            return f"{self.config['cpu_count']} CPU cores"
        return f"{device['count']} x {device['kind']}"

    def score(self, split: str) -> float:
        return float(self.table[0][f"{split}_score"] or "nan")

    def horizon(self, level: str, stage: str) -> float:
        """The largest lag over layers and parts of their carries, NaN if one is not finite."""
        lags = [float(row[level]) for row in self.table if row["stage"] == stage]
        return max(lags) if min(lags) >= 0 else math.nan


def _check(folder: read.StrPath, flags: Mapping[str, Any], table: Sequence[Mapping[str, str]]) -> None:
    """Raises ValueError unless config.json and summary.csv say what a comparison reads of them."""
    allowed = "allowed: finished runs of experiments.train."
    for name, kinds in (("task", str), ("cell", str), ("recurrent", bool), ("seed", int)):
        if not isinstance(flags.get(name), kinds):
            raise ValueError(
                f"{os.fspath(folder)!r} has no --{name} in config.json, but {flags.get(name)!r}; {allowed}"
            )
    numbers = {"test_score": False, "baseline_score": False, "parameters": False, "seconds": False}
    numbers |= {"validation_score": True, **{level: not table[0].get("layer") for level in _LEVELS}}
    for row in table:
        if missing := {"layer", "stage", *numbers} - row.keys():
            raise ValueError(f"{os.fspath(folder)!r} has no column {min(missing)!r} in summary.csv; {allowed}")
        for name, may_be_empty in numbers.items():
            if not (_is_number(row[name]) or (may_be_empty and not row[name])):
                raise ValueError(f"{os.fspath(folder)!r} has {name} {row[name][:60]!r} in summary.csv; {allowed}")
    stages = {row["stage"] for row in table}
    if table[0]["layer"] and not stages >= set(_STAGES):
        raise ValueError(f"{os.fspath(folder)!r} has the stages {sorted(stages)} in summary.csv; {allowed}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _result(label: str, runs: Sequence[_Run]) -> Result:
    horizons = {}
    for level in _LEVELS:
        for stage in _STAGES:
            if runs[0].time:
                lag = float(np.median([run.horizon(level, stage) for run in runs]))
                horizons[level, stage] = Horizon(lag, not lag >= runs[0].time)
    return Result(
        label=label,
        command=command(runs[0].config, without=_OF_A_RUN),
        seeds=tuple(run.seed for run in runs),
        run_dirs=tuple(run.folder for run in runs),
        test_S=np.array([run.score("test") for run in runs]),
        validation_S=np.array([run.score("validation") for run in runs]),
        seconds_S=np.array([float(run.table[0]["seconds"]) for run in runs]),
        parameters=int(runs[0].table[0]["parameters"]),
        horizons=horizons,
    )


def _labels(runs: Sequence[_Run]) -> list[str]:
    """Names each network by its cell and the flags in which they differ, less numbers that most of them have."""
    names = [name for name in runs[0].flags if name not in (*_OF_A_RUN, "cell", "recurrent", "data")]
    values = {name: [run.flags.get(name) for run in runs] for name in names}
    labels = []
    for k, run in enumerate(runs):
        words = [run.flags["cell"] if run.flags["recurrent"] else "bag of embeddings"]
        for name, of_runs in values.items():
            value = of_runs[k]
            if value is None or value is False or all(value == other for other in of_runs):
                continue
            if value is True:
                words.append(name)
            elif isinstance(value, str) or value != collections.Counter(of_runs).most_common(1)[0][0]:
                words.append(f"{name}={value}")
        labels.append(", ".join(words))
    return labels


def spread(scores_S: np.ndarray) -> str:
    """Writes the mean of scores and, of several, the least and the most; nothing where there are none."""
    if np.isnan(scores_S).all():
        return ""
    if len(scores_S) == 1:
        return f"{scores_S[0]:.3f}"
    return f"{scores_S.mean():.3f} [{scores_S.min():.3f}, {scores_S.max():.3f}]"
