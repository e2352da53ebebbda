"""The worked examples in a task's docstring, so that a test can hold them to the definition."""

import inspect
from collections.abc import Callable

from rnn_jax.tasks import Task


def rows(build: Callable[..., Task], *names: str) -> list[list[list[str]]]:
    """Returns, for each of the names, the words of every indented line of the docstring that begins with it."""
    lines = [line.split() for line in inspect.getdoc(build).splitlines() if line.startswith("    ")]
    return [[words for first, *words in lines if first == name] for name in names]
