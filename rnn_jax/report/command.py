"""The command that made a run, from its config.json."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def experiment(config: Mapping[str, Any]) -> str:
    """Returns the name of what made a run."""
    return config.get("experiment") or pathlib.Path((config.get("argv") or ["run"])[0]).stem


def command(config: Mapping[str, Any], *, without: Sequence[str] = ("out", "resume")) -> str:
    """Returns the command line of a run as a shell takes it, less the flags that belong to this one run."""
    kept, skip = [], False
    for argument in config.get("argv", [])[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        if not skip and not (argument.startswith("-") and name in without):
            kept.append(argument)
        # The value stands behind, of all flags but --resume.
        skip = not skip and argument.startswith("-") and name in without and name != "resume" and not equals
    return shlex.join(["python", "-m", f"experiments.{experiment(config)}", *kept])
