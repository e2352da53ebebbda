"""The networks of a run, from its run directory: as they were drawn, as they were trained, and on the way."""

import functools
import json
import pathlib
import re
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
from rnn_jax.training.grid import GridSettings, MakeModel, as_in_paper, make_networks
from rnn_jax.training.load import make_task_of
from rnn_jax.training.step import make_ensemble

STAGES_ALLOWED = "initialization, step_<k> where the run kept its weights (--instruments_every), trained"

_STEP = re.compile(r"step_([1-9]\d*)")


def is_stage(stage: str) -> bool:
    """Whether a word names a stage of a training: "initialization", "step_100", "trained"."""
    return stage in ("initialization", "trained") or _STEP.fullmatch(stage) is not None


def stages_of(run_dir: run_directory.StrPath) -> list[str]:
    """Returns the stages whose networks a run holds, in the order of its training.

    Raises:
      ValueError: as `load_networks`.
    """
    folder = pathlib.Path(run_dir).expanduser()
    names = _find_networks(folder)[1]
    kept = set.intersection(*(set(checkpoints.kept_steps(folder, _training_of(name))) for name in names))
    return ["initialization", *(f"step_{step}" for step in sorted(kept)), "trained"]


def load_networks(run_dir: run_directory.StrPath, stage: str) -> tuple[tasks.Task, dict[str, Any]]:
    """Returns the task of a run with its data, and its networks by label, each an ensemble of seeds.

    Of a run of `experiments.train`, that is one network with one member; of `experiments.gradient_flow`, one for each
    cell and learning rate that has been trained to its end; of `experiments.grid_lstm`, each of the two that has.

    Args:
      run_dir: of `experiments.train`, `experiments.gradient_flow` or `experiments.grid_lstm`.
      stage: "initialization", "step_<k>" where the run kept its weights after k steps, or "trained"; of
        `experiments.train`, at its best evaluation so far, or at its last checkpoint where nothing is chosen, for want
        of a validation split.

    Returns:
      the task, and the networks: every array is a NumPy array, `[seeds, ...]`.

    Raises:
      ValueError: the folder holds no such run, its data are not those of the run, nothing in it has been trained, or it
        kept no weights at the step.
    """
    folder = pathlib.Path(run_dir).expanduser()
    flags, ready = _find_networks(folder)
    if stage not in (known := stages_of(folder)):
        raise ValueError(f"--run={str(run_dir)!r} has no networks at {stage!r}; allowed: {', '.join(known)}.")
    load: Callable[..., dict[str, Any]] = _load_ensemble if "cells" in flags else _load_one
    task = make_task_of(folder, flags)
    if _is_grid(flags):
        task = as_in_paper(task)
        load = functools.partial(_load_grid, make_networks(task, GridSettings.of_flags(flags)))
    networks: dict[str, Any] = {}
    for name in ready:
        networks |= load(folder, flags, task, name, stage)
    # Of no device: what runs them spreads them over several. Not the dict itself, whose order JAX would change.
    return task, {label: jax.tree.map(np.asarray, models) for label, models in networks.items()}


def _find_networks(folder: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the flags of a run and the names of the checkpoints of what it has trained; ValueError without any."""
    if not (folder / "config.json").exists():
        raise ValueError(f"--run={str(folder)!r} holds no run; allowed: the folder of a run.")
    flags = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]
    if "cells" in flags and "learning_rate" in flags and "data" in flags:
        ready = [cell for cell in split_names(flags["cells"]) if _has_finished(folder, cell)]
    elif _is_grid(flags):
        ready = [name for name in ("grid_lstm", "stacked_lstm", "tanh") if _has_finished(folder, name)]
    elif "cell" in flags and "recurrent" in flags:
        ready = [name for name in ("best", "last") if checkpoints.has_checkpoint(folder, name)][:1]
    else:
        raise ValueError(
            f"--run={str(folder)!r} has no networks that can be made again; allowed: a run of experiments.train,"
            " experiments.gradient_flow or experiments.grid_lstm."
        )
    if not ready:
        raise ValueError(
            f"--run={str(folder)!r} has no trained network yet; allowed: experiments.train after a checkpoint,"
            " experiments.gradient_flow or experiments.grid_lstm after its first network."
        )
    return flags, ready


def _is_grid(flags: dict[str, Any]) -> bool:
    """Whether flags are those of `experiments.grid_lstm`."""
    return "depth" in flags and "patch" in flags


def _training_of(name: str) -> str:
    """Returns the name of the checkpoint of a training: that of its best model is another."""
    return "last" if name == "best" else name


def _has_finished(folder: pathlib.Path, cell: str) -> bool:
    return checkpoints.has_checkpoint(folder, cell) and "finished" in checkpoints.load_note(folder, cell)


def _load_one(folder: pathlib.Path, flags: dict[str, Any], task: tasks.Task, name: str, stage: str) -> dict[str, Any]:
    embedding = None
    if flags.get("embeddings") is not None:
        assert isinstance(task.vocabulary, Vocabulary)
        embedding = load_embeddings(flags["embeddings"], task.vocabulary)[0]
    make = functools.partial(make_model, task.interface, ModelSettings.of_flags(flags), embedding=embedding)
    if stage != "initialization":
        part = ".model" if (name, stage) == ("last", "trained") else ""
        like = jax.eval_shape(lambda: make(nnx.Rngs(0)))
        model = checkpoints.restore_checkpoint(folder, _checkpoint_at(name, stage), like, part=part)
    else:
        model = jax.jit(lambda: make(nnx.Rngs(flags["seed"])))()
    label = flags["cell"] if flags["recurrent"] else "bag of embeddings"
    return {label: jax.tree.map(lambda leaf: leaf[None], model)}


def _checkpoint_at(name: str, stage: str) -> str:
    """Names the checkpoint of a stage that is not the initialization."""
    step = _STEP.fullmatch(stage)
    return checkpoints.name_at_step(_training_of(name), int(step[1])) if step else name


def _load_ensemble(
    folder: pathlib.Path, flags: dict[str, Any], task: tasks.Task, cell: str, stage: str
) -> dict[str, Any]:
    settings = ModelSettings.of_flags({**flags, "cell": cell})
    rates = [float(text) for text in flags["learning_rate"]]
    seeds = list(range(flags["seed"], flags["seed"] + flags["seeds"]))
    make = functools.partial(make_ensemble, functools.partial(make_model, task.interface, settings))
    if stage == "initialization":
        return {cell: make(seeds)}  # the same at every learning rate
    like = jax.eval_shape(lambda: make(seeds * len(rates)))
    models = checkpoints.restore_checkpoint(folder, _checkpoint_at(cell, stage), like)

    def at(k: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[k * len(seeds) : (k + 1) * len(seeds)], models)

    return {cell if len(rates) == 1 else f"{cell} at {rate:g}": at(k) for k, rate in enumerate(rates)}


def _load_grid(
    make_models: dict[str, MakeModel],
    folder: pathlib.Path,
    flags: dict[str, Any],
    task: tasks.Task,
    name: str,
    stage: str,
) -> dict[str, Any]:
    seeds = list(range(flags["seed"], flags["seed"] + flags["seeds"]))
    make = functools.partial(make_ensemble, make_models[name], seeds)
    if stage == "initialization":
        return {name: make()}
    return {name: checkpoints.restore_checkpoint(folder, name, jax.eval_shape(make))}
