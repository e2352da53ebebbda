"""Reads a run directory from its files alone; their format is stated in `rnn_jax.training.run_directory`."""

import csv
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Gradient profiles of several cells, along the training of each.

    Attributes:
      steps: [L], the training steps at which profiles were taken.
      log10_norm: cell -> (layer, part of its carry), as ("rnn", "c"), or ("rnn", "") for the whole carry ->
        [L, seeds, time], log10 of the norm of the adjoint; -inf where it is exactly zero.
    """

    steps: np.ndarray
    log10_norm: dict[str, dict[tuple[str, str], np.ndarray]]

    def whole_carries(self, cell: str) -> dict[str, np.ndarray]:
        """Returns the profiles of a cell's layers, without those of parts of their carries."""
        return {layer: array for (layer, part), array in self.log10_norm[cell].items() if not part}


def load_config(run_dir: StrPath) -> dict[str, Any]:
    """Reads config.json; raises ValueError if there is none, for then it is no run directory."""
    return json.loads(_existing(run_dir, "config.json").read_text(encoding="utf-8"))


def load_profiles(run_dir: StrPath) -> Profiles:
    """Reads gradient_flow.npz; raises ValueError if the run wrote none."""
    log10_norm: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    with np.load(_existing(run_dir, "gradient_flow.npz")) as arrays:
        for key in arrays.files:
            if key != "steps":
                cell, layer, part = key.split("|")
                log10_norm.setdefault(cell, {})[layer, part] = arrays[key]
        return Profiles(arrays["steps"], log10_norm)


def load_instrument(run_dir: StrPath, name: str) -> dict[tuple[str, str, str], dict[str, np.ndarray]]:
    """Reads <name>.npz, by cell, stage and layer: quantity -> `[seeds, ...]`; raises ValueError if there is none."""
    found: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
    with np.load(_existing(run_dir, f"{name}.npz")) as arrays:
        for key in arrays.files:
            cell, stage, layer, quantity = key.split("|")
            found.setdefault((cell, stage, layer), {})[quantity] = arrays[key]
    return found


def load_metrics(run_dir: StrPath) -> dict[str, dict[int, float]]:
    """Reads metrics.csv, as name -> step -> value; raises ValueError if the run wrote none."""
    metrics: dict[str, dict[int, float]] = {}
    with _existing(run_dir, "metrics.csv").open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            metrics.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return metrics


def load_table(run_dir: StrPath) -> list[dict[str, str]]:
    """Reads the rows of summary.csv, all values as text; none if the run wrote no summary."""
    path = pathlib.Path(run_dir) / "summary.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def _existing(run_dir: StrPath, name: str) -> pathlib.Path:
    path = pathlib.Path(run_dir) / name
    if not path.exists():
        raise ValueError(f"{os.fspath(run_dir)!r} has no {name}; allowed: a run directory that holds one")
    return path
