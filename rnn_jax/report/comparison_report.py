"""One report of several runs: which network did best, how each learned, and the commands of all."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from rnn_jax.report import comparison as comparing
from rnn_jax.report import html, read
from rnn_jax.report.comparison import Comparison
from rnn_jax.report.html import Table
from rnn_jax.report.learning import SHARES, LearningCurve, learning_figure
from rnn_jax.report.style import save_figure

_QUESTION = "Which network did best, over its seeds?"
_LEARNING_CAPTION = (
    "The score on the validation split along training: the median over the seeds of each network and, as a band, their"
    " range. Lines that still rise at their end have not been trained to the end."
)


def save_report(
    folder: read.StrPath, comparison: Comparison, baselines: Mapping[str, float] | None = None
) -> list[pathlib.Path]:
    """Writes comparison.csv, .md, .png and .svg, learning.png and .svg, and report.html; returns their paths.

    There is no learning.png where the task has no validation split.
    """
    out = pathlib.Path(folder)
    paths = comparing.save(out, comparison, baselines)
    if curves := learning_curves(comparison):
        figure = learning_figure(curves, [], title=comparison.task)
        paths.append(save_figure(figure, out / "learning.png", caption=_LEARNING_CAPTION))
    figures = [path.with_suffix(".svg") for path in paths if path.suffix == ".png"]
    parts = [
        html.paragraph(_QUESTION, "question"),
        *(html.figure(path, number) for number, path in enumerate(figures, 1)),
        html.table(_results(comparison, {} if baselines is None else baselines)),
        html.heading("To repeat it"),
        *(part for result in comparison.results for part in _commands(result)),
        html.heading("Files"),
        html.links([path.name for path in paths]),
        html.folded("Run directories", html.links(_run_dirs(out, comparison))),
    ]
    report = out / "report.html"
    report.write_text(html.page(f"compare: {comparison.task}", parts), encoding="utf-8")
    return [*paths, report]


def learning_curves(comparison: Comparison) -> list[LearningCurve]:
    """Returns the validation scores of each network at the steps that all its seeds have; none without the split."""
    name = f"validation/{comparison.metric}"
    curves = []
    for result in comparison.results:
        of_seeds = [read.load_metrics(run_dir).get(name, {}) for run_dir in result.run_dirs]
        steps = sorted(set.intersection(*map(set, of_seeds)))
        if steps:
            scores_LS = np.array([[values[step] for values in of_seeds] for step in steps])
            curves.append(LearningCurve(result.label, comparison.metric, np.array(steps), scores_LS))
    return curves


def _results(comparison: Comparison, baselines: Mapping[str, float]) -> Table:
    sign = -1 if comparison.metric in SHARES else 1
    lines = []
    for result in comparison.results:
        horizons = comparing.horizon_texts(result)
        scores = [comparing.spread(result.test_S), comparing.spread(result.validation_S)]
        told = [f"{result.parameters:,}", f"{np.median(result.seconds_S):.0f}", *horizons]
        lines.append((float(result.test_S.mean()), [result.label, *scores, *told]))
    for name, score in {**baselines, "ignoring the input": comparison.baseline_score}.items():
        lines.append((score, [name, f"{score:.3f}", *[""] * 5]))
    lines.sort(key=lambda line: (np.isnan(line[0]), sign * line[0]))
    metric = f"test {comparison.metric}"
    columns = ["network", metric, "validation", "parameters", "seconds", "to 1/e", "to 1/1000"]
    note = f"The best {metric} on top. {comparing.table_note(comparison)}"
    return Table("Results", columns, [texts for _, texts in lines], note)


def _commands(result: comparing.Result) -> list[str]:
    seeds = ", ".join(map(str, result.seeds))
    return [html.paragraph(f"{result.label}, with --seed of {seeds}:"), html.preformatted(result.command)]


def _run_dirs(out: pathlib.Path, comparison: Comparison) -> list[str]:
    """Paths of the reports of the runs from that of the comparison; of the folders, where there are none."""
    paths = []
    for run_dir in (pathlib.Path(run_dir) for result in comparison.results for run_dir in result.run_dirs):
        report = run_dir / "report.html"
        paths.append(pathlib.Path(os.path.relpath(report if report.exists() else run_dir, out)).as_posix())
    return paths
