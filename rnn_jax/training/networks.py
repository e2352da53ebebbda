"""The networks of a run, from its run directory: as they were drawn, and as they were trained."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from rnn_jax import tasks
from rnn_jax.registry import split_names
from rnn_jax.tasks.embeddings import load_embeddings
from rnn_jax.tasks.vocabulary import Vocabulary
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.grid import GridSettings, as_in_paper, make_networks
from rnn_jax.training.load import make_task_of
from rnn_jax.training.step import make_ensemble

STAGES = ("initialization", "trained")


def load_networks(run_dir: run_directory.StrPath, stage: str) -> tuple[tasks.Task, dict[str, Any]]:
    """Returns the task of a run with its data, and its networks by label, each an ensemble of seeds.

    Of a run of `experiments.train`, that is one network with one member; of `experiments.gradient_flow`, one for each
    cell and learning rate that has been trained to its end; of `experiments.grid_lstm`, each of the two that has.

    Args:
      run_dir: of `experiments.train`, `experiments.gradient_flow` or `experiments.grid_lstm`.
      stage: "initialization" or "trained"; of `experiments.train`, at its best evaluation so far, or at its last
        checkpoint where nothing is chosen, for want of a validation split.

    Returns:
      the task, and the networks: every array is a NumPy array, `[seeds, ...]`.

    Raises:
      ValueError: the folder holds no such run, its data are not those of the run, or nothing in it has been trained.
    """
    folder = pathlib.Path(run_dir).expanduser()
    if not (folder / "config.json").exists():
        raise ValueError(f"--run={str(run_dir)!r} holds no run; allowed: the folder of a run.")
    flags = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]
    if "cells" in flags and "learning_rate" in flags and "data" in flags:
        cells = split_names(flags["cells"])
        ready = [cell for cell in cells if _has_finished(folder, cell)]
        load: Callable[..., dict[str, Any]] = _load_ensemble
    elif "depth" in flags and "patch" in flags:
        ready, load = (
            [name for name in ("grid_lstm", "stacked_lstm", "tanh") if _has_finished(folder, name)],
            _load_grid,
        )
    elif "cell" in flags and "recurrent" in flags:
        ready, load = [name for name in ("best", "last") if checkpoints.has_checkpoint(folder, name)][:1], _load_one
    else:
        raise ValueError(
            f"--run={str(run_dir)!r} has no networks that can be made again; allowed: a run of experiments.train,"
            " experiments.gradient_flow or experiments.grid_lstm."
        )
    if not ready:
        raise ValueError(
            f"--run={str(run_dir)!r} has no trained network yet; allowed: experiments.train after a checkpoint,"
            " experiments.gradient_flow or experiments.grid_lstm after its first network."
        )
    task = make_task_of(folder, flags)
    if load is _load_grid:
        task = as_in_paper(task)
    networks: dict[str, Any] = {}
    for name in ready:
        networks |= load(folder, flags, task, name, stage)
    return task, jax.tree.map(np.asarray, networks)  # of no device: what runs them spreads them over several


def _has_finished(folder: pathlib.Path, cell: str) -> bool:
    return checkpoints.has_checkpoint(folder, cell) and "finished" in checkpoints.load_note(folder, cell)


def _load_one(folder: pathlib.Path, flags: dict[str, Any], task: tasks.Task, name: str, stage: str) -> dict[str, Any]:
    embedding = None
    if flags.get("embeddings") is not None:
        assert isinstance(task.vocabulary, Vocabulary)
        embedding = load_embeddings(flags["embeddings"], task.vocabulary)[0]
    make = functools.partial(make_model, task.interface, ModelSettings.of_flags(flags), embedding=embedding)
    if stage == "trained":
        part = ".model" if name == "last" else ""
        model = checkpoints.restore_checkpoint(folder, name, jax.eval_shape(lambda: make(nnx.Rngs(0))), part=part)
    else:
        model = jax.jit(lambda: make(nnx.Rngs(flags["seed"])))()
    label = flags["cell"] if flags["recurrent"] else "bag of embeddings"
    return {label: jax.tree.map(lambda leaf: leaf[None], model)}


def _load_ensemble(
    folder: pathlib.Path, flags: dict[str, Any], task: tasks.Task, cell: str, stage: str
) -> dict[str, Any]:
    settings = ModelSettings.of_flags({**flags, "cell": cell})
    rates = [float(text) for text in flags["learning_rate"]]
    seeds = list(range(flags["seed"], flags["seed"] + flags["seeds"]))
    make = functools.partial(make_ensemble, functools.partial(make_model, task.interface, settings))
    if stage == "initialization":
        return {cell: make(seeds)}  # the same at every learning rate
    models = checkpoints.restore_checkpoint(folder, cell, jax.eval_shape(lambda: make(seeds * len(rates))))

    def at(k: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[k * len(seeds) : (k + 1) * len(seeds)], models)

    return {cell if len(rates) == 1 else f"{cell} at {rate:g}": at(k) for k, rate in enumerate(rates)}


def _load_grid(folder: pathlib.Path, flags: dict[str, Any], task: tasks.Task, name: str, stage: str) -> dict[str, Any]:
    make_model = make_networks(task, GridSettings.of_flags(flags))[name]
    make = functools.partial(make_ensemble, make_model, list(range(flags["seed"], flags["seed"] + flags["seeds"])))
    return {
        name: make()
        if stage == "initialization"
        else checkpoints.restore_checkpoint(folder, name, jax.eval_shape(make))
    }
