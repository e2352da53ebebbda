"""The report of a run: its question, its figures, its results and how to repeat it, in one file that needs no network.

    python -m experiments.report runs/...

It is made from the run directory alone, also of a run that is still in training or was killed: of what is there.
"""

import csv
import functools
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rnn_jax.report import html, read
from rnn_jax.report.benchmark import draw_benchmark
from rnn_jax.report.chaos import draw_chaos
from rnn_jax.report.command import command, experiment
from rnn_jax.report.costs import draw_costs
from rnn_jax.report.grid import draw_grid
from rnn_jax.report.html import Table
from rnn_jax.report.instruments import INSTRUMENTS, draw_instruments, measured
from rnn_jax.report.learning import SHARES, draw_learning, draw_training
from rnn_jax.report.profiles import draw_profiles, lag_text
from rnn_jax.report.translation import by_length, load_translations

# What reading a file raises that was cut short, or that something else has written.
_DAMAGE = (ValueError, KeyError, IndexError, OSError, EOFError, zipfile.BadZipFile, csv.Error)

_Drawer = Callable[[read.StrPath], list[pathlib.Path]]
# Figures come in this order, others behind them by name.
_FIRST = (
    *("comparison", "learning", "grid_lstm", "gradient_flow", "gradient_flow_training"),
    *(name + ending for name in INSTRUMENTS for ending in ("", "_training")),
)
# Tables that are shown as they are; of others the report has a link.
_SHOWN = {
    "ensembles.csv": "seconds_together",
    "long_sequences.csv": "steps",
    "order_and_chaos.csv": "gain",
    "caption_scores.csv": "captions",
}
_ROWS = 200  # of a table, at most
_LARGEST = 200_000  # bytes of a PNG file that is put into the page, where there is no SVG of it
_SAMPLES = 3_000  # letters


def write_report(run_dir: read.StrPath, *, draw: bool = True) -> list[pathlib.Path]:
    """Draws what there are data for, and writes report.html; returns the paths of the figures drawn and of the report.

    What cannot be drawn is said in the report.

    Args:
      run_dir: of any experiment.
      draw: False leaves the figures as they are.

    Raises:
      ValueError: the folder has no config.json, or one that cannot be read.
    """
    folder = pathlib.Path(run_dir)
    config = read.load_config(folder)
    drawn, warnings = draw_figures(folder) if draw else ([], [])
    parts = [html.paragraph(config["question"], "question")] if config.get("question") else []
    parts += _state(folder, config)
    parts += [html.paragraph(sentence, "warning") for sentence in warnings]
    parts += figures_of(folder)
    parts += _tables(folder)
    parts += _samples(folder)
    parts += repeat(config)
    parts += [html.heading("Files"), html.links(_files(folder))]
    path = folder / "report.html"
    temporary = folder / f".report.html.{os.getpid()}"
    temporary.write_text(html.page(_title(folder, config), parts), encoding="utf-8")
    temporary.replace(path)
    return [*drawn, path]


