"""Whose fault is an exception: of what was asked for, of a cell of the user's own, or of this library.

A `raise` in this library refuses what was asked for, in a sentence. An exception that passes through code of the user
is about that code. Any other one is a fault of ours.
"""

import linecache
import os
import sys
import traceback
from types import FrameType

_OURS = ("rnn_jax", "experiments")
_LIBRARIES = {
    *("PIL", "absl", "array_record", "equinox", "etils", "flax", "grain", "jax", "jaxlib", "keras", "matplotlib"),
    *("numpy", "optax", "orbax", "sacrebleu", "scipy", "sklearn", "tensorboardX", "tensorflow_datasets"),
    *("tensorstore", "torch", "tqdm", "treescope"),
    *sys.stdlib_module_names,
}


def first_line(error: BaseException) -> str:
    """Returns the type of an exception and the first line of its message."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:150]}{' ...' if len(text) > 150 else ''}".rstrip(": ")


def exception_text(error: BaseException) -> str:
    """Returns the first line of an exception, and the line of the user's code that it came from, if any.

    A cell in rnn_jax.cells counts as one of the user's.
    """
    return " at ".join(filter(None, (first_line(error), _place(error))))


def is_refusal(error: BaseException) -> bool:
    """Whether a `raise` of this library or of an experiment made the exception, a ValueError."""
    *_, (frame, number) = [(None, 0), *traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, ValueError | NotImplementedError) or frame is None or _package(frame) not in _OURS:
        return False
    return linecache.getline(frame.f_code.co_filename, number, frame.f_globals).lstrip().startswith("raise ")


def user_failure(error: BaseException) -> tuple[str, str] | None:
    """Returns what code of the user's own has raised, and where; None if the exception passed through none of it.

    Returns:
      one sentence, with the name of the cell and of its method, and the frames of the user's code as a traceback has
      them, without those of libraries.
    """
    walked = traceback.walk_tb(error.__traceback__)
    frames = [(frame, number) for frame, number in walked if _is_users(frame)]
    if not frames:
        return None
    first = frames[0][0]
    owner = type(first.f_locals["self"]) if "self" in first.f_locals else None
    if owner is None:
        what = f"{_module(first)}: {first.f_code.co_name}"
    else:
        what = f"cell {owner.__module__}:{owner.__qualname__}: {first.f_code.co_name}"
    summary = traceback.StackSummary.extract(iter(frames))
    return f"{what} raised {exception_text(error)}", "".join(summary.format()).rstrip()


def _place(error: BaseException) -> str:
    """Returns file, line number and source of the last frame in a cell's code: `mycells.py:17: h = z + self.bias`."""
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if _is_users(frame) or _module(frame).startswith("rnn_jax.cells."):
            path = frame.f_code.co_filename
            source = linecache.getline(path, number, frame.f_globals).strip()
            short = os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path
            found = f"{short}:{number}: {source}".rstrip(": ")
    return found


def _is_users(frame: FrameType) -> bool:
    generated = frame.f_code.co_filename.startswith("<")  # of a NamedTuple, for instance
    return not generated and _package(frame) not in (*_OURS, *_LIBRARIES)


def _package(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _module(frame: FrameType) -> str:
    """Returns the name of a frame's module, also of one that `python -m` runs as `__main__`."""
    spec = frame.f_globals.get("__spec__")
    return str(spec.name if spec is not None else frame.f_globals.get("__name__", ""))
