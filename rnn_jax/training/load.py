"""A trained model from its run directory, without the data that it was trained on."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from rnn_jax import tasks
from rnn_jax.tasks.subwords import SubwordVocabulary, load_vocabulary
from rnn_jax.tasks.vocabulary import Vocabulary
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.resume import check_same_data
from rnn_jax.training.source import changed_cells, describe_source

_VOCABULARIES = ("vocabulary", "answer_vocabulary")


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """What a run of `experiments.train` has left.

    Attributes:
      run_dir: its folder.
      flags: of the run, by name.
      task: what the model knows of the task.
      model: that of the best evaluation so far.
      step: after how many steps it was that model.
      vocabulary, answer_vocabulary: as in `tasks.Task`.
    """

    run_dir: pathlib.Path
    flags: dict[str, Any]
    task: tasks.Interface
    model: Any
    step: int
    vocabulary: Vocabulary | SubwordVocabulary | None
    answer_vocabulary: Vocabulary | SubwordVocabulary | None

    def make_task(self) -> tasks.Task:
        """Makes the task of the run again, with its data.

        Raises:
          ValueError: if that cannot be done, or the data are not those of the run.
        """
        return make_task_of(self.run_dir, self.flags)


def make_task_of(run_dir: run_directory.StrPath, flags: Mapping[str, Any]) -> tasks.Task:
    """Makes the task of a run again, with its data, from the flags of the run.

    Raises:
      ValueError: if that cannot be done, or the data are not those of the run.
    """
    # --seed is not of the data, which are the same for every seed.
    options = {name: flags[name] for name in tasks.option_names(flags["task"]) if name in flags and name != "seed"}
    task = tasks.make_task(flags["task"], **options)
    check_same_data(flags["task"], str(run_dir), flags.get("data", {}), task.fingerprint, "allowed")
    return task


def save_interface(run_dir: run_directory.StrPath, task: tasks.Task) -> None:
    """Writes what `load_run` needs beside the flags and the weights: task.json and the vocabularies."""
    folder = pathlib.Path(run_dir)
    text = json.dumps(dataclasses.asdict(task.interface), indent=2)
    with run_directory.replacing(folder / "task.json") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    for name in _VOCABULARIES:
        vocabulary = getattr(task, name)
        if vocabulary is not None:
            with run_directory.replacing(folder / f"{name}.json") as temporary:
                vocabulary.save(temporary)


def load_run(run_dir: run_directory.StrPath | None, *kinds: tasks.Kind) -> LoadedRun:
    """Reads a run of `experiments.train`, also one that has not finished.

    Args:
      run_dir: the run directory; None where --run was not given.
      *kinds: of which the run's task must be one.

    Raises:
      ValueError: if the folder holds no such run, the run has written no checkpoint yet, or a file is damaged.
    """
    if run_dir is None:
        raise ValueError("--run is missing; allowed: a folder that experiments.train wrote.")
    folder, shown = pathlib.Path(run_dir).expanduser(), f"--run={str(run_dir)!r}"
    present = [(folder / name).exists() for name in ("config.json", "task.json")]
    if not any(present):
        raise ValueError(f"{shown} holds no run; allowed: a folder that experiments.train wrote.")
    if not all(present):
        missing = "task.json" if present[0] else "config.json"
        raise ValueError(f"{shown} has no {missing}; allowed: a folder that experiments.train wrote.{_remedy(missing)}")
    config = run_directory.load_config(folder)
    flags = config["flags"]
    task = _load_interface(folder)
    if task.kind not in kinds:
        raise ValueError(
            f"{shown} is a run of the task {task.name!r}, whose answer is {task.kind.value};"
            f" allowed: a run whose answer is {' or '.join(kind.value for kind in kinds)}."
        )
    if not checkpoints.has_checkpoint(folder, "best"):
        raise ValueError(f"{shown} has no checkpoint yet; allowed: a run after its first evaluation.")
    try:
        shapes = jax.eval_shape(lambda: make_model(task, ModelSettings.of_flags(flags), nnx.Rngs(0)))
        now = describe_source([flags["cell"]])
        tasks.option_names(flags["task"])
    except (TypeError, KeyError, AttributeError) as error:  # a flag that is not there, or of another kind
        raise run_directory.Damaged(
            f"{str(folder / 'config.json')!r} is damaged (its flags describe no model: {_first_line(error)}); allowed:"
            " that of a run of experiments.train."
        ) from None
    except ValueError as error:
        raise ValueError(f"{str(folder / 'config.json')!r} describes a model that cannot be built: {error}") from error
    for cell, file in changed_cells(config.get("source", {}), now).items():
        print(f"The source of the cell {cell!r} has changed since it was trained: {file!r}.", file=sys.stderr)
    vocabularies = {name: _load_vocabulary(folder, name, task) for name in _VOCABULARIES}
    return LoadedRun(
        run_dir=folder,
        flags=flags,
        task=task,
        model=checkpoints.restore_checkpoint(folder, "best", shapes),
        step=checkpoints.find_checkpoint(folder, "best").note["step"],
        **vocabularies,
    )


def _load_interface(folder: pathlib.Path) -> tasks.Interface:
    """Reads task.json; raises Damaged if it is not what `save_interface` writes."""
    path = folder / "task.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(fields["in_features"], list):
            fields["in_features"] = tuple(fields["in_features"])
        task = tasks.Interface(**{**fields, "kind": tasks.Kind(fields["kind"])})
        for field in dataclasses.fields(task):
            if field.type in (int, str, bool) and not isinstance(getattr(task, field.name), field.type):
                raise ValueError(f"its {field.name!r} is {getattr(task, field.name)!r}")
    except (ValueError, TypeError, KeyError) as error:  # ValueError: of JSON, UTF-8 and the kind, too
        raise run_directory.Damaged(
            f"{str(path)!r} is damaged ({_first_line(error)}); allowed: what the run wrote.{_remedy('task.json')}"
        ) from None
    return task


def _load_vocabulary(folder: pathlib.Path, name: str, task: tasks.Interface) -> Vocabulary | SubwordVocabulary | None:
    """Reads a vocabulary, None if the task has none; raises Damaged if it is not that of the task."""
    path, features = folder / f"{name}.json", task.in_features if name == "vocabulary" else task.out_features
    if not path.exists():
        answers = task.kind is tasks.Kind.SEQUENCE
        reads = task.reads_tokens and (answers or task.kind is tasks.Kind.STREAM)
        if not (reads if name == "vocabulary" else answers):
            return None
        raise run_directory.Damaged(f"{str(path)!r} is missing; allowed: a whole run.{_remedy(path.name)}")
    try:
        vocabulary = load_vocabulary(path)
        if len(vocabulary) != features:
            raise ValueError(f"it has {len(vocabulary)} symbols, and task.json says {features}")
    except Exception as error:  # the tokenizers package raises no narrower one
        reason = "it is no vocabulary" if "is no vocabulary" in str(error) else _first_line(error)
        raise run_directory.Damaged(
            f"{str(path)!r} is damaged ({reason}); allowed: what the run wrote.{_remedy(path.name)}"
        ) from None
    return vocabulary


def _remedy(name: str) -> str:
    if name == "config.json":
        return " The folder checkpoints/last has a copy."
    return f" The command of the run with --resume writes {name} again."


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
