"""A trained model from its run directory, without the data that it was trained on."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
from flax import nnx

from rnn_jax import tasks
from rnn_jax.tasks.subwords import SubwordVocabulary, load_vocabulary
from rnn_jax.tasks.vocabulary import Vocabulary
from rnn_jax.training import run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.resume import check_same_data

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
        options = {name: self.flags[name] for name in tasks.option_names(self.flags["task"]) if name in self.flags}
        task = tasks.make_task(self.flags["task"], **options)
        check_same_data(self.flags["task"], str(self.run_dir), self.flags["data"], task.fingerprint, "allowed")
        return task


def save_interface(run_dir: run_directory.StrPath, task: tasks.Task) -> None:
    """Writes what `load_run` needs beside the flags and the weights: task.json and the vocabularies."""
    folder = pathlib.Path(run_dir)
    text = json.dumps(dataclasses.asdict(task.interface), indent=2)
    (folder / "task.json").write_text(text + "\n", encoding="utf-8")
    for name in _VOCABULARIES:
        vocabulary = getattr(task, name)
        if vocabulary is not None:
            vocabulary.save(folder / f"{name}.json")


def load_run(run_dir: run_directory.StrPath, *kinds: tasks.Kind) -> LoadedRun:
    """Reads a run of `experiments.train`, also one that has not finished.

    Args:
      run_dir: the run directory.
      *kinds: of which the run's task must be one.

    Raises:
      ValueError: if the folder holds no such run, or the run has written no checkpoint yet.
    """
    folder = pathlib.Path(run_dir).expanduser()
    if not (folder / "config.json").exists() or not (folder / "task.json").exists():
        raise ValueError(f"--run={str(run_dir)!r} holds no run; allowed: a folder that experiments.train wrote.")
    fields = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    if isinstance(fields["in_features"], list):
        fields["in_features"] = tuple(fields["in_features"])
    task = tasks.Interface(**{**fields, "kind": tasks.Kind(fields["kind"])})
    if task.kind not in kinds:
        raise ValueError(
            f"--run={str(run_dir)!r} is a run of the task {task.name!r}, whose answer is {task.kind.value};"
            f" allowed: a run whose answer is {' or '.join(kind.value for kind in kinds)}."
        )
    if not run_directory.has_checkpoint(folder, "best"):
        raise ValueError(f"--run={str(run_dir)!r} has no checkpoint yet; allowed: a run after its first evaluation.")
    flags = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]
    shapes = jax.eval_shape(lambda: make_model(task, ModelSettings.of_flags(flags), nnx.Rngs(0)))
    vocabularies = {
        name: load_vocabulary(folder / f"{name}.json") if (folder / f"{name}.json").exists() else None
        for name in _VOCABULARIES
    }
    return LoadedRun(
        run_dir=folder,
        flags=flags,
        task=task,
        model=run_directory.restore_checkpoint(folder, "best", shapes),
        step=run_directory.load_note(folder, "best")["step"],
        **vocabularies,
    )