def draw_figures(run_dir: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Draws every figure that the run has data for; returns their paths, and a sentence for each that failed."""
    paths, sentences = [], []
    for draw in _drawers(run_dir):
        try:
            paths += draw(run_dir)
        except _DAMAGE as error:
            sentences.append(f"A figure is missing: {error}")
    return paths, sentences


def _drawers(run_dir: pathlib.Path) -> list[_Drawer]:
    there = {path.name for path in run_dir.iterdir()}
    drawers: list[_Drawer] = []
    if "grid_profile.csv" in there:
        drawers.append(draw_grid)
    elif "metrics.csv" in there:
        drawers.append(draw_training if "recurrent" in read.load_config(run_dir).get("flags", {}) else draw_learning)
    if "gradient_flow.npz" in there:
        drawers.append(draw_profiles)
    if "benchmark.csv" in there:
        drawers.append(draw_benchmark)
    if measured(run_dir):
        drawers.append(draw_instruments)
    if "order_and_chaos.csv" in there:
        drawers.append(draw_chaos)
    if there & {"ensembles.csv", "long_sequences.csv"}:
        drawers.append(draw_costs)
    return drawers


def figures_of(folder: pathlib.Path) -> list[str]:
    """Returns the figures in a folder's figures/ as parts of a page."""
    found = sorted((folder / "figures").glob("*.svg"), key=lambda path: (_place(path.stem), path.stem))
    names = {path.stem for path in found}
    for path in sorted((folder / "figures").glob("*.png")):  # of an earlier version
        if path.stem not in names and path.stat().st_size <= _LARGEST:
            found.append(path)
    parts = []
    for number, path in enumerate(found, 1):
        try:
            parts.append(html.figure(path, number))
        except (ValueError, OSError) as error:
            parts.append(html.paragraph(f"A figure is missing: {error}", "warning"))
    return parts


def _place(stem: str) -> int:
    return _FIRST.index(stem) if stem in _FIRST else len(_FIRST)


def repeat(config: Mapping[str, Any]) -> list[str]:
    """Returns the command, the flags and the versions as parts of a page."""
    parts = [html.heading("To repeat it"), html.preformatted(command(config))]
    flags = Table("Flags", ("flag", "value"), [(name, str(value)) for name, value in config.get("flags", {}).items()])
    git = config.get("git", {})
    device = config.get("device", {})
    machine = {
        "started (UTC)": config.get("start_time_utc"),
        "commit": f"{git.get('commit')}{' and changes to it' if git.get('dirty') else ''}",
        "device": f"{device.get('count')} x {device.get('kind')}",
        "CPU cores": config.get("cpu_count"),
        **config.get("versions", {}),
    }
    about = Table("Versions and machine", ("", "value"), [(name, str(value)) for name, value in machine.items()])
    return [*parts, html.folded("All flags, versions and the machine", html.table(flags) + html.table(about))]


def _title(folder: pathlib.Path, config: Mapping[str, Any]) -> str:
    flags = config.get("flags", {})
    words = [str(flags[name]) for name in ("task", "cells", "cell") if flags.get(name)]
    return f"{experiment(config)}: {', '.join(words) or folder.name}"


def _state(folder: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
    """Says how far a run is that has not finished."""
    if experiment(config) not in ("train", "gradient_flow", "grid_lstm") or _is_finished(folder, config):
        return []
    try:
        last = max(step for values in read.load_metrics(folder).values() for step in values)
        seen = f"its last number is of step {last}"
    except _DAMAGE:
        seen = "nothing has been measured yet"
    steps = config.get("flags", {}).get("steps")
    sentence = f"This run has not finished: {seen}{f', of {steps} steps' if steps else ''}. It may be in training."
    return [html.paragraph(sentence, "warning")]


def _is_finished(folder: pathlib.Path, config: Mapping[str, Any]) -> bool:
    """Whether summary.csv is there, and of gradient_flow, which writes it cell by cell, has every cell."""
    done = {row.get("cell", "") for row in read.load_table(folder)}
    cells = re.split(r",(?![^()]*\))", config.get("flags", {}).get("cells") or "")
    missing = [
        cell
        for cell in map(str.strip, cells)
        if cell and not any(f"{label} at ".startswith(f"{cell} at ") for label in done)
    ]
    return bool(done) and not missing


def _tables(folder: pathlib.Path) -> list[str]:
    """Returns the tables of a run as parts of a page; a sentence for each that cannot be read."""
    makers: dict[str, Callable[[pathlib.Path], Table]] = {
        "summary.csv": _results,
        "benchmark.csv": _benchmark,
        "translations.csv": _translations,
        **{name: functools.partial(_shown, name, column) for name, column in _SHOWN.items()},
    }
    parts = []
    for name, make in makers.items():
        if (folder / name).exists():
            try:
                parts.append(html.table(make(folder)))
            except _DAMAGE as error:
                parts.append(html.paragraph(f"The table of {name} is missing: {error}", "warning"))
    return parts


def _shown(name: str, column: str, folder: pathlib.Path) -> Table:
    return _plain(name, _rows(folder / name), by=column)


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("it has no rows yet.")
    return rows


def _results(folder: pathlib.Path) -> Table:
    """A row for each cell and layer of summary.csv, the best score on top; medians over seeds, and their range."""
    rows, metric, times = _rows(folder / "summary.csv"), _metric(folder), _times(folder)
    if "cell" not in rows[0]:
        return _plain("Results", rows, by="test_score", down=metric in SHARES)
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        if not row["part"]:
            groups.setdefault((row["cell"], row["layer"]), []).append(row)
    lines = []
    for (cell, layer), group in groups.items():
        by_seed = {row["seed"]: row for row in group}
        scores = [float(row["test_score"]) for row in by_seed.values()]
        horizons = []
        for column in ("horizon_e", "horizon_1000"):
            lags = {
                stage: [int(row[column]) for row in group if row["stage"] == stage and row[column]]
                for stage in ("initialization", "trained")
            }
            horizons.append(
                " → ".join(lag_text(of_stage, times.get((cell, layer), 0)) for of_stage in lags.values() if of_stage)
            )
        told = [f"{int(group[0]['parameters']):,}", f"{float(group[0]['seconds']):.1f}"]
        median = float(np.median(scores))
        lines.append((median, [cell, layer, spread(scores), *horizons, *told]))
    lines.sort(key=lambda line: (np.isnan(line[0]), -line[0] if metric in SHARES else line[0]))
    columns = ["cell", "layer", f"test {metric}", "to 1/e", "to 1/1000", "parameters", "seconds"]
    note = (
        f"The best test {metric} on top; the median over seeds, the least and the most in brackets. Who ignores the"
        f" input has {float(rows[0]['baseline_score']):.4g}. To 1/e and to 1/1000: the lags at which the gradient with"
        " respect to the carry has fallen so far, before → after training, the median over seeds; never: not within the"
        " sequence."
    )
    return Table("Results", columns, [line for _, line in lines], note)


def spread(values: Sequence[float]) -> str:
    """Writes the median of scores, and their range."""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{np.median(values):.4g} [{np.min(values):.4g}, {np.max(values):.4g}]"


def _benchmark(folder: pathlib.Path) -> Table:
    rows = [row for row in _rows(folder / "benchmark.csv") if row["chosen"] == "True"]
    columns: list[str] = [
        name for name in ("cell", "pass", "point", "library", "ms", "added_mb", "ratio") if name in rows[0]
    ]
    told = [{name: row[name] for name in columns if any(other[name] for other in rows)} for row in rows]
    return _plain("Measurements", told, by="ratio")


def _translations(folder: pathlib.Path) -> Table:
    """The scores of an evaluation, by the length of the sources."""
    groups = by_length(load_translations(folder))
    lines = [
        [f"{group.shortest} to {group.longest}", str(group.count), f"{group.exact:.4g}", f"{group.chrf:.1f}"]
        for group in groups
    ]
    columns = ["tokens of the source", "sources of the test split", "exact match", "chrF"]
    return Table("Translations", columns, lines, "Sorted by the length of the source; translations.csv has them all.")


def _plain(title: str, rows: Sequence[Mapping[str, str]], *, by: str, down: bool = False) -> Table:
    """A table of a file, sorted by a column."""
    ordered = sorted(rows, key=lambda row: _sorted_as(row.get(by, ""), down))
    shown = [[_short(text) for text in row.values()] for row in ordered[:_ROWS]]
    note = f"Sorted by {by.replace('_', ' ')}."
    if len(rows) > _ROWS:
        note += f" The first {_ROWS} of {len(rows)} rows; the file has all."
    return Table(title, [name.replace("_", " ") for name in rows[0]], shown, note)


def _sorted_as(text: str, down: bool) -> tuple[bool, float, str]:
    try:
        number = float(text)
    except ValueError:
        return True, 0.0, text
    return bool(np.isnan(number)), -number if down else number, text


def _short(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:,.0f}" if number.is_integer() else f"{number:.4g}"


def _metric(folder: pathlib.Path) -> str:
    """What the score of a run is called, from the names in its metrics.csv."""
    names = read.load_metrics(folder) if (folder / "metrics.csv").exists() else {}
    for name in names:
        if name.startswith(("test/", "validation/")):
            return name.partition("/")[2]
        if "/held_out_" in name:
            return name.partition("/held_out_")[2]
    return "score"


def _times(folder: pathlib.Path) -> dict[tuple[str, str], int]:
    """Steps in a sequence, by cell and layer."""
    if not (folder / "gradient_flow.npz").exists():
        return {}
    profiles = read.load_profiles(folder)
    return {
        (cell, layer): array.shape[-1]
        for cell in profiles.log10_norm
        for layer, array in profiles.whole_carries(cell).items()
    }


def _samples(folder: pathlib.Path) -> list[str]:
    """What each model put out at its last evaluation, if it puts out sequences."""
    last = {file.name.rpartition("step-")[0]: file for file in sorted((folder / "samples").glob("*.txt"))}
    parts = []
    for file in last.values():
        text = file.read_text(encoding="utf-8", errors="replace")[:_SAMPLES]
        parts += [html.heading(f"Samples, {file.stem}"), html.preformatted(text)]
    return parts


def _files(folder: pathlib.Path) -> list[str]:
    """Paths of what is worth a look, from the folder."""
    found = [path for path in folder.iterdir() if path.suffix in (".csv", ".json", ".npz", ".md")]
    for name in ("figures", "samples"):
        found += (folder / name).glob("[!.]*")
    return sorted(path.relative_to(folder).as_posix() for path in found if not path.name.startswith("."))
