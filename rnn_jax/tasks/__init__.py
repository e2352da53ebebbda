"""Sequence tasks with their data, loss, metric and baseline score.

    task = make_task("digits", blanks=64)
    for batch in itertools.islice(batches(task.train, batch_size=64, seed=0), 1000):
        loss, grads = jax.value_and_grad(task.loss)(model, batch)
    total, count = task.score(model, as_batch(task.test))
    total / count, task.baseline_score

A new task is a function that returns a `Task`, in a file of its own, and an entry in `TASKS`; or, if it reads data of
the user's own, in `PREFIXES`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from rnn_jax.tasks.adding import adding
from rnn_jax.tasks.addition import addition
from rnn_jax.tasks.agreement import agreement
from rnn_jax.tasks.batching import as_batch, batches, collate, stream_batches
from rnn_jax.tasks.copying import copy, delayed_copy
from rnn_jax.tasks.dates import dates
from rnn_jax.tasks.digits import digits
from rnn_jax.tasks.django_translation import django_translation
from rnn_jax.tasks.docstrings import docstrings
from rnn_jax.tasks.dyck import dyck
from rnn_jax.tasks.forecasting import mackey_glass, sine
from rnn_jax.tasks.glyphs import glyphs
from rnn_jax.tasks.images import images
from rnn_jax.tasks.induction import induction
from rnn_jax.tasks.language_id import language_id
from rnn_jax.tasks.moving_digits import moving_digits
from rnn_jax.tasks.pairs import pairs
from rnn_jax.tasks.parity import parity
from rnn_jax.tasks.recall import associative_recall
from rnn_jax.tasks.s5 import s5
from rnn_jax.tasks.selective_copy import selective_copy
from rnn_jax.tasks.series import series
from rnn_jax.tasks.sources import ArraySource, RaggedSource, Source, StreamSource
from rnn_jax.tasks.stdlib_text import stdlib_text
from rnn_jax.tasks.surnames import surnames
from rnn_jax.tasks.tables import table
from rnn_jax.tasks.task import Batch, Interface, Kind, Model, Score, Task
from rnn_jax.tasks.temporal_order import temporal_order
from rnn_jax.tasks.text_file import text_file
from rnn_jax.tasks.tfds_named import tfds_named

__all__ = [
    "TASKS",
    "ArraySource",
    "Batch",
    "Interface",
    "Kind",
    "Model",
    "RaggedSource",
    "Score",
    "Source",
    "StreamSource",
    "Task",
    "adding",
    "addition",
    "agreement",
    "as_batch",
    "associative_recall",
    "batches",
    "collate",
    "copy",
    "dates",
    "delayed_copy",
    "digits",
    "django_translation",
    "docstrings",
    "dyck",
    "glyphs",
    "images",
    "induction",
    "language_id",
    "mackey_glass",
    "make_task",
    "moving_digits",
    "option_names",
    "pairs",
    "parity",
    "s5",
    "selective_copy",
    "series",
    "sine",
    "stdlib_text",
    "stream_batches",
    "surnames",
    "table",
    "temporal_order",
    "text_file",
    "tfds_named",
]

# A task takes its options by keyword; `make_task` hands it those that a flag gave.
TASKS: dict[str, Callable[..., Task]] = {
    "adding": adding,
    "addition": addition,
    "agreement": agreement,
    "associative_recall": associative_recall,
    "copy": copy,
    "dates": dates,
    "delayed_copy": delayed_copy,
    "digits": digits,
    "django_translation": django_translation,
    "docstrings": docstrings,
    "dyck": dyck,
    "glyphs": glyphs,
    "induction": induction,
    "language_id": language_id,
    "mackey_glass": mackey_glass,
    "moving_digits": moving_digits,
    "parity": parity,
    "s5": s5,
    "selective_copy": selective_copy,
    "sine": sine,
    "stdlib_text": stdlib_text,
    "surnames": surnames,
    "temporal_order": temporal_order,
}

# Tasks on data of the user: `csv:path/to/file.csv`. They take what stands behind the colon first.
PREFIXES: dict[str, Callable[..., Task]] = {
    **{file_format: functools.partial(table, file_format) for file_format in ("csv", "tsv", "jsonl")},
    "images": images,
    "pairs": pairs,
    "series": series,
    "text": text_file,
    "tfds": tfds_named,
}


def make_task(name: str, **options: Any) -> Task:
    """Makes a task from what an experiment's flags can say.

    Args:
      name: one of `TASKS`, or one of `PREFIXES`, a colon and what it is to read: `csv:my/file.csv`.
      **options: of that task, by the names of its arguments. None is the task's own default, and so is an option of 0
        or False that the task does not have. `data_dir` goes to the tasks that keep prepared data.

    Raises:
      ValueError: if the name is unknown, the task has no such option, or it cannot be as asked.
    """
    prefix, colon, argument = name.partition(":")
    if name not in TASKS and not (colon and prefix in PREFIXES):
        known = [*sorted(TASKS), *(f"{prefix}:..." for prefix in sorted(PREFIXES))]
        raise ValueError(f"unknown task {name!r}; known: {', '.join(known)}")
    build = TASKS[name] if name in TASKS else functools.partial(PREFIXES[prefix], argument)
    allowed = option_names(name)
    given = {option: value for option, value in options.items() if value is not None}
    for option in [option for option in given if option not in allowed]:
        if given.pop(option) and option != "data_dir":
            raise ValueError(
                f"{option}={options[option]!r} is no option of the task {name!r}; it has: {', '.join(allowed)}."
            )
    return build(**given)


def option_names(name: str) -> list[str]:
    """Returns the options of a task that `make_task` knows, by the names of its arguments."""
    build = TASKS[name] if name in TASKS else functools.partial(PREFIXES[name.partition(":")[0]], "")
    return [p.name for p in inspect.signature(build).parameters.values() if p.kind is not p.VAR_KEYWORD]
