"""Reads a run directory from its files alone; their format is stated in `rnn_jax.training.run_directory`.

A file that is not as it was written is a ValueError that names the file, what is wrong with it, and a way out.
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
import shlex
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnn_jax.report.command import command

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Gradient profiles of several cells, along the training of each.

    Attributes:
      steps: [L], the training steps at which profiles were taken.
      log10_norm: cell -> (layer, part of its carry), as ("rnn", "c"), or ("rnn", "") for the whole carry ->
        [L, seeds, time], log10 of the norm of the adjoint; -inf where it is exactly zero.
      sequences: cell -> layer -> [time], over how many sequences each is the mean, where they differ in length: lags
        then count from the end of each. Empty where all have one length.
    """

    steps: np.ndarray
    log10_norm: dict[str, dict[tuple[str, str], np.ndarray]]
    sequences: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def whole_carries(self, cell: str) -> dict[str, np.ndarray]:
        """Returns the profiles of a cell's layers, without those of parts of their carries."""
        return {layer: array for (layer, part), array in self.log10_norm[cell].items() if not part}


def load_config(run_dir: StrPath) -> dict[str, Any]:
    """Reads config.json.

    Raises:
      ValueError: there is none, for then it is no run directory; or it is damaged.
    """
    path = _existing(run_dir, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object of JSON")
        for key, kind in (("flags", dict), ("versions", dict), ("device", dict), ("argv", list)):
            if not isinstance(config.get(key), kind):
                raise ValueError(f"it has no {key!r}")
        if not all(isinstance(word, str) for word in config["argv"]):
            raise ValueError("its 'argv' is no list of words")
        device = config["device"]
        if not {"platform", "kind", "count"} <= device.keys() or "cpu_count" not in config:
            raise ValueError("it does not say what the run ran on")
    except ValueError as error:  # of JSON and UTF-8, too
        raise ValueError(f"{_is_damaged(path, str(error))}{_copy_of(path)}") from None
    return config


def load_profiles(run_dir: StrPath) -> Profiles:
    """Reads gradient_flow.npz; raises ValueError if the run wrote none, or it is damaged."""
    path = _existing(run_dir, "gradient_flow.npz")
    log10_norm: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    sequences: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(path) as arrays:
            steps = arrays["steps"]
            for key in arrays.files:
                if key.count("|") == 1:
                    cell, layer = key.split("|")
                    sequences.setdefault(cell, {})[layer] = arrays[key]
                elif key != "steps":
                    cell, layer, part = key.split("|")
                    if arrays[key].ndim != 3 or len(arrays[key]) != len(steps):
                        raise ValueError(f"{key!r} has not a profile at each of {len(steps)} steps")
                    log10_norm.setdefault(cell, {})[layer, part] = arrays[key]
        if not log10_norm:
            raise ValueError("it holds no profile")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{_is_damaged(path, reason)}{_remedy(run_dir)}") from None
    return Profiles(steps, log10_norm, sequences)


def load_instrument(run_dir: StrPath, name: str) -> dict[tuple[str, str, str], dict[str, np.ndarray]]:
    """Reads <name>.npz, by cell, stage and layer: quantity -> `[seeds, ...]`; raises ValueError if there is none."""
    found: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
    with np.load(_existing(run_dir, f"{name}.npz")) as arrays:
        for key in arrays.files:
            cell, stage, layer, quantity = key.split("|")
            found.setdefault((cell, stage, layer), {})[quantity] = arrays[key]
    return found


def load_metrics(run_dir: StrPath) -> dict[str, dict[int, float]]:
    """Reads metrics.csv, as name -> step -> value; raises ValueError if the run wrote none, or it is damaged.

    A last line without its end is that of a run at work or killed, and is left out.
    """
    metrics: dict[str, dict[int, float]] = {}
    path = _existing(run_dir, "metrics.csv")
    for number, row in enumerate(_load_rows(path, ("step", "name", "value"), unfinished=True), start=2):
        try:
            metrics.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
        except ValueError:
            reason = f"row {number} is {','.join(row.values())[:60]!r}"
            raise ValueError(f"{_is_damaged(path, reason)}{_remedy(run_dir)}") from None
    return metrics


def load_table(run_dir: StrPath) -> list[dict[str, str]]:
    """Reads the rows of summary.csv, all values as text; none if the run wrote no summary.

    Raises:
      ValueError: it is damaged.
    """
    path = pathlib.Path(run_dir) / "summary.csv"
    return _load_rows(path) if path.exists() else []


def _load_rows(path: pathlib.Path, columns: Sequence[str] = (), *, unfinished: bool = False) -> list[dict[str, str]]:
    """Reads a CSV file, all values as text; raises ValueError unless every row has every column.

    Args:
      path: of the file.
      columns: that it must have; any, if none are named.
      unfinished: whether there may be no row yet, and a last line without its end, which is left out.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        if unfinished:
            text = text[: text.rfind("\n") + 1]
        elif not text.endswith("\n"):
            raise ValueError("its last line has no end")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
        found = reader.fieldnames or []
        if not found or not all(found) or (columns and tuple(found) != tuple(columns)):
            raise ValueError(f"its first line is {','.join(found)[:60]!r}")
        if not rows and not unfinished:
            raise ValueError("it has no rows")
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise ValueError(f"row {number} has not {len(found)} columns")
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{_is_damaged(path, str(error))}{_remedy(path.parent)}") from None
    return rows


def _is_damaged(path: pathlib.Path, reason: str) -> str:
    return f"{str(path)!r} is damaged ({reason[:120]}); allowed: the file that the run wrote."


def _copy_of(path: pathlib.Path) -> str:
    copies = sorted(path.parent.glob(f"checkpoints/[!.]*/{path.name}"))
    return f" A copy of it is {str(copies[0])!r}." if copies else ""


def _remedy(run_dir: StrPath) -> str:
    """Says how the checkpoints of a run, if it has any, give back a file that it writes."""
    folder = pathlib.Path(run_dir)
    if not any(folder.glob("checkpoints/[!.]*")):
        return ""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        again = f"{command(config)} {shlex.join([f'--out={folder}', '--resume'])}" if config["argv"] else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        again = ""
    if not 0 < len(again) <= 200:
        again = "the command of the run with --resume"
    return f" Its checkpoints may give it back: {again}"


def _existing(run_dir: StrPath, name: str) -> pathlib.Path:
    path = pathlib.Path(run_dir) / name
    if not path.exists():
        raise ValueError(f"{os.fspath(run_dir)!r} has no {name}; allowed: a run directory that holds one")
    return path
