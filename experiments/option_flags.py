"""The options of all tasks as flags of a command line."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

from rnn_jax import tasks


def define_option_flags() -> dict[str, flags.FlagHolder]:
    """Makes a flag of every option that a task has, except the seed of generated examples, which stays its own.

    `tasks.make_task` hands each task its own, and refuses one that it has not.

    Returns:
      the flags by the names of the options.
    """
    builders = {**tasks.TASKS, **{f"{prefix}:...": build for prefix, build in tasks.PREFIXES.items()}}
    types: dict[str, Any] = {}
    owners: dict[str, list[str]] = {}
    for name, build in builders.items():
        hints = typing.get_type_hints(build.func if isinstance(build, functools.partial) else build)
        for parameter in list(inspect.signature(build).parameters)[1 if name.endswith(":...") else 0 :]:
            if parameter != "seed" and parameter not in flags.FLAGS:
                types.setdefault(parameter, hints[parameter])
                owners.setdefault(parameter, []).append(name)
    define: dict[type, Callable[..., flags.FlagHolder]] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
    }
    options = {}
    for option, hint in types.items():
        kinds = [kind for kind in define if kind is hint or kind in typing.get_args(hint)]
        make = define[kinds[0]] if kinds else flags.DEFINE_string
        options[option] = make(option, None, f"Option of {', '.join(owners[option])}.")
    return options
