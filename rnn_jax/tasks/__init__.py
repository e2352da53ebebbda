"""What there is to learn: sequence tasks with their data, loss, metric and trivial score.

    task = make_task("digits", blanks=64)
    for batch in itertools.islice(batches(task.train, batch_size=64, seed=0), 1000):
        loss, grads = jax.value_and_grad(task.loss)(model, batch)
    task.score(model, as_batch(task.test)), task.trivial_score

A new task is a function that returns a `Task`, in a file of its own, and an entry in `TASKS`.
"""

import os
from collections.abc import Callable

from rnn_jax.tasks.adding import adding
from rnn_jax.tasks.digits import PIXELS, digits
from rnn_jax.tasks.task import ArraySource, Batch, Model, Source, Task, as_batch, batches

__all__ = [
    "TASKS",
    "ArraySource",
    "Batch",
    "Model",
    "Source",
    "Task",
    "adding",
    "as_batch",
    "batches",
    "digits",
    "make_task",
]

PathLike = str | os.PathLike[str]


def make_task(
    name: str,
    *,
    seq_len: int | None = None,
    blanks: int | None = None,
    data_dir: PathLike | None = None,
) -> Task:
    """Makes a task from what an experiment's flags can say; None is the task's own default.

    Args:
      name: one of `TASKS`.
      seq_len: T, steps in a sequence. For "digits" another way to say blanks: seq_len = 64 + blanks.
      blanks: empty steps between the evidence and the answer.
      data_dir: folder for prepared data, where the task keeps any.

    Raises:
      ValueError: if the name is unknown, or the task cannot be as asked.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(sorted(TASKS))}")
    return TASKS[name](seq_len=seq_len, blanks=blanks, data_dir=data_dir)


def _adding(*, seq_len: int | None = None, blanks: int | None = None, data_dir: PathLike | None = None) -> Task:
    del data_dir  # nothing is stored
    if blanks:
        raise ValueError(f"blanks={blanks}: the task 'adding' has no blank steps; its lag is set by seq_len.")
    return adding() if seq_len is None else adding(seq_len)


def _digits(*, seq_len: int | None = None, blanks: int | None = None, data_dir: PathLike | None = None) -> Task:
    if seq_len is None:
        return digits(blanks or 0, data_dir)
    if seq_len < PIXELS:
        raise ValueError(f"seq_len={seq_len} is out of range for the task 'digits'; allowed: {PIXELS} or more.")
    if blanks is not None and seq_len != PIXELS + blanks:
        raise ValueError(
            f"seq_len={seq_len} and blanks={blanks} contradict each other:"
            f" for the task 'digits', seq_len = {PIXELS} + blanks."
        )
    return digits(seq_len - PIXELS, data_dir)


TASKS: dict[str, Callable[..., Task]] = {"adding": _adding, "digits": _digits}
